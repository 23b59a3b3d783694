"""A real dialler, and a listener that answers it with nonsense: a stolen server key, or a conductor gone mad.

The listener welcomes the dialler properly, sends mutated frames with real ones between, and begins anew with a welcome
of its next incarnation after a while. The dialler's application calls, casts, reports and follows all the time. Each
call ends by its deadline, nothing is logged as an error, memory stays bounded, and at the end a proper listener at the
same address is spoken with.
"""

import logging
import random
import time
from collections import Counter

import gevent
import zmq

from tests.fuzz.bus import seeds, wire
from tests.fuzz.bus.decoder import FindingError
from tests.fuzz.bus.mutate import Mutator
from zcompute.bus import BusError, Endpoint, Identity, Limits, Link, Report
from zcompute.bus.envelope import Bye, Hello, Welcome, decode_frame, encode_frame

FRAMES_OF_A_LIFE = 300
FRAMES_OF_A_TURN = 10
PROPER_FRAME_SHARE = 0.1
CALL_MS = 300
CALL_SLACK_S = 2.0
CALLERS = 4
END_S = 20.0
UP_S_MAX = 10.0
HEARD_S_MAX = 0.05
LIMITS = Limits(silence_ms_max=60_000, hello_backoff_ms_min=1, hello_backoff_ms_max=5)


SERVED = {"echo": ((1, 0), (1, 0))}


class Failures(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record)[:4_000])


class HostileListener:
    """A ROUTER that welcomes who says hello, and then talks nonsense."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._real = seeds.frames()
        self._mutator = Mutator(seed, self._real)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self.port = self._router.bind_to_random_port("tcp://127.0.0.1", 20000, 25999)
        self.lives = 0
        self.sent = 0
        self._route = b""

    def hear(self) -> None:
        """Read what came; a hello is welcomed by another incarnation than the last."""
        while self._router.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            self._route, frame = self._router.recv_multipart(zmq.NOBLOCK)
            hello = decode_frame(frame, LIMITS)[0]
            if isinstance(hello, Hello):
                self.lives += 1
                told = {name: getattr(hello, name) for name in Hello.__struct_fields__}
                told |= {
                    "role": "conductor",
                    "service_id": "conductor-1",
                    "incarnation": f"l{self.lives // 2}",
                    "interfaces": SERVED,
                }
                self._send(encode_frame([Welcome(**told)]))

    def talk(self) -> int:
        """Some frames; returns how many were mutated."""
        if not self._route:
            return 0
        for _ in range(FRAMES_OF_A_TURN):
            proper = self._chance.random() < PROPER_FRAME_SHARE
            self._send(self._chance.choice(self._real) if proper else self._mutator.frame())
            self.sent += 1
        if self.sent % FRAMES_OF_A_LIFE == 0:
            self._send(encode_frame([Bye("another life")]))
            self._route = b""
        return FRAMES_OF_A_TURN

    def _send(self, frame: bytes) -> None:
        try:
            self._router.send_multipart([self._route, frame], zmq.NOBLOCK)
        except zmq.Again:
            gevent.sleep(0)

    def close(self) -> None:
        self._router.close(0)
        self._context.term()


def use(link: Link, outcomes: Counter[str]) -> None:
    """An application that goes on whatever it is told."""
    number = 0
    while True:
        number += 1
        before = time.monotonic()
        try:
            link.cast(wire.NOTE, wire.Ask("x"))
            link.report([Report("k", number, b"x")])
            link.follow("t", "k", number % 10)
            link.call(wire.SAY, wire.Ask("x"), timeout_ms=CALL_MS)
            outcomes["answered"] += 1
        except BusError as error:
            outcomes[f"told_{type(error).__name__}"] += 1
        except Exception as error:
            raise FindingError(f"a call raised {error!r}") from error
        if time.monotonic() - before > CALL_MS / 1000 + CALL_SLACK_S:
            raise FindingError(f"a call took {time.monotonic() - before:.1f} s, its deadline was {CALL_MS} ms")
        gevent.sleep(0.002)


def run(mutations: int, seed: int) -> Counter[str]:
    """What the dialler refused and counted. Raises FindingError."""
    failures = Failures()
    logging.getLogger().addHandler(failures)
    outcomes: Counter[str] = Counter()
    listener = HostileListener(seed)
    dialler = Endpoint(Identity("compute", wire.CELL, "compute-1", "1.0"), limits=LIMITS)
    for topic in ("t", "map"):
        dialler.on_stream(topic, lambda link, news: outcomes.update(taken_news=1))
        dialler.on_event(topic, lambda link, event: outcomes.update(taken_event=1))
    dialler.on_acks(lambda link, acks: outcomes.update(taken_acks=1))
    link = dialler.dial(f"tcp://127.0.0.1:{listener.port}")
    users = [gevent.spawn(use, link, outcomes) for _ in range(CALLERS)]
    try:
        done, up_at = 0, time.monotonic()
        while done < mutations:
            listener.hear()
            if link.up:
                heard = dialler.counters["frames_received"]
                done += listener.talk()
                _wait_heard(dialler, heard + FRAMES_OF_A_TURN)
            elif time.monotonic() - up_at > UP_S_MAX:
                raise FindingError(f"the link is not up again after {UP_S_MAX} s: {link} {dialler.down_reason(link)}")
            up_at = time.monotonic() if link.up else up_at
            gevent.sleep(0)
            _check(users, failures)
        gevent.killall(users)
        _end(listener.port, listener, link)
    finally:
        gevent.killall(users)
        dialler.close(linger_ms=0)
        listener.close()
        logging.getLogger().removeHandler(failures)
    outcomes.update({name: count for name, count in dialler.counters.items() if name.startswith("refused_")})
    outcomes["lives"] = listener.lives
    outcomes["mutations"] = done
    return outcomes


def _wait_heard(dialler: Endpoint, frames: int) -> None:
    """Until so many have come in all, for a moment: most is to be heard on a link that is up."""
    ends = time.monotonic() + HEARD_S_MAX
    while dialler.counters["frames_received"] < frames and time.monotonic() < ends:
        gevent.sleep(0)


def _check(users: list[gevent.Greenlet], failures: Failures) -> None:
    for user in users:
        if user.dead:
            user.get()
    if failures.texts:
        raise FindingError(f"logged as an error: {failures.texts[0]}")


def _end(port: int, listener: HostileListener, link: Link) -> None:
    """A proper listener in the place of the hostile one is found."""
    listener.close()
    proper = Endpoint(Identity("conductor", wire.CELL, "conductor-1", "1.0"))
    proper.serve(wire.SAY, lambda ask, context: ask)
    try:
        proper.bind(f"tcp://127.0.0.1:{port}")
        ends = time.monotonic() + END_S
        while time.monotonic() < ends:
            try:
                link.call(wire.SAY, wire.Ask("x"), timeout_ms=CALL_MS)
                return
            except BusError:
                gevent.sleep(0.05)
        raise FindingError("a proper listener at the same address is not spoken with")
    finally:
        proper.close(linger_ms=0)
