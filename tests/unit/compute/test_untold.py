"""Whatever an agent must leave untold is counted: an outbox and its reporter before an owner that is slow, or away."""

import random
from collections import deque
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.unit.conductor.ledger_world import instance
from zcompute.bus import Ack, Report
from zcompute.compute.outbox import Outbox
from zcompute.compute.reporter import Reporter
from zcompute.compute.settings import Settings
from zcompute.conductor.cell.observations import judge_observation
from zcompute.objects.report import FINAL_VERDICTS, VERDICT_BUSY, Observation

LIMITS = Settings(straggler_ms=20, busy_ms_min=10, busy_ms_max=40)
UUIDS = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(3)]
POWERS = (1, 3, 4)
STEPS = 400


class Owner:
    """A link and the owner behind it, which judges with the real rule, late, and may lose answers."""

    name, up, lowers, report_credit = "k1", True, False, 100

    def __init__(self, dice: random.Random, lost: float) -> None:
        self.peer = SimpleNamespace(service_id="k1", interfaces={})
        self.rows = {uuid: instance(uuid, host="h1", generation=1) for uuid in UUIDS}
        self.dice, self.lost = dice, lost
        self.coming: deque[Report] = deque()
        self.applied: dict[str, list[int]] = {uuid: [] for uuid in UUIDS}
        self.folded = 0
        self.payloads: dict[int, bytes] = {}

    def lane_of(self, key: str) -> int:
        return 0

    def lane_room(self, lane: int) -> int:
        return 100

    def withdraw_report(self, key: str, seq: int) -> None:
        return

    def report(self, reports: list[Report]) -> int:
        for report in reports:
            assert self.payloads.setdefault(report.seq, report.payload) == report.payload
        self.coming.extend(reports)
        return len(reports)

    def judge(self) -> Ack | None:
        """The next that comes, and its answer, unless that is lost."""
        report = self.coming.popleft()
        if self.dice.random() < 0.2:
            return Ack(report.key, report.seq, VERDICT_BUSY, lane=1, retry_after_ms=10)
        body = msgspec.msgpack.decode(report.payload, type=Observation)
        judged = judge_observation(self.rows[report.key], body, 1, report.seq, None)
        assert judged.verdict in FINAL_VERDICTS
        if judged.decision is not None and judged.decision.instance is not None:
            self.rows[report.key] = judged.decision.instance
            self.applied[report.key].append(report.seq)
            self.folded += body.folded
        return None if self.dice.random() < self.lost else Ack(report.key, report.seq, judged.verdict, lane=1)


def untold(seen: list[tuple[int, int]], applied: list[int]) -> int:
    """How many runs of one power state have no observation that was applied."""
    runs = [{seq for seq, _ in run} for _, run in groupby(seen, key=lambda each: each[1])]
    return sum(not run & set(applied) for run in runs)


def run(directory: Path, monkeypatch: pytest.MonkeyPatch, seed: int, lost: float) -> tuple[int, int]:
    """How many states went untold, and how many were told to be folded."""
    dice = random.Random(seed)
    outbox = Outbox(directory / "outbox", LIMITS)
    reporter = Reporter(outbox, LIMITS)
    owner = Owner(dice, lost)
    link: Any = owner
    reporter.remap(lambda _: "k1")
    reporter.release("h1")
    reporter.link_ready("k1", link, False)
    seen: dict[str, list[tuple[int, int]]] = {uuid: [] for uuid in UUIDS}
    now = 0.0
    monkeypatch.setattr("zcompute.compute.reporter.time", SimpleNamespace(monotonic=lambda: now))

    def deliver() -> None:
        answer = owner.judge() if owner.coming else None
        if answer is not None:
            before = outbox.last_seq
            reporter.acks(link, [answer])
            for seq in range(before + 1, outbox.last_seq + 1):  # the same state, under a sequence of its own
                body = outbox.body(seq)
                assert isinstance(body, Observation)
                seen[body.instance_uuid].append((seq, body.power_state))

    for _ in range(STEPS):
        now += 0.01
        if dice.random() < 0.5:
            uuid = dice.choice(UUIDS)
            power = dice.choice(POWERS)
            reporter.report(Observation(instance_uuid=uuid, host="h1", generation=1, power_state=power))
            seen[uuid].append((outbox.last_seq, power))
        elif dice.random() < 0.7:
            deliver()
        reporter.pump(now)
        assert len(outbox) <= len(UUIDS)
    while len(outbox):
        now += 0.1
        reporter.pump(now)
        deliver()
    for uuid in UUIDS:
        assert owner.rows[uuid].power_state == seen[uuid][-1][1], "the newest state arrived"
    outbox.close()
    return sum(untold(seen[uuid], owner.applied[uuid]) for uuid in UUIDS), owner.folded


@pytest.mark.parametrize("seed", range(30))
def test_states_that_nobody_was_told_are_counted_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    missing, folded = run(tmp_path, monkeypatch, seed, lost=0.0)
    assert missing > 0
    assert folded == missing


@pytest.mark.parametrize("seed", range(30))
def test_where_answers_are_lost_none_is_left_out_of_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    missing, folded = run(tmp_path, monkeypatch, seed, lost=0.2)
    assert folded >= missing
