"""How a method is declared, and the versions an endpoint serves."""

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any, Protocol

import msgspec

from zcompute.bus.errors import UnknownMethod, UnsupportedVersion
from zcompute.bus.identity import VersionRange

_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}  # one for each declared message


class MethodSpec(Protocol):
    """A method of an interface; any object with these attributes will do, a frozen dataclass for instance."""

    @property
    def interface(self) -> str:
        """Name of the interface, e.g. "instances"."""

    @property
    def name(self) -> str:
        """Name of the method within its interface."""

    @property
    def version(self) -> tuple[int, int]:
        """(major, minor) that brought the method in its present form."""

    @property
    def request(self) -> type[Any]:
        """The msgspec Struct of the request."""

    @property
    def reply(self) -> type[Any] | None:
        """The msgspec Struct of the reply; None for casts."""

    @property
    def roles(self) -> frozenset[str]:
        """Roles whose keys may call it."""

    @property
    def pool(self) -> str:
        """Worker pool: "control", "leaf", "calls" or "reads"."""

    @property
    def idempotent(self) -> bool:
        """True when an open call may be sent again after a new hello."""


class Priority(IntEnum):
    """Class of a call, cast or answer: that of its method's pool. Lower ones go first."""

    CONTROL = 0
    CALLS = 1
    READS = 2


POOL_PRIORITIES = {
    "control": Priority.CONTROL,
    "leaf": Priority.CALLS,
    "calls": Priority.CALLS,
    "reads": Priority.READS,
}


class PreparedMethod:
    """A method with what is needed per message computed once."""

    __slots__ = (
        "decode_reply", "decode_request", "full_name", "idempotent", "interface", "major", "method", "minor",
        "priority", "sent",
    )  # fmt: skip

    def __init__(self, method: MethodSpec) -> None:
        self.method = method
        self.interface, self.idempotent = method.interface, method.idempotent
        self.sent = 0  # calls and casts of ours
        self.full_name = f"{method.interface}.{method.name}"
        self.major, self.minor = method.version
        self.priority = POOL_PRIORITIES.get(method.pool, Priority.CALLS)
        self.decode_request = _decoder(method.request)
        self.decode_reply = _decoder(method.reply) if method.reply is not None else None


def _decoder(kind: type[Any]) -> Callable[[bytes], Any]:
    """What reads a type: made once, for all endpoints of the process and all links that speak it."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder.decode


def interface_ranges(methods: Iterable[MethodSpec]) -> dict[str, VersionRange]:
    """Range of versions per interface that serving these methods amounts to: (major, 0) to (major, highest minor).

    A method may say more of its interface than its own version: `interface_version`, reached by changes elsewhere.
    """
    highest: dict[str, tuple[int, int]] = {}
    for method in methods:
        announced = max(method.version, getattr(method, "interface_version", method.version))
        highest[method.interface] = max(highest.get(method.interface, (0, 0)), announced)
    return {interface: ((version[0], 0), version) for interface, version in highest.items()}


def check_version(
    interface: str, version: tuple[int, int], theirs: Mapping[str, VersionRange], ours: Mapping[str, VersionRange]
) -> None:
    """Raise unless a peer that serves `theirs` can be asked for `version` of the interface.

    Raises UnknownMethod when the interface is not served at all, UnsupportedVersion naming both sides' ranges when the
    version lies outside the served range.
    """
    served = theirs.get(interface)
    if served is None:
        raise UnknownMethod(f"interface {interface} is not served by the peer", method=interface)
    if not served[0] <= version <= served[1]:
        own = ours.get(interface, (version, version))
        raise UnsupportedVersion(
            f"interface {interface}: caller speaks {_dotted(own)} and asked for {version[0]}.{version[1]}, "
            f"server speaks {_dotted(served)}",
            interface=interface,
            wanted=list(version),
            caller=[list(own[0]), list(own[1])],
            server=[list(served[0]), list(served[1])],
        )


def _dotted(versions: VersionRange) -> str:
    (low_major, low_minor), (high_major, high_minor) = versions
    return f"{low_major}.{low_minor}-{high_major}.{high_minor}"
