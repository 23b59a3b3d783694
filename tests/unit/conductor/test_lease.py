"""Who counts as dead: silence of a peer, never a disturbance of the watcher or of the database."""

import socket
import time

import gevent
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.conductor.ledger_world import wait_for
from zcompute.conductor.lease import BeatThread, LeaseWatch, port_refuses
from zcompute.conductor.settings import LeaseSettings


def run_watch(watch: LeaseWatch, beats: dict[float, dict[str, int]], round_trip_s: float = 0.001) -> None:
    for at_s, counters in sorted(beats.items()):
        watch.observe(at_s, at_s + round_trip_s, counters, 0.0)


def silent(until_ms: int, step_ms: int = 100) -> dict[float, dict[str, int]]:
    return {10 + ms / 1000: {"me": ms, "peer": 7} for ms in range(0, until_ms + 1, step_ms)}


def test_a_peer_is_dead_when_its_beat_has_not_moved_for_the_lease() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    run_watch(watch, silent(600))
    assert not watch.dead()
    run_watch(watch, {10.7: {"me": 1, "peer": 7}})
    assert list(watch.dead()) == ["peer"]


def test_a_peer_that_beats_is_alive_and_fit_to_receive() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    run_watch(watch, {10 + n / 10: {"me": 1, "peer": n} for n in range(30)})
    assert not watch.dead()
    assert not watch.suspects()
    assert watch.fresh() == ["peer"]


def test_a_peer_never_seen_to_beat_receives_nothing() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    run_watch(watch, silent(100))
    assert watch.fresh() == []


def test_a_newcomer_gets_a_share_when_it_has_beaten_for_a_while() -> None:
    watch = LeaseWatch(LeaseSettings(join_ms=1500), "me")
    run_watch(watch, {10 + n / 10: {"me": 1, "peer": n} for n in range(16)})
    assert watch.fresh() == ["peer"]
    assert watch.settled() == []
    run_watch(watch, {10 + n / 10: {"me": 1, "peer": n} for n in range(16, 18)})
    assert watch.settled() == ["peer"]


def test_the_own_silence_is_not_judged() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    run_watch(watch, {10 + n / 10: {"me": 1} for n in range(30)})
    assert not watch.dead()


def test_a_slow_or_failed_round_trip_starts_the_count_again() -> None:
    for disturb in ("slow", "failed", "beat", "gap"):
        watch = LeaseWatch(LeaseSettings(), "me")
        run_watch(watch, silent(500))
        if disturb == "slow":
            watch.observe(10.55, 10.75, {"me": 1, "peer": 7}, 0.0)
        elif disturb == "failed":
            watch.failed(10.75)
        elif disturb == "beat":
            watch.observe(10.74, 10.75, {"me": 1, "peer": 7}, 10.75)
        at = 11.5 if disturb == "gap" else 10.8
        watch.observe(at, at + 0.001, {"me": 1, "peer": 7}, 0.0)
        assert not watch.dead(), disturb
        run_watch(watch, {at + n / 10: {"me": 1, "peer": 7} for n in range(1, 8)})
        assert list(watch.dead()) == ["peer"], disturb


def test_a_refused_port_shortens_the_lease_to_two_beats() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    run_watch(watch, silent(300))
    assert watch.suspects() == ["peer"]
    assert not watch.dead()
    watch.refuses("peer")
    assert list(watch.dead()) == ["peer"]
    run_watch(watch, {10.4: {"me": 1, "peer": 8}})
    assert not watch.dead()


def ended(watch: LeaseWatch, looks: int = 2) -> None:
    for _ in range(looks):
        watch.attended(["peer"], set())


def beaten(watch: LeaseWatch, *, attended: bool = True) -> None:
    """A peer that beats, in a session that the database knows, over a calm lease; its link ends at 11.0."""
    run_watch(watch, {10 + n / 10: {"me": 1, "peer": n} for n in range(11)})
    if attended:
        assert watch.strangers() == ["peer"]
        watch.attended(["peer"], {"peer"})
        assert watch.strangers() == []
    watch.doubt("peer", 11.0)


def test_an_ended_session_and_a_refused_port_need_no_silence() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    beaten(watch)
    run_watch(watch, {11.02: {"me": 1, "peer": 10}})
    assert watch.suspects() == ["peer"]
    ended(watch)
    assert not watch.dead(), "its port does not refuse: it may have made a new session"
    watch.refuses("peer")
    assert list(watch.dead()) == ["peer"]


def test_a_refused_port_alone_is_no_death_however_often_links_end() -> None:
    """A REJECT rule between two that both reach the database: each beat takes the suspicion back."""
    watch = LeaseWatch(LeaseSettings(), "me")
    beaten(watch)
    for n in range(11, 60):
        watch.doubt("peer", n / 10 + 10)
        watch.refuses("peer")
        watch.attended(["peer"], {"peer"})
        run_watch(watch, {n / 10 + 10: {"me": 1, "peer": n}})
        assert not watch.dead()


