"""When frames leave, and what follows a frame that the socket refused for a while."""

import gevent
import zmq

from tests.fuzz.bus.seeds import hello, welcome
from tests.unit.bus.conftest import Bus, connect
from zcompute.bus.counters import Counters
from zcompute.bus.envelope import Bye, Cast, decode_frame, encode_frame
from zcompute.bus.limits import Limits
from zcompute.bus.protocol import LinkCore
from zcompute.bus.sending import Sender
from zcompute.bus.sockets import BLOCKED, GONE, SENT
from zcompute.bus.turn import STEPS_PER_TURN_MAX, Turn

LIMITS = Limits()
A_CAST = Cast("echo.note", 1, 0, "-", b"")


class Home:
    """Stands for the endpoint."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.limits = LIMITS
        self.counters = Counters()


class Taker:
    """A socket that answers as told, SENT when told nothing."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> str:
        answer = self.answers.pop(0) if self.answers else SENT
        if answer is SENT:
            self.frames.append(frame)
        return answer


class Side:
    """A link that is up, its sender and its socket."""

    def __init__(self) -> None:
        self.home = Home()
        self.core = LinkCore(LIMITS)
        self.told: list[str] = []
        self.sender = Sender(
            self.core, self.home, lambda: self.told.append("blocked"), lambda: self.told.append("gone")
        )
        self.taker = self.sender.carrier = Taker()
        self.core.begin_hello(hello(), 0.0)
        self.core.receive(encode_frame([welcome()]), 0.0)

    def cast(self, number: int = 1) -> None:
        for _ in range(number):
            self.core.cast(A_CAST)
            self.sender.flush_soon()


def test_what_is_queued_in_one_turn_of_the_hub_leaves_in_one_frame() -> None:
    side = Side()
    side.cast(3)
    assert side.taker.frames == []
    gevent.sleep(0)
    assert [len(decode_frame(frame, LIMITS)) for frame in side.taker.frames] == [3]


def test_what_is_alone_leaves_at_once() -> None:
    side = Side()
    side.core.cast(A_CAST)
    side.sender.flush_soon(alone=True)
    assert len(side.taker.frames) == 1


def test_a_full_batch_leaves_before_the_turn_ends() -> None:
    side = Side()
    side.cast(LIMITS.batch_envelopes + 1)
    assert [len(decode_frame(frame, LIMITS)) for frame in side.taker.frames] == [LIMITS.batch_envelopes]


def test_all_that_waits_behind_a_frame_that_was_held_leaves_with_it() -> None:
    side = Side()
    side.cast()
    side.taker.answers = [BLOCKED]
    gevent.sleep(0)
    assert (side.told, side.taker.frames) == (["blocked"], [])
    assert side.sender.held_since > 0
    side.cast(LIMITS.batch_envelopes * 2)
    side.sender.flush()
    assert [len(decode_frame(frame, LIMITS)) for frame in side.taker.frames] == [1, 64, 64]
    assert side.core.outgoing.queued == 0
    assert side.sender.held_since == 0


def test_a_peer_that_is_gone_is_told_once() -> None:
    side = Side()
    side.cast(2)
    side.taker.answers = [GONE]
    gevent.sleep(0)
    assert side.told == ["gone"]


def test_control_beside_work_leaves_in_the_same_flush() -> None:
    side = Side()
    side.core.outgoing.add_control(Bye("enough"))
    side.cast(2)
    gevent.sleep(0)
    assert sum(len(decode_frame(frame, LIMITS)) for frame in side.taker.frames) == 3


def test_a_turn_does_what_was_asked_for_in_order_and_what_that_asks_for() -> None:
    turn = Turn()
    done: list[str] = []
    turn.begin()
    turn.soon(lambda: (done.append("first"), turn.soon(done.append, "third")))
    turn.soon(done.append, "second")
    assert done == []
    turn.end()
    assert done == ["first", "second", "third"]
    assert not turn.open


def test_a_failing_step_ends_neither_the_turn_nor_the_others() -> None:
    turn = Turn()
    done: list[str] = []
    turn.begin()
    turn.soon(lambda: 1 // 0)
    turn.soon(done.append, "second")
    turn.end()
    assert done == ["second"]


def test_a_turn_without_end_lets_the_loop_go_on() -> None:
    turn = Turn()
    steps = 0

    def again() -> None:
        nonlocal steps
        steps += 1
        if steps < STEPS_PER_TURN_MAX * 2:
            turn.soon(again)

    turn.begin()
    turn.soon(again)
    turn.end()
    assert steps == STEPS_PER_TURN_MAX
    gevent.sleep(0.01)
    assert steps == STEPS_PER_TURN_MAX * 2


def test_the_kernel_holds_no_more_of_a_connection_than_control_can_wait_for(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    sockets = [server._listeners[0]._socket, client._diallers[link]._socket]
    assert {socket.getsockopt(zmq.SNDBUF) for socket in sockets} == {Limits().held_bytes_max}
