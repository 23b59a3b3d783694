"""Ending greenlets that do not want to."""

import gevent

from zcompute.compute import ending
from zcompute.compute.ending import end_all


def stubborn(let_go):
    while not let_go:
        try:
            gevent.sleep(1)
        except gevent.GreenletExit:
            continue


def test_greenlets_end():
    greenlets = [gevent.spawn(gevent.sleep, 10) for _ in range(3)]
    assert end_all(greenlets, "sleepers")
    assert all(greenlet.dead for greenlet in greenlets)


def test_one_that_does_not_end_is_left_without_an_exception(monkeypatch, caplog):
    monkeypatch.setattr(ending, "END_S_MAX", 0.05)
    let_go = []
    greenlet = gevent.spawn(stubborn, let_go)
    gevent.sleep(0)
    assert not end_all([greenlet], "the stubborn")
    assert "the stubborn not ended within" in caplog.text
    let_go.append(True)
    greenlet.kill(timeout=2)