def test_one_look_at_an_ended_session_is_not_enough_and_a_beat_makes_them_count_anew() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    beaten(watch)
    watch.refuses("peer")
    ended(watch, looks=1)
    assert not watch.dead()
    run_watch(watch, {11.02: {"me": 1, "peer": 11}})  # a new session has beaten
    watch.refuses("peer")
    ended(watch, looks=1)
    assert not watch.dead()


def test_a_session_that_was_never_known_to_live_cannot_end() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    beaten(watch, attended=False)
    watch.refuses("peer")
    ended(watch, looks=5)
    run_watch(watch, {11.02: {"me": 1, "peer": 10}})
    assert not watch.dead()


def test_sessions_that_end_around_a_disturbance_of_the_watcher_say_nothing() -> None:
    """The database that was away ended everybody's session, those of the living too."""
    watch = LeaseWatch(LeaseSettings(), "me")
    beaten(watch)
    watch.failed(11.01)
    watch.refuses("peer")
    ended(watch)
    run_watch(watch, {11.1: {"me": 1, "peer": 10}})
    assert not watch.dead()


def test_who_was_taken_over_is_not_dead_a_second_time() -> None:
    """The beats are read again later than the keeper looks: it would take over twice."""
    watch = LeaseWatch(LeaseSettings(), "me")
    run_watch(watch, silent(700))
    assert list(watch.dead()) == ["peer"]
    watch.forget(watch.dead())
    assert not watch.dead()
    run_watch(watch, {10.72: {"me": 1, "peer": 7}})  # a read that was sent before
    assert not watch.dead()


def test_doubts_end_with_the_lease() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    beaten(watch)
    assert watch.doubts(11.5)
    assert not watch.doubts(11.7)
    assert watch.suspects() == []


def test_who_is_gone_from_the_table_is_forgotten() -> None:
    watch = LeaseWatch(LeaseSettings(), "me")
    run_watch(watch, silent(700))
    run_watch(watch, {10.8: {"me": 1}})
    assert not watch.dead()
    assert not watch.suspects()


@given(
    st.lists(
        st.tuples(st.floats(0.01, 0.4), st.floats(0.0, 0.3), st.booleans(), st.sampled_from([0.0, 0.0, 0.2])),
        max_size=60,
    )
)
def test_whatever_disturbs_the_watcher_a_peer_that_beats_each_100_ms_never_dies(
    rounds: list[tuple[float, float, bool, float]],
) -> None:
    """The peer's counter is a function of the time at which the read was served, anywhere in its round trip."""
    watch = LeaseWatch(LeaseSettings(), "me")
    now_s = 100.0
    for pause_s, trip_s, early, disturbed_s in rounds:
        now_s += pause_s
        served_s = now_s if early else now_s + trip_s
        disturbed_at_s = now_s - disturbed_s if disturbed_s else 0.0
        watch.observe(now_s, now_s + trip_s, {"peer": int(served_s * 10)}, disturbed_at_s)
        now_s += trip_s
        assert not watch.dead()


class CountingBeater:
    def __init__(self) -> None:
        self.beats = 0
        self.answer = True
        self.closed = False

    def beat(self) -> bool:
        self.beats += 1
        return self.answer

    def close(self) -> None:
        self.closed = True


def test_beats_go_on_while_the_hub_turns_and_stop_while_it_does_not() -> None:
    beater = CountingBeater()
    thread = BeatThread(beater, LeaseSettings(beat_ms=10, hub_tick_ms=5, hub_late_ms_max=60))
    ticking = gevent.spawn(thread.tick_hub)
    thread.start()
    try:
        wait_for(lambda: beater.beats > 5)
        assert thread.held(time.monotonic())
        blocked_until = time.monotonic() + 0.12
        while time.monotonic() < blocked_until:  # the hub does not turn
            pass
        before = beater.beats
        blocked_until = time.monotonic() + 0.1
        while time.monotonic() < blocked_until:
            pass
        assert beater.beats <= before + 1
        wait_for(lambda: beater.beats > before + 5)
        beater.answer = False
        wait_for(lambda: thread.disturbed_at_s(time.monotonic()) > 0)
    finally:
        assert thread.stop(1000)
        ticking.kill()
    assert beater.closed


def test_only_an_outright_refusal_is_one() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    assert not port_refuses(f"tcp://127.0.0.1:{port}", 200)
    listener.close()
    assert port_refuses(f"tcp://127.0.0.1:{port}", 200)
    assert not port_refuses("ipc:///nowhere", 200)
    assert not port_refuses("nonsense", 200)
