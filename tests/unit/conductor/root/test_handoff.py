"""Hand-off by greenlets against cells that answer, are silent, refuse, or come back."""

import gevent
import pytest
from gevent.event import Event
from msgspec.structs import replace

from tests.unit.conductor.root.fakes import (
    TINY,
    UUIDS,
    FakeEndpoint,
    FakeLedger,
    FakeLink,
    choosing,
    create_request,
)
from zcompute.bus.errors import Busy, DeadlineExceeded, LinkReset, NotOwner
from zcompute.conductor.root import intake, placement
from zcompute.conductor.root.handoff import HandOff
from zcompute.conductor.root.settings import HandOffLimits
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS
from zcompute.objects.build_request import BUILD_ERROR
from zcompute.objects.errors import InstanceBusy, InstanceNotFound
from zcompute.objects.messages.region import MappingReleaseRequest
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Limits

HOME = partition_of("p1")
UUID = UUIDS[0]
PATIENT = HandOffLimits(retry_ms_min=100, retry_ms_max=200, idle_ms=50)
QUICK = HandOffLimits(retry_ms_min=1, retry_ms_max=20, unreachable_ms_max=30, idle_ms=50)


class Closings:
    """Which cells take no new servers, and why none does."""

    def __init__(self):
        self.names, self.gone, self.why = set(), set(), ""

    def closed(self):
        return self.names

    def deleted(self, name):
        return name in self.gone

    def why_closed(self):
        return self.why


class Bench:
    """A hand-off with its surroundings."""

    def __init__(self, limits=QUICK):
        self.ledger = FakeLedger()
        self.endpoint = FakeEndpoint()
        self.closings = Closings()
        self.choose = choosing()
        self.hand_off = HandOff(
            self.ledger,
            self.endpoint,
            lambda amounts, tried: self.choose(amounts, tried),
            self.closings,
            build_deadline_s=300,
            limits=limits,
        )
        self.hand_off.start()

    def link(self, cell, *answers, service_id="s1"):
        link = FakeLink(cell, service_id, answers)
        self.endpoint.up.append(link)
        return link

    def create(self, cell="c1", decided_here=True):
        request = create_request()
        created = self.ledger.commit(
            HOME,
            intake.create_keys(request, [UUID]),
            lambda change: intake.create_servers(
                change, request, TINY, [UUID], "r-1", choosing(cell), "req-9", Limits()
            ),
            timeout_ms=100,
        )
        self.hand_off.put(created.build_requests, decided_here=decided_here)
        return created.build_requests[0]

    def until_idle(self):
        with gevent.Timeout(5):
            while len(self.hand_off):
                gevent.sleep(0.005)

    def until(self, condition):
        with gevent.Timeout(5):
            while not condition():
                gevent.sleep(0.005)

    def build_request(self):
        return self.ledger.get(BUILD_REQUESTS, UUID)

    def mapping(self):
        return self.ledger.get(MAPPINGS, UUID)


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.hand_off.stop()


def test_an_acknowledged_request_is_done(bench):
    link = bench.link("c1")
    sent = bench.create()
    bench.until_idle()
    assert [name for name, _ in link.calls] == ["build"]
    assert link.calls[0][1].build_request == sent
    assert bench.build_request() is None
    assert bench.mapping().cell == "c1"


def test_silence_repeats_to_the_same_cell_and_never_chooses_another(bench):
    failures = (DeadlineExceeded("late"), LinkReset("lost"), NotOwner("moved"), Busy("full"), RuntimeError("odd"))
    link = bench.link("c1", *failures)
    other = bench.link("c2")
    bench.choose = choosing("c2", "c2", "c2")
    bench.create()
    bench.until_idle()
    assert len(link.calls) == len(failures) + 1
    assert other.calls == []
    assert bench.mapping().cell == "c1"


def test_another_conductor_of_the_cell_is_asked_at_the_next_attempt(bench):
    first = bench.link("c1", *[DeadlineExceeded("late")] * 9, service_id="s1")
    second = bench.link("c1", *[DeadlineExceeded("late")] * 9, service_id="s2")
    bench.create()
    bench.until(lambda: first.calls and second.calls)


