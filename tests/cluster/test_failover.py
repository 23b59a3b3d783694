"""The loss of the primary: it lives on, cut off with a part of its cell, or dies in mid-commit."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.failover_scene import KEYS, R1, R2, R3, P, Scene, wait_for
from zcompute.db.errors import ConnectionLost, PromotionRefused

CUT_S = 1.5


@contextmanager
def scene_of(*names: str, silent: frozenset[str] = frozenset()) -> Iterator[Scene]:
    require_mariadb()
    made = Scene(silent, names or (P, R1, R2, R3))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_a_primary_cut_off_without_an_acker_acknowledges_and_answers_nothing_and_nothing_is_lost() -> None:
    with scene_of(silent=frozenset({R2})) as scene:
        a, b = scene.node("a"), scene.node("b")
        a.write_all(range(KEYS))
        b.write_all(range(KEYS))
        wait_for(lambda: len(a.acked) > 50 and len(b.acked) > 50 and a.read_at_s, "both write and read")
        scene.cut()
        cut_at_s = time.monotonic()
        gevent.sleep(CUT_S)
        acked_there = [one for one in a.acked if one[0] > cut_at_s + 0.1]
        assert not acked_there
        done, said = scene.promote()
        promoted_at_s = time.monotonic()
        assert done is not None
        assert (done.term, done.may_go) == (2, []), said
        wait_for(lambda: b.acked[-1][0] > promoted_at_s, "the conductor on this side writes at the new primary")
        gevent.sleep(CUT_S)
        assert not [one for one in a.acked if one[0] > cut_at_s + 0.1]
        assert not [at_s for at_s in a.read_at_s if at_s > promoted_at_s]
        scene.heal()
        healed_at_s = time.monotonic()
        wait_for(lambda: a.acked[-1][0] > healed_at_s, "the other conductor has found the new primary")
        wait_for(lambda: a.read_at_s[-1] > healed_at_s, "and reads there")
        assert scene.named(a.base.stat().primary, "a") == scene.named(done.primary)
        a.stopping = b.stopping = True
        gevent.sleep(0.5)
        primary = scene.named(done.primary)
        assert scene.lost(primary) == []


def test_a_promotion_is_refused_while_an_acker_is_out_of_reach_and_lists_what_may_go() -> None:
    with scene_of() as scene:
        a, b = scene.node("a"), scene.node("b")
        a.write_all(range(KEYS))
        b.write_all(range(KEYS))
        wait_for(lambda: len(a.acked) > 50 and len(b.acked) > 50, "both write")
        scene.cut()
        cut_at_s = time.monotonic()
        wait_for(lambda: a.acked[-1][0] > cut_at_s + 0.5, "that side goes on: its replica acknowledges")
        with pytest.raises(PromotionRefused) as refused:
            scene.promote()
        reasons = "\n".join(refused.value.reasons)
        assert "could acknowledge, and it does not answer" in reasons
        assert "what may go: every transaction of domain 0 after number" in reasons
        wait_for(lambda: a.acked[-1][0] > time.monotonic() - 0.2, "nothing was changed by the refusal")
        done, said = scene.promote(accept_loss=True)
        promoted_at_s = time.monotonic()
        assert done is not None
        assert any("what may go" in line for line in said)
        wait_for(lambda: b.acked[-1][0] > promoted_at_s, "this side goes on at the new primary")
        scene.heal()
        healed_at_s = time.monotonic()
        wait_for(lambda: a.acked[-1][0] > healed_at_s + 1.0, "the other side has found it")
        a.stopping = b.stopping = True
        gevent.sleep(0.5)
        primary = scene.named(done.primary)
        gone = scene.lost(primary)
        assert all(cut_at_s - 0.5 < at_s < healed_at_s + 1.0 for at_s, _, _ in gone)


def test_a_commit_that_only_the_dead_primary_had_is_acknowledged_after_an_acker_has_it() -> None:
    """kill -9 while a commit waits for its acker; the server starts again and has committed it; the resend finds it
    applied. Then the primary is lost for good."""
    with scene_of(P, R1, R3) as scene:
        a = scene.node("a")
        a.write_all(range(KEYS))
        wait_for(lambda: len(a.acked) > 50, "it writes")
        scene.cut()
        cut_at_s = time.monotonic()
        gevent.sleep(0.3)
        waiting = "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_wait_sessions'"
        wait_for(lambda: int(scene.servers[P].administer(waiting)[0]["Value"]) > 0, "a commit waits for its acker")
        before = len(a.acked)
        scene.restart_primary()
        gevent.sleep(CUT_S)
        counts = scene.counts(P)
        acked = {uuid: max(count for _, other, count in a.acked if other == uuid) for _, uuid, _ in a.acked}
        assert any(counts[uuid] > acked[uuid] for uuid in acked), "the server has what was never acknowledged"
        assert [one for one in a.acked[before:] if one[0] > cut_at_s + 0.3] == []
        scene.servers[P].kill()
        a.stopping = True
        done, said = scene.promote()
        assert done is not None, said
        assert scene.lost(scene.named(done.primary)) == []


def test_a_promotion_that_is_cut_short_at_any_step_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    points = ("io_stopped", "before_term", "after_term", "repointed", "before_writable", "writable")
    with scene_of(P, R1, R3) as scene:
        a = scene.node("a")
        a.write_all(range(KEYS))
        wait_for(lambda: len(a.acked) > 50, "it writes")
        scene.servers[P].kill()
        for point in points:

            def stop_here(name: str, wanted: str = point) -> None:
                if name == f"promote.{wanted}":
                    raise ConnectionLost(name)

            with monkeypatch.context() as patched:
                patched.setattr("zcompute.db.failover.promote.failpoint", stop_here)
                with pytest.raises(ConnectionLost):
                    scene.promote()
        done, said = scene.promote()
        assert done is not None, said
        assert done.term == 2
        written_at_s = time.monotonic()
        wait_for(lambda: a.acked[-1][0] > written_at_s, "it writes at the new primary")
        a.stopping = True
        gevent.sleep(0.3)
        assert scene.lost(scene.named(done.primary)) == []
