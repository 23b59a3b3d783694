"""One dialled address: a DEALER, its monitor and its link."""

import logging
import random
import time

import gevent
import zmq

from zcompute.bus.connections import answers, cut, far_end, silent_s
from zcompute.bus.envelope import Hello
from zcompute.bus.errors import BusError, Forbidden, Unavailable
from zcompute.bus.home import Home
from zcompute.bus.identity import Peer, check_against_key
from zcompute.bus.link import Link
from zcompute.bus.liveness import Pulse, Verdict
from zcompute.bus.protocol import LinkCore, State
from zcompute.bus.sockets import (
    BLOCKED,
    GONE,
    MONITORED,
    NOBLOCK,
    SENT,
    SocketWatch,
    open_dealer,
    read_monitor,
    sender_of,
)

log = logging.getLogger(__name__)

NEVER = float("inf")
HANDSHAKE_FAILURES: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "our key is not accepted",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "the other side is no CURVE server of this key",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the handshake was cut off",
}


class Dialler:
    """Keeps one link connected for ever: connect, hello, and hello again with back-off after every loss."""

    def __init__(self, endpoint: Home, address: str, server_public_key: str) -> None:
        self._endpoint = endpoint
        self._limits = endpoint.limits
        self._address = address
        self._reopen_due = NEVER
        self._server_public_key = server_public_key
        core = LinkCore(
            endpoint.limits,
            endpoint.counters,
            verify=self._verify,
            interfaces=lambda: endpoint.serving.ranges,
            streams=endpoint.streams,
            priority_of=endpoint.serving.priority_of,
        )
        self.link = Link(endpoint, core, address, address)
        self.link.carrier = self
        self.refusal: Exception | None = None
        self._connected = False
        self._closed = False
        self._attempts = 0
        self._hello_due = NEVER
        self._up_at = 0.0
        self._sent_at = 0.0
        self._sent = False  # since the last tick, which notes the time
        self._pulse = Pulse(self._limits)
        self._connection = (-1, "")  # its descriptor, and the other end's address
        self._open()

    def _open(self) -> None:
        endpoint = self._endpoint
        self._socket = open_dealer(endpoint.context, endpoint.identity, endpoint.limits, self._server_public_key)
        self._send = sender_of(self._socket)
        monitor = self._socket.get_monitor_socket(MONITORED)
        self._monitor: zmq.Socket[bytes] = monitor
        self.monitor_watch = SocketWatch(self._monitor, self._read_monitor)
        self.watch = SocketWatch(self._socket, self._read)
        self._socket.connect(self._address)

    def reconnect(self, reason: str) -> None:
        """Connect anew, with the keys that the endpoint has now; the link goes down and comes back."""
        self.link.say_bye(reason)
        self._close_sockets(self._limits.tick_ms)
        self._connected = False
        self._attempts = 0
        self._hello_due = self._reopen_due = NEVER
        if self.link.core.state is State.HELLO_SENT:
            self.link.core.state = State.DOWN
        self.link.lose(reason)
        self._open()

    def close(self, linger_ms: int) -> None:
        """Stop dialling. The link must have been closed."""
        self._closed = True
        self._close_sockets(linger_ms)

    def _close_sockets(self, linger_ms: int) -> None:
        self.monitor_watch.close()
        self.watch.close()
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)

    def _verify(self, peer: Peer) -> None:
        """A listener whose key the keyring knows must be what its entry says."""
        keyring = self._endpoint.keyring
        if keyring is None:
            return
        if keyring.is_revoked(self._server_public_key):
            raise Forbidden(f"the key of {peer.service_id} is revoked")
        entry = keyring.by_public_key(self._server_public_key)
        if entry is not None:
            check_against_key(peer, entry)

    def drop_revoked_key(self) -> None:
        """The keyring changed: a listener whose key is revoked, or means something else now, is left."""
        peer = self.link.peer
        if not self.link.up or peer is None:
            return
        try:
            self._verify(peer)
        except Forbidden as error:
            self._endpoint.refusals.count("revoked", self.link.name, str(error))
            self.link.say_bye("key revoked")
            self.link.lose("key revoked")

    # Carrier

    def send(self, frame: bytes) -> str:
        """Send one frame without waiting."""
        if self._closed:
            return GONE
        try:
            self._send(frame, NOBLOCK)
        except zmq.Again:
            self.watch.poke()
            return BLOCKED
        except zmq.ZMQError as error:
            log.warning("send failed address=%s error=%s", self.link.address, error)
            return GONE
        self._sent = True
        self.watch.poke()
        return SENT

    def on_hello(self, hello: Hello) -> None:
        """Listeners do not say hello."""
        self._endpoint.refusals.count("hello_from_listener", self.link.name)

    def on_lost(self, link: Link, reason: str) -> None:
        """Say hello again, at once after a long life and with back-off otherwise."""
        now = time.monotonic()
        if now - self._up_at > self._limits.hello_backoff_ms_max / 1000:
            self._attempts = 0
        self._plan_hello(now)

    def on_refused(self, error: Exception) -> None:
        """Remember why, and try again later."""
        if self.refusal is None or str(self.refusal) != str(error):
            starting = isinstance(error, Unavailable)  # it will let us in: no news for an operator
            level = logging.INFO if starting else logging.WARNING
            log.log(level, "hello refused address=%s error=%s", self.link.address, error)
        self.refusal = error
        self._endpoint.counters["hellos_refused"] += 1
        self._attempts = max(self._attempts, 1)
        self._plan_hello(time.monotonic())
        self.link.fail_calls(f"hello refused: {error}")

    def on_offence(self, reason: str) -> None:
        """It is counted; a listener that we depend on is not left for it."""

    def reset(self, reason: str) -> None:
        """Begin anew."""
        self.link.lose(reason)

    # Hello

    def _plan_hello(self, now: float) -> None:
        if not self._connected or self._closed:
            self._hello_due = NEVER
            return
        limits = self._limits
        delay_ms = 0.0
        if self._attempts:
            ceiling = min(limits.hello_backoff_ms_max, limits.hello_backoff_ms_min * 2 ** min(self._attempts, 16))
            delay_ms = random.uniform(ceiling / 2, ceiling)
        self._hello_due = now + delay_ms / 1000
        self._attempts += 1
        if not delay_ms:
            self.tick(now)

    def tick(self, now: float) -> None:
        """Say a hello that is due, give up one that is not answered, watch a link's pulse, try a refused key again."""
        core = self.link.core
        if self._sent:
            self._sent = False
            self._sent_at = now
        if now >= self._reopen_due:
            self._reopen(now)
        if core.state is State.HELLO_SENT and now - core.hello_at > self._limits.hello_timeout_ms / 1000:
            self._endpoint.counters["hellos_timed_out"] += 1
            core.state = State.DOWN
            if (silent_s(self._connection[0]) or 0.0) > self._limits.hello_timeout_ms / 1000:
                self._leave_silent()
            self._plan_hello(now)
        if core.state is State.DOWN and now >= self._hello_due:
            self._hello_due = NEVER
            if not self._endpoint.admit_pool.submit(None, self._say_hello):
                self._hello_due = now + self._limits.hello_backoff_ms_max / 1000
        elif core.state is State.UP and self._pulse.due(now):
            self._feel_pulse(now)

    def _feel_pulse(self, now: float) -> None:
        """Ask a listener that was not heard or told anything for a while; leave one that does not answer."""
        verdict = self._pulse.look(now, self._sent_at, silent_s(self._connection[0]) or 0.0)
        if verdict is Verdict.ASK:
            self._sent_at = now
            self.link.core.probe()
            self.link.flush_soon()
        elif verdict is Verdict.KNOCK:
            gevent.spawn(self._knock, self._connection)
        elif verdict is Verdict.SILENT:
            self._leave_silent()

    def _knock(self, connection: tuple[int, str]) -> None:
        wait_ms = self._limits.silence_ms_max - self._limits.heartbeat_interval_ms - self._limits.late_answer_ms
        if answers(self._address, wait_ms / 1000) and connection == self._connection:
            self._pulse.vouch(time.monotonic())

    def _leave_silent(self) -> None:
        """The listener says nothing: end the connection, so that libzmq makes another."""
        self._endpoint.counters["peers_silent"] += 1
        log.warning("peer silent peer=%s address=%s", self.link.name, self._address)
        self._connected = False
        self.link.lose("silent")
        cut(*self._connection)

    def _reopen(self, now: float) -> None:
        try:
            self.reconnect("trying the key again")
        except zmq.ZMQError as error:  # no file descriptor is left, say: others of this endpoint go on
            log.warning("opening a socket failed address=%s error=%s", self.link.address, error)
            self._plan_reopen(now)

    def _plan_reopen(self, now: float) -> None:
        self._reopen_due = now + self._limits.hello_backoff_ms_max * random.uniform(0.5, 1.0) / 1000

    def _say_hello(self) -> None:
        """In a worker: the attributes may take a while."""
        try:
            hello = self._endpoint.greet(Hello)
        except Exception:
            log.exception("attributes for the hello failed address=%s", self.link.address)
            self._plan_hello(time.monotonic())
            return
        now = time.monotonic()
        if self._closed or not self._connected or self.link.core.state is not State.DOWN:
            return
        self._endpoint.counters["hellos"] += 1
        if not self.link.sender.send_first(self.link.core.begin_hello(hello, now)):
            self.link.core.state = State.DOWN
            self._plan_hello(now)

    # Sockets

    def _read(self) -> bool:
        return self._endpoint.serving.behind or self._read_some()

    def _read_some(self) -> bool:
        link, socket, watch, turn = self.link, self._socket, self.watch, self._endpoint.turn
        for _ in range(self._limits.frames_per_turn):
            if self._closed:
                return False
            if not watch.readable():
                self._endpoint.retry_blocked(link)
                return False
            message = socket.recv(NOBLOCK, False)
            if message.more:
                while socket.getsockopt(zmq.RCVMORE):
                    socket.recv(NOBLOCK)
                self._endpoint.refusals.count("multipart", link.name)
                continue
            was_up = link.up
            turn.begin()
            try:
                link.receive(message.bytes)
            finally:
                turn.end()
            if not was_up and link.up:
                self._up_at = time.monotonic()
                self.refusal = None
        return True

    def _read_monitor(self) -> bool:
        for event, value in read_monitor(self._monitor):
            if event == zmq.EVENT_CONNECTED:
                self._connection = (value, far_end(value))
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
                self._pulse.begin()
                self._reopen_due = NEVER
                self._plan_hello(time.monotonic())
            elif event == zmq.EVENT_DISCONNECTED:
                self._drain()
                self._connected = False
                self._attempts = 0
                if self.link.core.state is State.HELLO_SENT:
                    self.link.core.state = State.DOWN
                self.link.lose("disconnected")
            elif event == zmq.EVENT_CLOSED:
                self.link.fail_calls("the connection is refused")
            elif event in HANDSHAKE_FAILURES:
                self._note_failure(Unavailable(f"handshake failed: {HANDSHAKE_FAILURES[event]}"))
                # libzmq gives an address up for good when the handshake was refused, and goes on when it was cut off:
                # a second attempt beside its own would cut off the next one too, on a busy machine without end.
                if event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._reopen_due == NEVER:
                    self._plan_reopen(time.monotonic())
            if self._closed:
                return False
        return False

    def _drain(self) -> None:
        """Take what arrived before the connection ended: replies among it are valid."""
        while not self._closed and self._read_some():
            continue

    def _note_failure(self, error: BusError) -> None:
        if self.refusal is None or str(self.refusal) != str(error):
            log.warning("handshake failed address=%s error=%s", self.link.address, error)
        self.refusal = error
        self._endpoint.counters["handshakes_failed"] += 1