def test_a_cell_out_of_reach_that_was_never_asked_is_replaced(bench):
    other = bench.link("c2")
    bench.choose = choosing("c2")
    bench.create()
    bench.until_idle()
    assert [name for name, _ in other.calls] == ["build"]
    assert other.calls[0][1].build_request.generation == 2
    assert (bench.mapping().cell, bench.mapping().generation) == ("c2", 2)


def test_a_server_bound_for_a_deleted_cell_goes_elsewhere_whoever_sent_it_there(bench):
    bench.closings.gone.add("c1")
    bench.choose = choosing("c2")
    second = bench.link("c2")
    bench.create(decided_here=False)
    bench.until(lambda: second.calls)
    assert bench.ledger.get(MAPPINGS, UUID).cell == "c2"


def test_when_no_cell_takes_new_servers_the_server_is_in_error_with_the_reason(bench):
    bench.closings.why = "No cell takes new servers: c1 is draining."
    bench.create(cell=None)
    bench.until(lambda: bench.ledger.get(BUILD_REQUESTS, UUID).state == BUILD_ERROR)
    assert bench.ledger.get(BUILD_REQUESTS, UUID).fault.message == (
        "No valid host was found. No cell takes new servers: c1 is draining."
    )
    assert bench.ledger.get(MAPPINGS, UUID).cell is None


def test_a_disabled_cell_that_was_never_asked_is_replaced_at_once(bench):
    bench.closings.names.add("c1")
    link, other = bench.link("c1"), bench.link("c2")
    bench.choose = choosing("c2")
    bench.create()
    bench.until_idle()
    assert (len(link.calls), len(other.calls)) == (0, 1)


def test_a_request_found_in_the_database_waits_for_its_cell_however_long_it_is_away(bench):
    other = bench.link("c2")
    bench.choose = choosing("c2", "c2")
    bench.create(decided_here=False)
    gevent.sleep(QUICK.unreachable_ms_max * 4 / 1000)
    assert other.calls == []
    link = bench.link("c1")
    bench.hand_off.hurry("c1")
    bench.until_idle()
    assert len(link.calls) == 1


def test_a_request_found_in_the_database_is_seen_as_it_is_now(bench):
    stale = bench.create()
    bench.link("c1")
    bench.until_idle()
    link = bench.link("c1")
    bench.hand_off.put([stale], decided_here=False)
    bench.until_idle()
    assert link.calls == [], "it was handed off before: nothing is sent again"


def test_a_request_without_a_cell_waits_for_one(bench):
    bench.create(cell=None)
    link = bench.link("c1")
    bench.choose = choosing("c1")
    bench.until_idle()
    assert len(link.calls) == 1
    assert bench.mapping().cell == "c1"


def test_a_request_without_a_cell_ends_in_error_at_the_deadline(bench):
    bench.ledger.now -= 301 * 10**6
    bench.create(cell=None)
    bench.ledger.now += 301 * 10**6
    bench.until_idle()
    assert bench.build_request().state == "error"


@pytest.mark.parametrize(
    "answers", [[None], [InstanceNotFound("gone")], [InstanceBusy("later"), DeadlineExceeded("late"), None]]
)
def test_a_deletion_asked_for_meanwhile_is_done_in_the_cell_until_acknowledged(bench, answers):
    bench.create()
    bench.build_request().delete_requested = True
    link = bench.link("c1", None, *answers)
    bench.until_idle()
    assert [name for name, _ in link.calls] == ["build"] + ["delete"] * len(answers)
    assert len({request.operation_id for name, request in link.calls if name == "delete"}) == 1
    assert bench.build_request() is None


def test_nothing_is_sent_for_lost_partitions_even_by_a_worker_under_way(bench):
    answered, entered = Event(), Event()

    def slow():
        entered.set()
        answered.wait(5)

    bench.link("c1", slow)
    bench.create()
    assert entered.wait(5)
    commits = bench.ledger.commits
    bench.hand_off.drop([HOME])
    answered.set()
    gevent.sleep(0.02)
    assert len(bench.hand_off) == 0
    assert bench.ledger.commits == commits
    assert bench.build_request() is not None


