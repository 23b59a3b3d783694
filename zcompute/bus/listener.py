"""One bound address: a ROUTER, its routes, and what is read from them.

A route (the routing id that libzmq gives a connection) means nothing before its hello. The hello binds it to (CURVE
User-Id, service id, incarnation, link number). Frames of other routes are answered with hello_required and dropped.
"""

import errno
import logging
import time
from collections import deque

import zmq

from zcompute.bus.admission import Admission
from zcompute.bus.conduct import OFFENCES, STRANGER_WEIGHT
from zcompute.bus.connections import cut, far_end
from zcompute.bus.envelope import Hello, HelloRequired, encode_frame
from zcompute.bus.errors import BusError, Busy, Forbidden
from zcompute.bus.home import Home
from zcompute.bus.identity import Identity, check_against_key
from zcompute.bus.link import Link
from zcompute.bus.liveness import KERNEL_CLOCK_S, Sweep
from zcompute.bus.pace import ReadPace
from zcompute.bus.route import Route
from zcompute.bus.sockets import (
    BLOCKED,
    GONE,
    NOBLOCK,
    SENT,
    SNDMORE,
    SocketWatch,
    bind_socket,
    open_router,
    read_monitor,
    sender_of,
)
from zcompute.bus.zap import KEY_PROPERTY

log = logging.getLogger(__name__)

SNDMORE_NOBLOCK = SNDMORE | NOBLOCK


