"""A brokerless bus over ZeroMQ: calls, casts, reports with durable acks, and state events between typed peers.

An `Endpoint` serves methods, listens and dials; a `Link` is one peer. See docs/protocol.md for the wire.
"""

from zcompute.bus.counters import Counters
from zcompute.bus.endpoint import Endpoint, open_endpoints
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
from zcompute.bus.following import StreamEvents, StreamSkip
from zcompute.bus.identity import Identity, KeyEntry, Keyring, Peer
from zcompute.bus.inside import BUS_PING, BUS_STAT, PingReply, PingRequest, StatRequest
from zcompute.bus.limits import Limits
from zcompute.bus.link import Link
from zcompute.bus.method import MethodSpec
from zcompute.bus.serving import CallContext
from zcompute.bus.stat import EndpointStat, LinkStat
from zcompute.bus.streams import Stream

__all__ = [
    "BUS_PING",
    "BUS_STAT",
    "Ack",
    "BusConfigError",
    "BusError",
    "Busy",
    "CallContext",
    "Counters",
    "DeadlineExceeded",
    "Endpoint",
    "EndpointStat",
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
    "LinkStat",
    "MethodSpec",
    "NotOwner",
    "Peer",
    "PingReply",
    "PingRequest",
    "RemoteError",
    "Report",
    "StatRequest",
    "Stream",
    "StreamEvents",
    "StreamSkip",
    "Unavailable",
    "UnknownMethod",
    "UnsupportedVersion",
    "open_endpoints",
    "register_error",
]
