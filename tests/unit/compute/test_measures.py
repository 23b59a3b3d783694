"""What an agent measures; alert rules and the page speak of nothing else."""

import re
from pathlib import Path

from zcompute.compute.service import ComputeService
from zcompute.compute.virt.fake import FakeDriver
from zcompute.config import Config, FakeHostConfig, ServiceConfig
from zcompute.metrics import measured

ROOT = Path(__file__).parents[3]
RULES = (ROOT / "etc" / "prometheus" / "agents.rules.yml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "operating" / "hosts.md").read_text(encoding="utf-8")


def test_the_rules_name_metrics_that_there_are_and_the_page_each_alert(tmp_path: Path) -> None:
    driver = FakeDriver(tmp_path / "hosts", [FakeHostConfig(name="node1")])
    service = ComputeService(
        Config(service=ServiceConfig(id="a1", cell="c1", state_dir=str(tmp_path / "state"))), driver
    )
    names = {metric.name for metric in measured("a1", service.measures())}
    service.stop()
    assert "zcompute_agent_in_doubt" in names
    wanted = set(re.findall(r"zcompute_agent_[a-z_]+", RULES))
    assert wanted
    assert wanted <= names
    for alert in re.findall(r"alert: (\w+)", RULES):
        assert f"`{alert}`" in PAGE