class Listener:
    """A bound ROUTER."""

    def __init__(self, endpoint: Home, address: str, identity: Identity) -> None:
        self.endpoint = endpoint
        self._limits = endpoint.limits
        self._routes: dict[bytes, Route] = {}
        self._by_descriptor: dict[int, Route] = {}
        self.closed = False
        self._admission = Admission(endpoint, self)
        silence_s_max = self._limits.silence_ms_max / 1000
        self._sweep: Sweep[Route] = Sweep(self._limits, lambda route: route.silent_s(silence_s_max))
        self._forsaken: deque[tuple[float, Route]] = deque()  # given up as silent; when their connections are looked at
        self._pace = ReadPace(self._limits)
        self._socket = open_router(endpoint.context, identity, endpoint.limits)
        self._send = sender_of(self._socket)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            self.address = bind_socket(self._socket, address)
        except BusError:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(0)
            raise
        self.monitor_watch = SocketWatch(self._monitor, self._read_monitor)
        self.watch = SocketWatch(self._socket, self._read)

    def dismiss(self, reason: str) -> None:
        """Say bye on every link here; the sessions are kept for their peers' next hellos."""
        for route in list(self._routes.values()):
            route.hello = None
            link = route.link
            if link is not None:
                link.say_bye(reason)
                link.lose(reason)

    def close(self, linger_ms: int) -> None:
        """Stop listening. The links must have been closed."""
        self.closed = True
        self.monitor_watch.close()
        self.watch.close()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)

    def send(self, route_id: bytes, frame: bytes) -> str:
        """Send one frame to a route: SENT, BLOCKED at its high-water mark, GONE when there is no such connection."""
        if self.closed:
            return GONE
        try:
            self._send(route_id, SNDMORE_NOBLOCK)
            self._send(frame, NOBLOCK)
        except zmq.Again:
            return BLOCKED
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                log.warning("send failed address=%s error=%s", self.address, error)
            return GONE
        finally:
            self.watch.poke()
        return SENT

    def drop(self, route: Route, link: Link | None) -> None:
        """Forget a route, and start the clock of its link's session."""
        route.link = None
        if route.hello is None:
            self._sweep.leave(route)
            if self._routes.get(route.route_id) is route:
                del self._routes[route.route_id]
            if self._by_descriptor.get(route.descriptor) is route:
                del self._by_descriptor[route.descriptor]
        if link is not None:
            if link.carrier is route:
                link.carrier = None
            self.endpoint.sessions.note_lost(link, time.monotonic())

    def admit(self, route: Route, hello: Hello) -> None:
        """Answer a hello on a route."""
        self._admission.admit(route, hello)

    # Time

    def tick(self, now: float) -> None:
        """Give up the connections that have gone silent, and choose how the socket is read."""
        for route in self._sweep.sweep(now):
            self._give_up(route, now)
        while self._forsaken and self._forsaken[0][0] <= now:
            self._leave(self._forsaken.popleft()[1])
        if not self.closed:
            self.watch.pace(self._limits.paced_read_ms / 1000 if self._pace.tick() else None)

    def _give_up(self, route: Route, now: float) -> None:
        """Take the link down, and keep the connection for a while: most who fall silent are late, not gone.

        They need no more than a hello then. Thousands that connected anew would hold up the very machine whose load had
        made them late.
        """
        link = route.link
        name = link.name if link is not None else route.address
        self.endpoint.counters["peers_silent"] += 1
        log.warning("peer silent peer=%s address=%s ms=%d", name, route.address, self._limits.silence_ms_max)
        route.hello = None
        if link is not None:
            link.lose("silent")
        self.drop(route, None)
        self.send(route.route_id, encode_frame([HelloRequired("silent")]))
        limits = self._limits
        self._forsaken.append((now + (limits.forsaken_ms_max - limits.silence_ms_max) / 1000, route))

    def _leave(self, route: Route) -> None:
        silence_s_max = self._limits.forsaken_ms_max / 1000 - KERNEL_CLOCK_S
        if (route.silent_s(silence_s_max) or 0.0) >= silence_s_max:
            route.cut()

    # Conduct

    def on_offence(self, route: Route, reason: str) -> None:
        """A refusal of what this route sent: one too many bars its key."""
        if reason in OFFENCES and self.endpoint.conduct.offend(route.key_name, time.monotonic()):
            self.endpoint.turn.soon(self._bar, route)

    def _bar(self, route: Route) -> None:
        link = route.link
        name = link.name if link is not None else route.address
        self._note_barred(route.key_name, name)
        route.hello = None
        if link is not None:
            link.say_bye("too many frames that cannot be taken")
            link.lose("barred")
        self.drop(route, None)
        route.cut()

    def _note_barred(self, key_name: str, name: str) -> None:
        self.endpoint.counters["peers_barred"] += 1
        log.warning("peer barred key=%s peer=%s ms=%d", key_name, name, self._limits.bar_ms)

    def _takes_stranger(self, route_id: bytes, key_name: str, message: zmq.Frame) -> bool:
        """Whether a frame on an unknown route is looked at: those of barred keys are not, and end the connection."""
        now = time.monotonic()
        conduct = self.endpoint.conduct
        if conduct.offend(key_name, now, STRANGER_WEIGHT):
            self._note_barred(key_name, str(message.get("Peer-Address")))
        if not conduct.barred(key_name, now):
            return True
        self.endpoint.refusals.count("barred", key_name)
        if not self._admission.tell_barred(route_id):
            self._read_monitor()
            descriptor = int(message.get(zmq.SRCFD))
            if descriptor not in self._by_descriptor:  # else it is another's by now
                cut(descriptor, far_end(descriptor))
        return False

    # Reading

    def _read(self) -> bool:
        if self.endpoint.serving.behind:
            return True
        if not self._pace.paced:
            return self._read_some(False)
        self.endpoint.turn.begin()  # what came together is answered together
        try:
            return self._read_some(True)
        finally:
            self.endpoint.turn.end()

    def _read_some(self, gathered: bool) -> bool:
        """`gathered`: several frames wait, most likely. Then one exception at their end costs less than a look before
        each of them."""
        socket, watch, turn = self._socket, self.watch, self.endpoint.turn
        routes, hear = self._routes, self._pace.hear
        for _ in range(self._limits.frames_per_turn):
            if self.closed:
                return False
            if gathered:
                try:
                    route_id = socket.recv(NOBLOCK)
                except zmq.Again:
                    watch.looked()
                    self.endpoint.retry_all_blocked()
                    return False
            elif watch.readable():
                route_id = socket.recv(NOBLOCK)
            else:
                self.endpoint.retry_all_blocked()
                return False
            message = socket.recv(NOBLOCK, False)
            route = routes.get(route_id)
            if message.more:
                self._drop_parts(route.address if route is not None else str(message.get("Peer-Address")))
                if route is not None:
                    self.on_offence(route, "multipart")
            elif route is None:
                self._receive_stranger(route_id, message)
            elif route.link is None:
                self._receive_early(route, message.bytes)
            elif turn.open:
                hear(route_id)
                route.link.receive(message.bytes)
                if self.endpoint.serving.behind:  # nothing of what came is begun before the turn ends
                    return True
            else:
                hear(route_id)
                turn.begin()
                try:
                    route.link.receive(message.bytes)
                finally:
                    turn.end()
        return True

    def _drop_parts(self, address: str) -> None:
        while self._socket.getsockopt(zmq.RCVMORE):
            self._socket.recv(zmq.NOBLOCK)
        self.endpoint.refusals.count("multipart", address)

    def _receive_early(self, route: Route, frame: bytes) -> None:
        """A frame of a route whose hello is being admitted: only another hello means anything."""
        hello = self._admission.read_hello(frame, route.address, route.route_id)
        self.on_offence(route, "before_welcome" if hello is None else "hello_again")
        if hello is not None:
            self.admit(route, hello)

    def _receive_stranger(self, route_id: bytes, message: zmq.Frame) -> None:
        address = str(message.get("Peer-Address"))
        keyring = self.endpoint.keyring
        key = ("", "")
        if keyring is not None:
            key = (str(message.get("User-Id")), str(message.get(KEY_PROPERTY)))
            if keyring.holds(*key) is None:
                self._admission.drop_revoked(route_id, address, key[0])
                return
        if not self._takes_stranger(route_id, key[0], message):
            return
        hello = self._admission.read_hello(message.bytes, address, route_id)
        if hello is None:
            return
        if len(self._routes) >= self._limits.routes_max:
            self.endpoint.refusals.count("routes_full", address)
            self._admission.send_error(
                route_id, Busy("too many links here", retry_after_ms=self._limits.hello_backoff_ms_max)
            )
            return
        # A descriptor may be a new connection's while the old one's end still waits on the monitor: read that first.
        self._read_monitor()
        descriptor = int(message.get(zmq.SRCFD))
        route = Route(self, route_id, key, descriptor, address)
        self._routes[route_id] = route
        self._by_descriptor[descriptor] = route
        self._sweep.watch(route, time.monotonic())
        self.admit(route, hello)

    def _read_monitor(self) -> bool:
        for _, descriptor in read_monitor(self._monitor):
            route = self._by_descriptor.pop(descriptor, None)
            if route is None:
                continue
            route.hello = None
            self._sweep.leave(route)
            self._routes.pop(route.route_id, None)
            # Were the descriptor another connection's by now, this makes its peer say hello again.
            self.send(route.route_id, encode_frame([HelloRequired("disconnected")]))
            if route.link is not None:
                route.link.lose("disconnected")
        return False

    # Admission

    def drop_unknown_keys(self) -> None:
        """The keyring changed: end the routes whose key is gone or means something else now."""
        keyring = self.endpoint.keyring
        if keyring is None:
            return
        for route in list(self._routes.values()):
            peer = route.link.peer if route.link is not None else None
            entry = keyring.holds(route.key_name, route.public_key)
            try:
                if entry is None:
                    raise Forbidden("key revoked")
                if peer is not None:
                    check_against_key(peer, entry)
            except Forbidden as error:
                self.endpoint.refusals.count("revoked", route.address, str(error))
                route.hello = None
                if route.link is not None:
                    route.link.say_bye("key revoked")
                    if route.link is not None:
                        route.link.lose("key revoked")
                self.drop(route, None)