def test_a_partition_lost_before_the_commit_ends_the_hand_off_here(bench):
    bench.create()
    bench.ledger.lost.add(HOME)
    bench.link("c1")
    bench.until_idle()
    assert bench.build_request() is not None


def refuse(bench, *cells):
    request = MappingReleaseRequest(uuid=UUID, project_id="p1", cell="c1", generation=1, reason="full")
    return bench.ledger.commit(
        HOME,
        intake.server_keys(UUID, "p1"),
        lambda change: placement.mapping_refused(change, request, choosing(*cells)),
        timeout_ms=100,
    )


def test_a_refusal_waits_for_the_call_that_is_open(bench):
    answered, entered = Event(), Event()

    def slow():
        entered.set()
        answered.wait(5)
        raise DeadlineExceeded("late")

    bench.link("c1", slow)
    bench.create()
    assert entered.wait(5)
    with pytest.raises(Busy):
        bench.hand_off.hold(UUID, 1)
    answered.set()


@pytest.fixture
def patient():
    """Long enough between two attempts to do something meanwhile."""
    made = Bench(PATIENT)
    yield made
    made.hand_off.stop()


def test_after_a_refusal_its_generation_is_never_sent_again(patient):
    bench = patient
    link = bench.link("c1", DeadlineExceeded("late"))
    other = bench.link("c2")
    bench.create()
    bench.until(lambda: bench.hand_off._queue.get(UUID).attempts == 1)
    release = bench.hand_off.hold(UUID, 1)
    bench.until(lambda: bench.hand_off._queue.get(UUID).attempts == 2)  # it was due, and held back
    assert len(link.calls) == 1
    bench.hand_off.put([refuse(bench, "c2")], decided_here=True)
    release()
    bench.until_idle()
    assert len(link.calls) == 1
    assert [message.build_request.generation for _, message in other.calls] == [2]


def test_after_the_last_refusal_nothing_is_sent_any_more(patient):
    bench = patient
    link = bench.link("c1", DeadlineExceeded("late"))
    bench.create()
    bench.until(lambda: bench.hand_off._queue.get(UUID).attempts == 1)
    release = bench.hand_off.hold(UUID, 1)
    assert refuse(bench) is None
    release()
    bench.until_idle()
    assert len(link.calls) == 1
    assert bench.build_request().state == "error"


def test_a_commit_of_unknown_outcome_is_looked_at_again(bench):
    link = bench.link("c2")
    bench.choose = choosing("c2")
    bench.create()
    bench.ledger.fail_next = DeadlineExceeded("outcome unknown")  # of the choice of c2, which was committed
    bench.until_idle()
    assert [message.build_request.generation for _, message in link.calls] == [2]
    assert bench.build_request() is None


def test_a_silent_cell_holds_up_no_other(bench):
    bench.hand_off.stop()
    slow = Bench(HandOffLimits(workers_max=2, per_cell_max=1, idle_ms=50))
    never = Event()
    slow.link("c1", *[lambda: never.wait(5)] * 3)
    link = slow.link("c2")
    first = slow.create()
    others = [(UUIDS[1], "c1"), (UUIDS[2], "c1"), (UUIDS[3], "c2")]
    slow.hand_off.put([replace(first, uuid=uuid, cell=cell) for uuid, cell in others], decided_here=True)
    slow.until(lambda: link.calls)
    slow.hand_off.stop()


def test_a_worker_that_will_not_die_does_not_break_the_stop(bench, monkeypatch):
    monkeypatch.setattr("zcompute.conductor.root.handoff.STOP_S_MAX", 0.05)
    go, entered = Event(), Event()

    def stubborn():
        try:
            entered.set()
            go.wait()
        finally:
            go.wait()

    bench.link("c1", stubborn)
    bench.create()
    assert entered.wait(5)
    bench.hand_off.stop()
    go.set()
