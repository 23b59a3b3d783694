"""Errors of the bus, and the closed set that crosses the wire by name.

An error travels as (wire name, message, details). Only registered classes come back as themselves; anything else that a
handler raised arrives as `RemoteError` with the type's name, and its traceback stays in the log of the server.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import msgspec

DETAILS_BYTES_MAX = 4096
MESSAGE_CHARS_MAX = 2000


class BusError(Exception):
    """Root of the bus' errors. `details` is a small map of str to str, int or list."""

    wire_name: ClassVar[str] = "BusError"

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class BusConfigError(BusError):
    """The endpoint was set up wrongly (keys, addresses, names); never crosses the wire."""

    wire_name = "BusConfigError"


class Busy(BusError):
    """A queue, window or pool is at its limit. details: retry_after_ms."""

    wire_name = "Busy"

    @property
    def retry_after_ms(self) -> int:
        """When to try again, in milliseconds."""
        value = self.details.get("retry_after_ms", 100)
        return value if isinstance(value, int) else 100


class DeadlineExceeded(BusError):
    """No answer within the call's deadline; whether it took effect is not known."""

    wire_name = "DeadlineExceeded"


class LinkDown(BusError):
    """The link is not up; nothing was sent."""

    wire_name = "LinkDown"


class LinkReset(BusError):
    """The link was lost while the call was open; whether it took effect is not known."""

    wire_name = "LinkReset"


class UnsupportedVersion(BusError):
    """One side does not speak what the other asked for. details: interface, wanted, ranges (low, high)."""

    wire_name = "UnsupportedVersion"


class UnknownMethod(BusError):
    """The peer serves no such method. details: method."""

    wire_name = "UnknownMethod"


class Forbidden(BusError):
    """The key's role, cell or hosts do not allow this."""

    wire_name = "Forbidden"


class InvalidRequest(BusError):
    """The request does not have the declared shape. details: field."""

    wire_name = "InvalidRequest"

    @property
    def field(self) -> str:
        """Path of the field that was wrong, "" where unknown."""
        return str(self.details.get("field", ""))


class FrameRefused(BusError):
    """A frame or envelope is malformed or over a limit. details: reason."""

    wire_name = "FrameRefused"


class NotOwner(BusError):
    """The receiver does not own the partition. details: partition, map_version."""

    wire_name = "NotOwner"

    @property
    def partition(self) -> int:
        """The partition asked for, -1 where unknown."""
        value = self.details.get("partition", -1)
        return value if isinstance(value, int) else -1

    @property
    def map_version(self) -> int:
        """Version of the partition map that the refusing side holds."""
        value = self.details.get("map_version", 0)
        return value if isinstance(value, int) else 0


class Unavailable(BusError):
    """The service cannot answer now (its database is away, it is starting or stopping)."""

    wire_name = "Unavailable"


class RemoteError(BusError):
    """The handler failed with an error that is not registered. details: type_name."""

    wire_name = "RemoteError"

    @property
    def type_name(self) -> str:
        """Name of the exception's type at the server."""
        return str(self.details.get("type_name", ""))


ErrorClass = TypeVar("ErrorClass", bound=type[Exception])
_registry: dict[str, Callable[..., Exception]] = {}


def register_error(cls: ErrorClass) -> ErrorClass:
    """Let an exception class cross the wire; usable as a decorator.

    The class needs `wire_name: ClassVar[str]`, a constructor `cls(message, **details)` and an attribute `details`.
    Raises BusConfigError when it has no wire name of its own or the name is taken by another class.
    """
    wire_name = cls.__dict__.get("wire_name")
    if not isinstance(wire_name, str) or not wire_name:
        raise BusConfigError(f"expected a wire_name of its own on {cls.__name__}, found none: declare one")
    known = _registry.get(wire_name)
    if known is not None and known is not cls:
        raise BusConfigError(f"wire name {wire_name!r} of {cls.__name__} is taken by {known!r}: choose another")
    _registry[wire_name] = cls
    return cls


for _cls in (
    Busy,
    DeadlineExceeded,
    LinkDown,
    LinkReset,
    UnsupportedVersion,
    UnknownMethod,
    Forbidden,
    InvalidRequest,
    FrameRefused,
    NotOwner,
    Unavailable,
    RemoteError,
):
    register_error(_cls)


def is_registered(error: BaseException) -> bool:
    """True when this very class crosses the wire as itself."""
    return _registry.get(getattr(type(error), "wire_name", "")) is type(error)


def to_wire(error: BaseException) -> tuple[str, str, dict[str, Any]]:
    """(wire name, message, details) of an exception; unregistered ones become RemoteError without their message's
    surroundings (no traceback, no repr of objects)."""
    message = str(error)[:MESSAGE_CHARS_MAX]
    if not is_registered(error):
        return RemoteError.wire_name, message, {"type_name": type(error).__name__}
    details = getattr(error, "details", {})
    try:
        fits = isinstance(details, dict) and len(msgspec.msgpack.encode(details)) <= DETAILS_BYTES_MAX
    except (TypeError, ValueError, OverflowError, RecursionError):
        fits = False
    return str(getattr(type(error), "wire_name", "")), message, dict(details) if fits else {"details_dropped": 1}


def from_wire(wire_name: str, message: str, details: dict[str, Any]) -> Exception:
    """The exception to raise for an error that arrived."""
    cls = _registry.get(wire_name)
    if cls is not None:
        try:
            return cls(message, **details)
        except TypeError:  # a peer of another release, or a hostile one, gave details that the class does not take
            return RemoteError(message, type_name=wire_name)
    return RemoteError(message, type_name=wire_name)
