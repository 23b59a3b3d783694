from pathlib import Path
from typing import Any

import pytest

from zcompute.compute.errors import StateDirInUse
from zcompute.compute.service import ComputeService, make_driver
from zcompute.compute.statedir import StateDir
from zcompute.config import ComputeConfig, Config, ConfigError, FakeHostConfig, ServiceConfig


def config(tmp_path: Path, **compute: Any) -> Config:
    values: dict[str, Any] = {"hosts": [FakeHostConfig(name="node1")], "fake_dir": str(tmp_path / "hosts")}
    return Config(
        service=ServiceConfig(id="agent1", cell="c1", state_dir=str(tmp_path / "state")),
        compute=ComputeConfig(**(values | compute)),
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hosts": []}, "compute.hosts"),
        ({"hosts": [FakeHostConfig(name="a"), FakeHostConfig(name="a")]}, "compute.hosts"),
        ({"fake_dir": ""}, "compute.fake_dir"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make_driver(config(tmp_path, **changes))


def test_one_agent_at_a_time_holds_a_state_directory(tmp_path: Path) -> None:
    held = StateDir(tmp_path / "state")
    with pytest.raises(StateDirInUse, match="in use"):
        ComputeService(config(tmp_path))
    held.close()
    service = ComputeService(config(tmp_path))
    service.start()
    service.stop()
    StateDir(tmp_path / "state").close()
