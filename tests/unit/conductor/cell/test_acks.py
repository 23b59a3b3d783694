"""Verdicts on their way back: together where an agent reported together, never held up for long."""

from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus import Ack
from zcompute.conductor.cell.acks import AckLimits, Acks


class Linked:
    """A link that owes so many acks."""

    def __init__(self, reports: int) -> None:
        self.up = True
        self.reports_unanswered = reports
        self.frames: list[list[Ack]] = []

    def ack(self, acks: list[Ack]) -> None:
        self.frames.append(acks)
        self.reports_unanswered -= len(acks)

    @property
    def sequences(self) -> list[list[int]]:
        return [[ack.seq for ack in frame] for frame in self.frames]


class Clock:
    """A time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def ack(seq: int) -> Ack:
    return Ack(f"i{seq}", seq, "applied")


def test_the_verdicts_of_a_frame_leave_together_when_the_last_is_there() -> None:
    link, clock = Linked(reports=3), Clock()
    acks = Acks(AckLimits(gather_ms_max=60_000), clock)
    acks.add(link, ack(1))
    acks.add(link, ack(2))
    wait_for(lambda: not acks.looking)
    assert link.frames == []
    acks.add(link, ack(3))
    wait_for(lambda: link.frames)
    assert link.sequences == [[1, 2, 3]]


def test_a_report_alone_is_answered_at_once() -> None:
    link = Linked(reports=1)
    acks = Acks(AckLimits(gather_ms_max=60_000), Clock())
    acks.add(link, ack(1))
    wait_for(lambda: link.sequences == [[1]])


def test_a_verdict_waits_for_others_no_longer_than_gather_ms_max() -> None:
    slow, other = Linked(reports=2), Linked(reports=2)
    acks = Acks(AckLimits(gather_ms_max=30))
    acks.add(slow, ack(1))
    acks.add(other, ack(2))
    wait_for(lambda: slow.frames and other.frames)
    assert slow.sequences == [[1]]
    acks.add(slow, ack(3))
    wait_for(lambda: len(slow.frames) == 2)


def test_where_batches_are_quick_a_verdict_waits_for_one_at_most() -> None:
    link, clock = Linked(reports=2), Clock()
    acks = Acks(AckLimits(gather_ms_max=60_000), clock, lambda: 10.0)
    acks.add(link, ack(1))
    wait_for(lambda: not acks.looking)
    assert link.frames == []
    clock.now_s += 0.0101
    wait_for(lambda: link.sequences == [[1]])


def test_so_many_wait_for_no_more_of_them() -> None:
    link = Linked(reports=100)
    acks = Acks(AckLimits(gather_ms_max=60_000, acks_gather_max=4), Clock())
    for seq in range(4):
        acks.add(link, ack(seq))
    wait_for(lambda: link.sequences == [[0, 1, 2, 3]])


def test_what_has_to_come_again_is_said_at_once_with_what_waits() -> None:
    link = Linked(reports=5)
    acks = Acks(AckLimits(gather_ms_max=60_000), Clock())
    acks.add(link, ack(1))
    acks.add(link, Ack("i2", 2, "busy", retry_after_ms=50), hurry=True)
    wait_for(lambda: link.sequences == [[1, 2]])


def test_nothing_is_said_on_a_link_that_is_down_and_nothing_after_the_end() -> None:
    down, up = Linked(reports=1), Linked(reports=2)
    acks = Acks(AckLimits(gather_ms_max=5))
    down.up = False
    acks.add(down, ack(1))
    acks.add(up, ack(2))
    acks.stop()
    acks.add(up, ack(3))
    wait_for(lambda: not acks.looking)
    assert (down.frames, up.frames, len(acks)) == ([], [], 0)
