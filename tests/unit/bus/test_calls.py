"""Calls and casts between two endpoints over CURVE."""

import contextlib
import logging
import time
from typing import Any, ClassVar

import gevent
import pytest
from gevent.event import Event as Flag

from tests.unit.bus.conftest import ECHO, NOTE, SLOW, Answer, Ask, Bus, Method, connect, serve_echo, wait_until
from zcompute.bus import (
    BusConfigError,
    Busy,
    CallContext,
    DeadlineExceeded,
    Forbidden,
    FrameRefused,
    InvalidRequest,
    Limits,
    LinkDown,
    NotOwner,
    RemoteError,
    UnknownMethod,
    UnsupportedVersion,
    register_error,
)
from zcompute.bus.context import request_id


def test_a_call_is_answered_over_curve(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    assert link.call(ECHO, Ask("hello"), timeout_ms=2000) == Answer("hello")
    assert link.peer is not None
    assert (link.peer.role, link.peer.service_id) == ("conductor", "conductor-1")


def test_the_listener_calls_its_dialler(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    client = bus.endpoint("compute", "compute-1", hosts=("h1", "h2"))
    serve_echo(client)
    connect(server, client)
    (back,) = server.links(role="compute")
    assert back.call(ECHO, Ask("hi"), timeout_ms=2000) == Answer("hi")
    assert back.peer is not None
    assert back.peer.hosts == {"h1", "h2"}
    assert back.peer.key_name == "compute-1"


def test_many_calls_at_once_get_their_own_answers(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    server.serve(SLOW, lambda ask, context: (gevent.sleep(0.001 * (ask.number % 7)), Answer(ask.text))[1])
    link = connect(server, bus.endpoint("compute", "compute-1"))
    callers = [gevent.spawn(link.call, SLOW, Ask(str(n), n), timeout_ms=5000) for n in range(500)]
    gevent.joinall(callers, timeout=10)
    assert [caller.value for caller in callers] == [Answer(str(n)) for n in range(500)]


def test_a_large_payload_goes_through_and_a_larger_one_is_refused_before_sending(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    text = "x" * (2 * 1024 * 1024)
    assert link.call(ECHO, Ask(text), timeout_ms=5000) == Answer(text)
    with pytest.raises(FrameRefused):
        link.call(ECHO, Ask("x" * (Limits().payload_bytes_max + 1)), timeout_ms=5000)
    assert link.call(ECHO, Ask("still there"), timeout_ms=2000) == Answer("still there")


def test_a_reply_over_the_limit_is_an_error_and_not_a_hang(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    server.serve(ECHO, lambda ask, context: Answer("x" * (Limits().payload_bytes_max + 1)))
    link = connect(server, bus.endpoint("compute", "compute-1"))
    with pytest.raises(FrameRefused):
        link.call(ECHO, Ask("a lot"), timeout_ms=2000)


def test_a_call_without_an_answer_ends_at_its_deadline(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    never = Flag()
    server.serve(SLOW, lambda ask, context: never.wait(3))
    link = connect(server, bus.endpoint("compute", "compute-1"))
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        link.call(SLOW, Ask("?"), timeout_ms=150)
    assert 0.14 <= time.monotonic() - started < 1.0
    with pytest.raises(DeadlineExceeded):
        link.call(SLOW, Ask("?"), timeout_ms=0)
    never.set()


def test_the_deadline_travels_and_a_late_reply_is_counted(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    remaining: list[int] = []
    go_on = Flag()

    def slow(ask: Ask, context: CallContext) -> Answer:
        remaining.append(context.remaining_ms())
        go_on.wait(5)
        return Answer("late")

    server.serve(SLOW, slow)
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    with pytest.raises(DeadlineExceeded):
        link.call(SLOW, Ask("?"), timeout_ms=200)
    go_on.set()
    wait_until(lambda: client.counters["replies_late"] == 1)
    assert 100 < remaining[0] <= 200


def test_expired_work_is_not_begun(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(calls_workers=1))
    begun: list[int] = []
    go_on = Flag()

    def slow(ask: Ask, context: CallContext) -> Answer:
        begun.append(ask.number)
        go_on.wait(5)
        return Answer("")

    server.serve(SLOW, slow)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    callers = [gevent.spawn(link.call, SLOW, Ask("", n), timeout_ms=200) for n in range(3)]
    gevent.joinall(callers, timeout=5)
    go_on.set()
    wait_until(lambda: server.counters["calls_expired"] == 2)
    assert begun == [0]


def test_a_killed_caller_leaves_nothing_open(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    go_on = Flag()
    server.serve(SLOW, lambda ask, context: (go_on.wait(5), Answer(""))[1])
    serve_echo(server)
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    caller = gevent.spawn(link.call, SLOW, Ask(""), timeout_ms=5000)
    wait_until(lambda: link.core.calls)
    caller.kill()
    assert not link.core.calls
    wait_until(lambda: server.counters["calls_cancelled"] == 1)
    go_on.set()
    wait_until(lambda: server.counters["replies_dropped"] == 1)
    assert link.call(ECHO, Ask("on"), timeout_ms=2000) == Answer("on")


def test_a_running_handler_sees_that_its_caller_is_gone(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(calls_workers=1))
    seen: list[str] = []

    def slow(ask: Ask, context: CallContext) -> Answer:
        seen.append("begun")
        while not context.cancelled:
            gevent.sleep(0.005)
        seen.append("cancelled" if context.remaining_ms() else "expired")
        return Answer("")

    server.serve(SLOW, slow)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    callers = [gevent.spawn(link.call, SLOW, Ask("", n), timeout_ms=10_000) for n in range(2)]
    wait_until(lambda: len(server.links()[0].core.serving) == 2)
    gevent.killall(callers)
    wait_until(lambda: server.counters["calls_cancelled"] == 2)
    wait_until(lambda: len(seen) == 2)
    with contextlib.suppress(DeadlineExceeded):  # the answer may still come before the caller's sweep
        link.call(SLOW, Ask(""), timeout_ms=100)
    wait_until(lambda: len(seen) == 4)
    assert seen == ["begun", "cancelled", "begun", "expired"]


def test_a_handler_sees_that_its_callers_endpoint_was_closed(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(call_grace_ms=50, silence_ms_max=100))
    ended = Flag()

    def slow(ask: Ask, context: CallContext) -> Answer:
        while not context.cancelled:
            gevent.sleep(0.005)
        ended.set()
        return Answer("")

    server.serve(SLOW, slow)
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    caller = gevent.spawn(link.call, SLOW, Ask(""), timeout_ms=60_000)
    wait_until(lambda: server.links()[0].core.serving)
    client.close()
    assert ended.wait(5)
    caller.kill()


def test_casts_arrive_with_their_request_id(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    seen: list[tuple[str, str, str]] = []
    server.serve(NOTE, lambda ask, context: seen.append((ask.text, context.request_id, request_id.get())))
    link = connect(server, bus.endpoint("compute", "compute-1"))
    link.cast(NOTE, Ask("one"), request_id="req-1")
    token = request_id.set("req-2")
    link.cast(NOTE, Ask("two"))
    request_id.reset(token)
    wait_until(lambda: len(seen) == 2)
    assert seen == [("one", "req-1", "req-1"), ("two", "req-2", "req-2")]


def test_registered_errors_arrive_as_themselves_and_others_as_remote_error(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    @register_error
    class OutOfTea(Exception):
        wire_name: ClassVar[str] = "TestOutOfTea"

        def __init__(self, message: str, **details: Any) -> None:
            super().__init__(message)
            self.details = details

    failures: dict[str, Exception] = {
        "tea": OutOfTea("no tea", pots=[1, 2]),
        "owner": NotOwner("not mine", partition=7, map_version=12),
        "bug": ZeroDivisionError("secret internals"),
    }

    def fail(ask: Ask, context: CallContext) -> Answer:
        raise failures[ask.text]

    server = bus.endpoint("conductor", "conductor-1")
    server.serve(ECHO, fail)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    with pytest.raises(OutOfTea) as tea:
        link.call(ECHO, Ask("tea"), timeout_ms=2000)
    assert tea.value.details == {"pots": [1, 2]}
    with pytest.raises(NotOwner) as owner:
        link.call(ECHO, Ask("owner"), timeout_ms=2000)
    assert (owner.value.partition, owner.value.map_version) == (7, 12)
    with caplog.at_level(logging.ERROR), pytest.raises(RemoteError) as bug:
        link.call(ECHO, Ask("bug"), timeout_ms=2000)
    assert bug.value.type_name == "ZeroDivisionError"
    assert "Traceback" not in str(bug.value)
    assert "handler failed method=echo.say" in caplog.text


def test_a_request_of_the_wrong_shape_is_refused_naming_its_field(bus: Bus) -> None:
    class Wrong(Ask):
        number: str = "seven"  # type: ignore[assignment]  # another type on purpose

    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    with pytest.raises(InvalidRequest) as invalid:
        link.call(ECHO, Wrong("x"), timeout_ms=2000)
    assert invalid.value.field == "number"


def test_a_role_that_may_not_call_is_refused_and_counted(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    private = Method("echo", "private", roles=frozenset({"conductor"}))
    server.serve(private, lambda ask, context: Answer("secret"))
    link = connect(server, bus.endpoint("compute", "compute-1"))
    with pytest.raises(Forbidden):
        link.call(private, Ask("?"), timeout_ms=2000)
    assert server.counters["refused_Forbidden"] == 1


def test_a_version_that_the_peer_does_not_serve_is_refused_before_sending(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    client = bus.endpoint("compute", "compute-1")
    client.serve(Method("echo", "newer", version=(1, 3)), lambda ask, context: Answer(""))
    link = connect(server, client)
    for version in ((1, 3), (2, 0)):
        with pytest.raises(UnsupportedVersion) as unsupported:
            link.call(Method("echo", "newer", version=version), Ask("?"), timeout_ms=2000)
        assert unsupported.value.details["server"] == [[1, 0], [1, 0]]
        assert unsupported.value.details["caller"] == [[1, 0], [1, 3]]
    assert client.counters["calls"] == 0
    with pytest.raises(UnknownMethod):
        link.call(Method("tea", "brew"), Ask("?"), timeout_ms=2000)
    with pytest.raises(UnknownMethod):
        link.call(Method("echo", "unknown"), Ask("?"), timeout_ms=2000)


def test_the_receiver_checks_the_version_too(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    newer = Method("echo", "say", version=(1, 5))
    link._spoken[id(newer)] = link._endpoint.prepare(newer)
    with pytest.raises(UnsupportedVersion):
        link.call(newer, Ask("?"), timeout_ms=2000)
    assert server.counters["refused_UnsupportedVersion"] == 1


def test_a_full_pool_answers_busy_and_disturbs_no_other_pool(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(calls_workers=1, pool_queue_max=2))
    go_on = Flag()
    server.serve(SLOW, lambda ask, context: (go_on.wait(5), Answer(""))[1])
    quick = Method("echo", "quick", pool="control")
    server.serve(quick, lambda ask, context: Answer("quick"))
    link = connect(server, bus.endpoint("compute", "compute-1"))
    callers = [gevent.spawn(link.call, SLOW, Ask("", n), timeout_ms=5000) for n in range(6)]
    wait_until(lambda: server.counters["refused_Busy"] >= 3)
    assert link.call(quick, Ask(""), timeout_ms=2000) == Answer("quick")
    go_on.set()
    gevent.joinall(callers, timeout=5)
    busy = [caller.exception for caller in callers if caller.exception is not None]
    assert len(busy) >= 3
    assert all(isinstance(error, Busy) and error.retry_after_ms > 0 for error in busy)


def test_a_call_on_a_link_that_is_not_up_fails_at_once(bus: Bus) -> None:
    client = bus.endpoint("compute", "compute-1")
    public, _ = bus.keys.make("conductor-1", "conductor")
    link = client.dial("tcp://127.0.0.1:20001", public)
    assert not link.up
    with pytest.raises(LinkDown):
        link.call(ECHO, Ask("?"), timeout_ms=60_000)
    with pytest.raises(LinkDown):
        link.cast(NOTE, Ask("?"))
    assert not link.wait_up(50)


def test_methods_that_cannot_be_served_are_refused_when_declared(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    for method in (ECHO, Method("echo", "x", pool="sofa"), Method("echo", "y", version=(2, 0))):
        with pytest.raises(BusConfigError):
            server.serve(method, lambda ask, context: Answer(""))
