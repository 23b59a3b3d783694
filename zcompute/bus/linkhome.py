"""What a link needs of those around it: what carries its frames, who takes the peer's work, its endpoint."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from zcompute.bus.envelope import Call, Cast, Hello
from zcompute.bus.handlers import Handlers
from zcompute.bus.identity import VersionRange
from zcompute.bus.inbox import OwnerHome
from zcompute.bus.method import MethodSpec, PreparedMethod
from zcompute.bus.sending import FrameTaker
from zcompute.bus.turn import Turn
from zcompute.bus.untold import Untold

if TYPE_CHECKING:
    from zcompute.bus.link import Link

Lower = Callable[[Any], Any]
"""Takes a message to the versions that a peer reads; raises ValueError when they cannot say it."""


class Carrier(FrameTaker, Protocol):
    """What moves a link's frames: a dialled socket, or a route of a listener."""

    def on_hello(self, hello: Hello) -> None:
        """The peer said hello on a link that has a peer already."""

    def on_lost(self, link: "Link", reason: str) -> None:
        """The link went down, whoever noticed."""

    def on_refused(self, error: Exception) -> None:
        """The listener refused our hello."""

    def on_offence(self, reason: str) -> None:
        """The peer sent what cannot be taken."""

    def reset(self, reason: str) -> None:
        """Begin anew with a hello."""


class WorkTaker(Protocol):
    """Takes the peer's calls and casts."""

    @property
    def ranges(self) -> Mapping[str, VersionRange]:
        """The versions served, by interface."""

    def on_call(self, link: "Link", call: Call, now: float) -> None:
        """A call arrived."""

    def on_cast(self, link: "Link", cast: Cast, now: float) -> None:
        """A cast arrived."""


class LinkHome(OwnerHome, Protocol):
    """What a link needs of its endpoint."""

    handlers: "Handlers[Link]"
    active: "set[Link]"
    untold: "Untold[Link]"
    blocked: "set[Link]"
    up_links: "dict[Link, None]"
    up_of_role: "dict[str, dict[Link, None]]"
    turn: Turn
    closed: bool
    lowering: Callable[[Mapping[str, Any]], Lower | None] | None

    @property
    def serving(self) -> WorkTaker: ...

    def prepare(self, method: MethodSpec) -> PreparedMethod:
        """The method's codec."""

    def down_reason(self, link: "Link") -> str:
        """Why a dialled link is not up."""
