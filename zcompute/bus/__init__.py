"""A brokerless bus over ZeroMQ: calls, casts, reports with durable acks, and state events between typed peers.

An `Endpoint` serves methods, listens and dials; a `Link` is one peer. See docs/protocol.md for the wire.
"""

from zcompute.bus.counters import Counters
from zcompute.bus.endpoint import Endpoint
from zcompute.bus.envelope import Ack, Event, Report
from zcompute.bus.errors import (
    BusConfigError,
    BusError,
    Busy,
    DeadlineExceeded,
    Forbidden,
    FrameRefused,
    InvalidRequest,
    LinkDown,
    LinkReset,
    NotOwner,
    RemoteError,
    Unavailable,
    UnknownMethod,
    UnsupportedVersion,
    register_error,
)
from zcompute.bus.identity import Identity, KeyEntry, Keyring, Peer
from zcompute.bus.limits import Limits
from zcompute.bus.link import Link
from zcompute.bus.method import MethodSpec
from zcompute.bus.serving import CallContext

__all__ = [
    "Ack",
    "BusConfigError",
    "BusError",
    "Busy",
    "CallContext",
    "Counters",
    "DeadlineExceeded",
    "Endpoint",
    "Event",
    "Forbidden",
    "FrameRefused",
    "Identity",
    "InvalidRequest",
    "KeyEntry",
    "Keyring",
    "Limits",
    "Link",
    "LinkDown",
    "LinkReset",
    "MethodSpec",
    "NotOwner",
    "Peer",
    "RemoteError",
    "Report",
    "Unavailable",
    "UnknownMethod",
    "UnsupportedVersion",
    "register_error",
]
