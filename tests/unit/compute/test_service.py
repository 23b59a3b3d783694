import errno
import os
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


@pytest.mark.parametrize("failing", [errno.EIO, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("earlier", [True, False])
def test_an_agent_starts_on_a_disk_that_fails_and_is_whole_once_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, earlier: bool
) -> None:
    """No file of its directory can be opened: the directory is there, as its disk is mounted."""
    (tmp_path / "state").mkdir()
    if earlier:
        first = ComputeService(config(tmp_path))
        first._doubt.settle_here()
        first.stop()
    plain = os.open

    def broken(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if Path(path).parent == tmp_path / "state":
            raise OSError(failing, os.strerror(failing), str(path))
        return plain(path, flags, *more, **named)

    monkeypatch.setattr("os.open", broken)
    service = ComputeService(config(tmp_path))
    service.start()
    measured = {measure.name: measure.value for measure in service.measures() if measure.name == "agent_in_doubt"}
    assert measured == {"agent_in_doubt": True}
    journals = [service._outbox.journal, service._generations.journal]
    assert [journal.degraded for journal in journals] == [True, True]
    monkeypatch.undo()
    for journal in journals:
        journal.tend(float("inf"))
    service._fences.tend()
    assert [journal.degraded for journal in journals] == [False, False]
    assert service._fences.on_disk
    service.stop()
