"""One bound address: a ROUTER, its routes, and who is let in.

A route (the routing id that libzmq gives a connection) means nothing before its hello. The hello binds it to (CURVE
User-Id, service id, incarnation, link number). Frames of other routes are answered with hello_required and dropped.
"""

import errno
import logging
import time

import zmq

from zcompute.bus.envelope import (
    PROTOCOL_MAJOR,
    PROTOCOL_MINOR,
    Bye,
    Envelope,
    Error,
    Hello,
    HelloRequired,
    Welcome,
    decode_frame,
    encode_frame,
    foreign_protocol,
)
from zcompute.bus.errors import (
    BusError,
    Busy,
    Forbidden,
    FrameRefused,
    Unavailable,
    UnsupportedVersion,
    is_registered,
    to_wire,
)
from zcompute.bus.home import Home
from zcompute.bus.identity import Identity, Peer, check_against_key
from zcompute.bus.link import Link
from zcompute.bus.protocol import LinkCore, peer_of
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

NOTICES_KEPT_MAX = 10_000
SNDMORE_NOBLOCK = SNDMORE | NOBLOCK


class Route:
    """A connection of a ROUTER that said hello; carries one link once it is admitted."""

    def __init__(
        self, listener: "Listener", route_id: bytes, key: tuple[str, str], descriptor: int, address: str
    ) -> None:
        self.route_id = route_id
        self.key_name, self.public_key = key
        self.descriptor = descriptor
        self.address = address
        self.hello: Hello | None = None  # under admission
        self.link: Link | None = None
        self._listener = listener

    def send(self, frame: bytes) -> str:
        """Send one frame to this route without waiting."""
        return self._listener.send(self.route_id, frame)

    def on_hello(self, hello: Hello) -> None:
        """A new hello over the same connection."""
        link = self.link
        self.link = None
        self.hello = hello  # keeps the route while its link is taken down
        if link is not None:
            link.lose("peer says hello again")
        self._listener.admit(self, hello)

    def on_lost(self, link: Link, reason: str) -> None:
        """The link went down: the route is forgotten, the session kept for a while."""
        self._listener.drop(self, link)

    def on_refused(self, error: Exception) -> None:
        """Listeners send no hello that could be refused."""
        self._listener.endpoint.refusals.count("unasked_error", self.address, str(error))

    def reset(self, reason: str) -> None:
        """Forget the route and ask for a hello."""
        if self.link is not None:
            self.link.lose(reason)
        self.send(encode_frame([HelloRequired(reason[:255])]))


