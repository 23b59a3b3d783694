"""The alert rules: readable, whole, and of metrics that there are."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.conductor.test_stat import exposition
from zcompute.api.listing import new_room
from zcompute.cells.gate import Gate
from zcompute.conductor.cell.root_outbox import RootOutbox
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.root.cross_moves import CrossMoves
from zcompute.conductor.root.reconciler import Reconciler
from zcompute.conductor.tasks.measures import TaskMeasures
from zcompute.conductor.tasks.steps import STEP_NAMES
from zcompute.config import QuotaConfig
from zcompute.metrics import measured
from zcompute.objects.conductor_stat import COMMIT_MS_BOUNDS

ROOT = Path(__file__).parents[2]
RULES = [
    ROOT / "etc" / "prometheus" / f"{name}.rules.yml"
    for name in ("api", "cells", "conductors", "quotas", "replicas", "failover", "tasks")
]
DOCUMENTS = "\n".join(
    (ROOT / "docs" / "operating" / name).read_text(encoding="utf-8")
    for name in (
        "cells.md",
        "conductors.md",
        "database.md",
        "failover.md",
        "lists.md",
        "quotas.md",
        "replicas.md",
        "tasks.md",
    )
)
Rule = dict[str, str]


def parsed(text: str) -> Iterator[Rule]:
    """The rules of a file that keeps to the plain form: two spaces a level, one key a line, `|` for long texts."""
    rule: Rule = {}
    block = ""
    for number, line in enumerate(text.splitlines(), 1):
        if block and line.startswith(" " * 10):
            rule[block] += " " + line.strip()
            continue
        block = ""
        if not line or line.startswith(("#", "  - name: ")) or line in ("groups:", "    rules:"):
            continue
        match = re.fullmatch(r"( {6}- | {8}| {10})([a-z]+):(?: (.+))?", line)
        assert match, f"line {number}: {line!r}"
        place, key, value = match.groups()
        if place == "      - ":
            if rule:
                yield rule
            rule = {}
        if value == "|":
            block, value = key, ""
        rule[key] = (value or "").strip('"')
    yield rule


ALERTS = [rule for file in RULES for rule in parsed(file.read_text(encoding="utf-8"))]
NAMES = {line.split(" ")[0].split("{")[0] for line in exposition().splitlines() if not line.startswith("#")}
IDLE_CELL = SimpleNamespace(ledger=None, cell="c1")
OF_A_CELL = {
    sample.name
    for family in measured("c1-1", RootOutbox(IDLE_CELL, None, CellSettings()).measures(0))  # type: ignore[arg-type]
    for sample in family.samples
}
OF_TASKS = {
    sample.name
    for family in measured("c1-1", TaskMeasures().measures([], known=STEP_NAMES, tasks_max=1))
    for sample in family.samples
}
IDLE_ROOT = SimpleNamespace(config=SimpleNamespace(quota=QuotaConfig()), ledger=SimpleNamespace(now_us=int))
OF_THE_ROOT = {
    sample.name
    for family in measured(
        "root-1",
        [*Reconciler(IDLE_ROOT).measures(), *CrossMoves(IDLE_ROOT, None).measures()],  # type: ignore[arg-type]  # idle
    )
    for sample in family.samples
}
OF_THE_BUS = {"zcompute_bus_refused_total"}
OF_THE_API = {
    sample.name
    for family in measured("api-1", [*Gate().measures("c1"), *new_room().measures()])
    for sample in family.samples
}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_a_rule_is_whole_and_asks_for_metrics_that_there_are(rule: Rule) -> None:
    assert {"alert", "expr", "severity", "summary"} <= rule.keys()
    assert rule["severity"] in ("warning", "critical")
    assert rule["expr"].count("(") == rule["expr"].count(")")
    asked = set(re.findall(r"\b(?:zcompute|process)_[a-z_]+\b", rule["expr"]))
    assert asked or rule["expr"].startswith("up{")
    assert asked <= NAMES | OF_THE_API | OF_A_CELL | OF_TASKS | OF_THE_ROOT | OF_THE_BUS, asked - NAMES
    assert f"`{rule['alert']}`" in DOCUMENTS, "say what to do, in docs/operating"


def test_the_names_of_metrics_were_found() -> None:
    assert {"zcompute_conductor_lane_batches_total", "zcompute_conductor_lane_commit_seconds_bucket"} <= NAMES
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) >= 10
    assert len(COMMIT_MS_BOUNDS) == len(set(COMMIT_MS_BOUNDS))


def test_every_metric_of_an_api_process_is_documented() -> None:
    own = {name.removeprefix("zcompute_").removesuffix("_total") for name in OF_THE_API}
    assert not sorted(name for name in own if f"`{name}" not in DOCUMENTS), "explain them in docs/operating/lists.md"


def test_every_metric_of_a_conductor_is_documented() -> None:
    own = {re.sub(r"_(total|bucket|count|sum|created)$", "", name) for name in NAMES if "zcompute_conductor" in name}
    missing = sorted(name for name in own if f"`{name.removeprefix('zcompute_conductor_')}" not in DOCUMENTS)
    assert not missing, "explain them in docs/operating/conductors.md"
