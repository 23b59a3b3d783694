"""Who is let in at a listener: hellos, their admission, and what strangers are told."""

import logging
import time
from typing import Protocol

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
from zcompute.bus.errors import Busy, Forbidden, FrameRefused, Unavailable, UnsupportedVersion, is_registered, to_wire
from zcompute.bus.home import Home
from zcompute.bus.identity import Peer, check_against_key
from zcompute.bus.link import Link
from zcompute.bus.protocol import LinkCore, peer_of
from zcompute.bus.route import Route

log = logging.getLogger(__name__)

NOTICES_KEPT_MAX = 10_000


class Door(Protocol):
    """The listener whose hellos are admitted."""

    closed: bool

    def send(self, route_id: bytes, frame: bytes) -> str:
        """Send one frame to a route."""

    def drop(self, route: Route, link: Link | None) -> None:
        """Forget a route."""


class Admission:
    """Checks hellos against keys, asks the application, and binds routes to links."""

    def __init__(self, home: Home, listener: Door) -> None:
        self._home = home
        self._limits = home.limits
        self._listener = listener
        self._notices: dict[bytes, float] = {}

    def admit(self, route: Route, hello: Hello) -> None:
        """Have a worker decide on a hello; a later hello of the same route supersedes it."""
        route.hello = hello
        self._home.counters["hellos"] += 1
        if not self._home.admit_pool.submit(None, self._greet, route, hello):
            route.hello = None
            self._listener.drop(route, None)
            self._home.refusals.count("hellos_full", route.address)
            self.send_error(route.route_id, Busy("too many hellos", retry_after_ms=self._limits.hello_backoff_ms_max))

    def _greet(self, route: Route, hello: Hello) -> None:
        if route.hello is not hello or self._listener.closed:
            return
        try:
            peer = self._check(route, hello)
            if self._home.admit is not None:
                self._home.admit(peer)
            welcome = self._home.greet(Welcome)
            if route.hello is not hello or self._listener.closed:
                return
            self._welcome(route, hello, peer, welcome)
        except Exception as error:
            if route.hello is not hello or self._listener.closed:
                return
            if not is_registered(error):
                log.exception("admission failed service=%s address=%s", hello.service_id, route.address)
            # One that is refused until we are ready comes again by itself: no news for an operator.
            level = logging.INFO if isinstance(error, Unavailable) else logging.WARNING
            self._home.refusals.count("hello", f"{hello.role}/{hello.service_id}", str(error), level)
            route.hello = None
            self._listener.drop(route, None)
            self.send_error(route.route_id, error)

    def _check(self, route: Route, hello: Hello) -> Peer:
        peer = peer_of(hello, route.key_name, self._limits)
        keyring = self._home.keyring
        if keyring is not None:
            entry = keyring.holds(route.key_name, route.public_key)
            if entry is None:
                raise Forbidden(f"key {route.key_name} is not known any more")
            check_against_key(peer, entry)
        return peer

    def _welcome(self, route: Route, hello: Hello, peer: Peer, welcome: Welcome) -> None:
        """Bind the route (nothing here blocks: the whole step is one turn)."""
        sessions = self._home.sessions
        link, retired = sessions.find(hello, peer)
        if retired is not None:
            retired.say_bye("replaced by another incarnation")
            sessions.forget(retired)
            retired.close("replaced by another incarnation")
        if link is None:
            home = self._home
            core = LinkCore(
                home.limits,
                home.counters,
                interfaces=lambda: self._home.serving.ranges,
                streams=home.streams,
                priority_of=home.serving.priority_of,
            )
            link = Link(self._home, core, route.address, f"{peer.role}/{peer.service_id}@{peer.cell}")
        elif link.up:
            link.lose("peer said hello on another route")
        route.hello = None
        route.link = link
        link.address = route.address
        link.carrier = route
        sessions.keep(peer, link)
        now = time.monotonic()
        link.happen(link.core.accept(hello, peer, welcome, now), now)

    def read_hello(self, frame: bytes, address: str, route_id: bytes) -> Hello | None:
        """The hello that a frame begins with; what else it may be is refused."""
        refusals = self._home.refusals
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
        self._home.refusals.count("protocol_version", address, f"{theirs[0]}.{theirs[1]}")
        error = UnsupportedVersion(
            f"protocol: caller speaks {theirs[0]}.{theirs[1]}, server speaks {PROTOCOL_MAJOR}.0-{PROTOCOL_MAJOR}."
            f"{PROTOCOL_MINOR}",
            interface="protocol",
            wanted=list(theirs),
            server=[[PROTOCOL_MAJOR, 0], [PROTOCOL_MAJOR, PROTOCOL_MINOR]],
        )
        self.send_error(route_id, error)

    def _may_notice(self, route_id: bytes) -> bool:
        """Whether a stranger is answered: at most once per route in `refusal_notice_ms`."""
        now = time.monotonic()
        if now < self._notices.get(route_id, 0.0):
            return False
        if len(self._notices) >= NOTICES_KEPT_MAX:
            self._notices.clear()
        self._notices[route_id] = now + self._limits.refusal_notice_ms / 1000
        return True

    def drop_revoked(self, route_id: bytes, address: str, name: str) -> None:
        """A frame of a key that was revoked while its connection lives: not read."""
        self._home.refusals.count("revoked_frame", address, name)
        if self._may_notice(route_id):
            self.send_error(route_id, Forbidden(f"key {name} is not known any more"))

    def tell_barred(self, route_id: bytes) -> bool:
        """Answer a barred key that it shall come later; False when it was told so a moment ago and goes on."""
        if not self._may_notice(route_id):
            return False
        self.send_error(route_id, Busy("too many frames that cannot be taken", retry_after_ms=self._limits.bar_ms))
        return True

    def _require_hello(self, route_id: bytes) -> None:
        """Answer hello_required."""
        if not self._may_notice(route_id):
            return
        self._home.counters["hellos_required"] += 1
        self._listener.send(route_id, encode_frame([HelloRequired("unknown route")]))

    def send_error(self, route_id: bytes, error: BaseException) -> None:
        wire_name, message, details = to_wire(error)
        envelope: Envelope = Error(0, wire_name, message, details)
        self._listener.send(route_id, encode_frame([envelope]))
