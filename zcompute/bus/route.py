"""A connection of a listener's ROUTER, under the routing id that libzmq gave it."""

from typing import Protocol

from zcompute.bus.connections import cut, far_end, silent_s, unread_bytes
from zcompute.bus.envelope import Hello, HelloRequired, encode_frame
from zcompute.bus.home import Home
from zcompute.bus.link import Link


class RouteHome(Protocol):
    """The listener of a route."""

    endpoint: Home

    def send(self, route_id: bytes, frame: bytes) -> str:
        """Send one frame to a route."""

    def admit(self, route: "Route", hello: Hello) -> None:
        """Answer a hello."""

    def drop(self, route: "Route", link: Link | None) -> None:
        """Forget the route."""

    def on_offence(self, route: "Route", reason: str) -> None:
        """The peer sent what cannot be taken."""


class Route:
    """A connection of a ROUTER that said hello; carries one link once it is admitted."""

    def __init__(
        self, listener: RouteHome, route_id: bytes, key: tuple[str, str], descriptor: int, address: str
    ) -> None:
        self.route_id = route_id
        self.key_name, self.public_key = key
        self.descriptor = descriptor
        self.far_end = far_end(descriptor)
        self.address = address
        self.hello: Hello | None = None  # under admission
        self.link: Link | None = None
        self._listener = listener

    def send(self, frame: bytes) -> str:
        """Send one frame to this route without waiting."""
        return self._listener.send(self.route_id, frame)

    def on_hello(self, hello: Hello) -> None:
        """A new hello over the same connection."""
        self._listener.on_offence(self, "hello_again")
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

    def on_offence(self, reason: str) -> None:
        """It counts against the key."""
        self._listener.on_offence(self, reason)

    def reset(self, reason: str) -> None:
        """Forget the route and ask for a hello."""
        if self.link is not None:
            self.link.lose(reason)
        self.send(encode_frame([HelloRequired(reason[:255])]))

    def silent_s(self, silence_s_max: float) -> float | None:
        """Seconds since bytes came from the peer; 0 while some wait for us to read them; None when it has ended."""
        found = silent_s(self.descriptor)
        if found is not None and found >= silence_s_max and unread_bytes(self.descriptor):
            return 0.0
        return found

    def cut(self) -> None:
        """End the connection itself; the peer may connect anew."""
        cut(self.descriptor, self.far_end)