class Listener:
    """A bound ROUTER."""

    def __init__(self, endpoint: Home, address: str, identity: Identity) -> None:
        self.endpoint = endpoint
        self._limits = endpoint.limits
        self._routes: dict[bytes, Route] = {}
        self._by_descriptor: dict[int, Route] = {}
        self._notices: dict[bytes, float] = {}
        self._closed = False
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
        self._closed = True
        self.monitor_watch.close()
        self.watch.close()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)

    def send(self, route_id: bytes, frame: bytes) -> str:
        """Send one frame to a route: SENT, BLOCKED at its high-water mark, GONE when there is no such connection."""
        if self._closed:
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
        if self._routes.get(route.route_id) is route and route.hello is None:
            del self._routes[route.route_id]
        if self._by_descriptor.get(route.descriptor) is route and route.hello is None:
            del self._by_descriptor[route.descriptor]
        if link is not None:
            if link.carrier is route:
                link.carrier = None
            self.endpoint.sessions.note_lost(link, time.monotonic())

    # Reading

    def _read(self) -> bool:
        socket, watch, turn = self._socket, self.watch, self.endpoint.turn
        if self.endpoint.serving.behind:
            return True
        routes = self._routes
        for _ in range(self._limits.frames_per_turn):
            if self._closed:
                return False
            if not watch.readable():
                self.endpoint.retry_all_blocked()
                return False
            route_id = socket.recv(NOBLOCK)
            message = socket.recv(NOBLOCK, False)
            route = routes.get(route_id)
            if message.more:
                self._drop_parts(route.address if route is not None else str(message.get("Peer-Address")))
            elif route is None:
                self._receive_stranger(route_id, message)
            elif route.link is None:
                self._receive_early(route, message.bytes)
            else:
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

    def _read_hello(self, frame: bytes, address: str, route_id: bytes) -> Hello | None:
        """The hello that a frame begins with; what else it may be is refused."""
        refusals = self.endpoint.refusals
        try:
            if len(frame) > self._limits.hello_bytes_max:
                raise FrameRefused(f"{len(frame)} bytes before a hello", reason="size")
            first = decode_frame(frame, self._limits)[0]
        except FrameRefused as error:
            foreign = foreign_protocol(frame) if len(frame) <= self._limits.hello_bytes_max else None
            if foreign is not None:
                self._refuse_protocol(route_id, foreign, address)
            else:
                refusals.count(str(error.details.get("reason", "malformed")), address, str(error))
            return None
        if isinstance(first, Hello):
            if first.protocol_major != PROTOCOL_MAJOR:
                self._refuse_protocol(route_id, (first.protocol_major, first.protocol_minor), address)
                return None
            return first
        if not isinstance(first, Bye | Error):
            refusals.count("no_hello", address, type(first).__name__)
            self._require_hello(route_id)
        return None

    def _refuse_protocol(self, route_id: bytes, theirs: tuple[int, int], address: str) -> None:
        self.endpoint.refusals.count("protocol_version", address, f"{theirs[0]}.{theirs[1]}")
        error = UnsupportedVersion(
            f"protocol: caller speaks {theirs[0]}.{theirs[1]}, server speaks {PROTOCOL_MAJOR}.0-{PROTOCOL_MAJOR}."
            f"{PROTOCOL_MINOR}",
            interface="protocol",
            wanted=list(theirs),
            server=[[PROTOCOL_MAJOR, 0], [PROTOCOL_MAJOR, PROTOCOL_MINOR]],
        )
        self._send_error(route_id, error)

    def _may_notice(self, route_id: bytes) -> bool:
        """Whether a stranger is answered: at most once per route in `refusal_notice_ms`."""
        now = time.monotonic()
        if now < self._notices.get(route_id, 0.0):
            return False
        if len(self._notices) >= NOTICES_KEPT_MAX:
            self._notices.clear()
        self._notices[route_id] = now + self._limits.refusal_notice_ms / 1000
        return True

    def _drop_revoked(self, route_id: bytes, address: str, name: str) -> None:
        """A frame of a key that was revoked while its connection lives: not read."""
        self.endpoint.refusals.count("revoked_frame", address, name)
        if self._may_notice(route_id):
            self._send_error(route_id, Forbidden(f"key {name} is not known any more"))

    def _require_hello(self, route_id: bytes) -> None:
        """Answer hello_required."""
        if not self._may_notice(route_id):
            return
        self.endpoint.counters["hellos_required"] += 1
        self.send(route_id, encode_frame([HelloRequired("unknown route")]))

    def _send_error(self, route_id: bytes, error: BaseException) -> None:
        wire_name, message, details = to_wire(error)
        envelope: Envelope = Error(0, wire_name, message, details)
        self.send(route_id, encode_frame([envelope]))

    def _receive_early(self, route: Route, frame: bytes) -> None:
        """A frame of a route whose hello is being admitted: only another hello means anything."""
        hello = self._read_hello(frame, route.address, route.route_id)
        if hello is not None:
            self.admit(route, hello)

    def _receive_stranger(self, route_id: bytes, message: zmq.Frame) -> None:
        address = str(message.get("Peer-Address"))
        keyring = self.endpoint.keyring
        key = ("", "")
        if keyring is not None:
            key = (str(message.get("User-Id")), str(message.get(KEY_PROPERTY)))
            if keyring.holds(*key) is None:
                self._drop_revoked(route_id, address, key[0])
                return
        hello = self._read_hello(message.bytes, address, route_id)
        if hello is None:
            return
        if len(self._routes) >= self._limits.routes_max:
            self.endpoint.refusals.count("routes_full", address)
            self._send_error(route_id, Busy("too many links here", retry_after_ms=self._limits.hello_backoff_ms_max))
            return
        # A descriptor may be a new connection's while the old one's end still waits on the monitor: read that first.
        self._read_monitor()
        descriptor = int(message.get(zmq.SRCFD))
        route = Route(self, route_id, key, descriptor, address)
        self._routes[route_id] = route
        self._by_descriptor[descriptor] = route
        self.admit(route, hello)

    def _read_monitor(self) -> bool:
        for _, descriptor in read_monitor(self._monitor):
            route = self._by_descriptor.pop(descriptor, None)
            if route is None:
                continue
            route.hello = None
            self._routes.pop(route.route_id, None)
            # Were the descriptor another connection's by now, this makes its peer say hello again.
            self.send(route.route_id, encode_frame([HelloRequired("disconnected")]))
            if route.link is not None:
                route.link.lose("disconnected")
        return False

    # Admission

    def admit(self, route: Route, hello: Hello) -> None:
        """Have a worker decide on a hello; a later hello of the same route supersedes it."""
        route.hello = hello
        self.endpoint.counters["hellos"] += 1
        if not self.endpoint.admit_pool.submit(self._greet, route, hello):
            route.hello = None
            self.drop(route, None)
            self._send_error(route.route_id, Busy("too many hellos", retry_after_ms=self._limits.hello_backoff_ms_max))

    def _greet(self, route: Route, hello: Hello) -> None:
        if route.hello is not hello or self._closed:
            return
        try:
            peer = self._check(route, hello)
            if self.endpoint.admit is not None:
                self.endpoint.admit(peer)
            welcome = self.endpoint.greet(Welcome)
            if route.hello is not hello or self._closed:
                return
            self._welcome(route, hello, peer, welcome)
        except Exception as error:
            if route.hello is not hello or self._closed:
                return
            if not is_registered(error):
                log.exception("admission failed service=%s address=%s", hello.service_id, route.address)
            # One that is refused until we are ready comes again by itself: no news for an operator.
            level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
            self.endpoint.refusals.count("hello", f"{hello.role}/{hello.service_id}", str(error), level)
            route.hello = None
            self.drop(route, None)
            self._send_error(route.route_id, error)

    def _check(self, route: Route, hello: Hello) -> Peer:
        peer = peer_of(hello, route.key_name, self._limits)
        keyring = self.endpoint.keyring
        if keyring is not None:
            entry = keyring.holds(route.key_name, route.public_key)
            if entry is None:
                raise Forbidden(f"key {route.key_name} is not known any more")
            check_against_key(peer, entry)
        return peer

    def _welcome(self, route: Route, hello: Hello, peer: Peer, welcome: Welcome) -> None:
        """Bind the route (nothing here blocks: the whole step is one turn)."""
        sessions = self.endpoint.sessions
        link, retired = sessions.find(hello, peer)
        if retired is not None:
            retired.say_bye("replaced by another incarnation")
            sessions.forget(retired)
            retired.close("replaced by another incarnation")
        if link is None:
            home = self.endpoint
            core = LinkCore(
                home.limits, home.counters, interfaces=lambda: self.endpoint.serving.ranges, streams=home.streams
            )
            link = Link(self.endpoint, core, route.address, f"{peer.role}/{peer.service_id}@{peer.cell}")
        elif link.up:
            link.lose("peer said hello on another route")
        route.hello = None
        route.link = link
        link.address = route.address
        link.carrier = route
        sessions.keep(peer, link)
        now = time.monotonic()
        link.happen(link.core.accept(hello, peer, welcome, now), now)

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
