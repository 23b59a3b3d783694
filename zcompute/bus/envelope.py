"""Envelopes and frames: the codec of the wire.

A frame is one ZeroMQ message: a msgpack array of envelopes. An envelope is a short msgpack array whose first element is
its kind, an int; payloads are opaque bins. Fields may be added at an envelope's end in a later minor version of the
protocol; decoders ignore what they do not know there.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from zcompute.bus.errors import FrameRefused
from zcompute.bus.limits import Limits

PROTOCOL_MAJOR = 1
PROTOCOL_MINOR = 1

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name: TypeAlias = Annotated[str, Meta(max_length=255)]
Key: TypeAlias = Annotated[str, Meta(max_length=512)]
Version: TypeAlias = tuple[Count, Count]


class Report(msgspec.Struct, array_like=True, gc=False):
    """One change reported at least once, in order per key; (key, seq) lets the receiver drop repeats."""

    key: Key
    seq: Count
    payload: bytes


class Ack(msgspec.Struct, array_like=True, gc=False):
    """The durable outcome of one report, in any order; or the word that it has none yet and has to come again.

    Since 1.1: the receiver's lane for the key (0: not said), when a report that has to come again is welcome (0: not
    said), and the version of what the verdict was decided by (not_owner: the map's).
    """

    key: Key
    seq: Count
    verdict: Name
    detail: Annotated[str, Meta(max_length=2000)] = ""
    lane: Count = 0
    retry_after_ms: Count = 0
    version: Count = 0


class Hello(msgspec.Struct, array_like=True, tag=1):
    """Dialler to listener, first on every route: who it is and what it speaks."""

    protocol_major: Count
    protocol_minor: Count
    link_number: Count
    service_id: Name
    incarnation: Name
    role: Name
    cell: Name
    release: Name
    hosts: Annotated[list[Name], Meta(max_length=1000)]
    interfaces: Annotated[dict[Name, tuple[Version, Version]], Meta(max_length=256)]
    topics: Annotated[list[Name], Meta(max_length=256)]
    attributes: bytes
    report_credit: Count
    lane_credit: Count = 0  # since 1.1; 0: no lanes


class Welcome(msgspec.Struct, array_like=True, tag=2):
    """Listener's answer to the hello of that link number; work may begin."""

    protocol_major: Count
    protocol_minor: Count
    link_number: Count
    service_id: Name
    incarnation: Name
    role: Name
    cell: Name
    release: Name
    hosts: Annotated[list[Name], Meta(max_length=1000)]
    interfaces: Annotated[dict[Name, tuple[Version, Version]], Meta(max_length=256)]
    topics: Annotated[list[Name], Meta(max_length=256)]
    attributes: bytes
    report_credit: Count
    lane_credit: Count = 0  # since 1.1; 0: no lanes


class Call(msgspec.Struct, array_like=True, tag=3, gc=False):
    """A request that wants one answer within the milliseconds that remain."""

    call_id: Count
    method: Name
    major: Count
    minor: Count
    remaining_ms: Count
    request_id: Name
    payload: bytes


class Reply(msgspec.Struct, array_like=True, tag=4, gc=False):
    """The answer to a call."""

    call_id: Count
    payload: bytes


class Error(msgspec.Struct, array_like=True, tag=5):
    """The failure of a call; with call id 0 of the hello, or of a frame that could not be read."""

    call_id: Count
    wire_name: Name
    message: Annotated[str, Meta(max_length=4000)]
    details: dict[str, Any] = {}


class Cast(msgspec.Struct, array_like=True, tag=6, gc=False):
    """A request without an answer, delivered at most once."""

    method: Name
    major: Count
    minor: Count
    request_id: Name
    payload: bytes


class ReportBatch(msgspec.Struct, array_like=True, tag=7):
    """Consecutive reports of one link number, the first of them numbered `sequence` (from 0 at each hello)."""

    link_number: Count
    sequence: Count
    reports: Annotated[list[Report], Meta(max_length=1024)]


class AckBatch(msgspec.Struct, array_like=True, tag=8):
    """Durable acks; also which sequence is awaited next (`received`) and below which one may be sent (`limit`)."""

    link_number: Count
    received: Count
    limit: Count
    acks: Annotated[list[Ack], Meta(max_length=1024)]


class Credit(msgspec.Struct, array_like=True, tag=9, gc=False):
    """`received` and `limit` alone; also the idle probe."""

    link_number: Count
    received: Count
    limit: Count


class Event(msgspec.Struct, array_like=True, tag=10, gc=False):
    """A state event: the newest version per (topic, key) is all that matters."""

    topic: Name
    key: Key
    version: Count
    payload: bytes


class Bye(msgspec.Struct, array_like=True, tag=11, gc=False):
    """The sender leaves this link on purpose."""

    reason: Name


class Nak(msgspec.Struct, array_like=True, tag=12, gc=False):
    """A report is missing: send again from sequence `expected` on."""

    link_number: Count
    expected: Count


class HelloRequired(msgspec.Struct, array_like=True, tag=13, gc=False):
    """Listener to a route it does not know: the frame was dropped, say hello."""

    reason: Name = ""


class Cancel(msgspec.Struct, array_like=True, tag=14, gc=False):
    """The caller is gone: a queued call need not begin, a running handler may stop. Since 1.1."""

    call_id: Count


class Follow(msgspec.Struct, array_like=True, tag=15, gc=False):
    """Send me the stream (topic, key) from `cursor` on, below `limit`; limit 0: no more. Since 1.1."""

    topic: Name
    key: Key
    number: Count
    cursor: Count
    limit: Count


class StreamBatch(msgspec.Struct, array_like=True, tag=16):
    """Consecutive events of a stream from `cursor` on, in answer to the follow of that number; none: it is heard."""

    topic: Name
    key: Key
    number: Count
    cursor: Count
    payloads: Annotated[list[bytes], Meta(max_length=1024)]


class StreamGap(msgspec.Struct, array_like=True, tag=17, gc=False):
    """The events `first` to `end` - 1 will not come. An `end` below `first`: the stream began anew."""

    topic: Name
    key: Key
    number: Count
    first: Count
    end: Count


class StreamCredit(msgspec.Struct, array_like=True, tag=18, gc=False):
    """What a follower awaits next (`received`), and below which cursor it may be sent (`limit`)."""

    topic: Name
    key: Key
    number: Count
    received: Count
    limit: Count


Envelope: TypeAlias = (
    Hello
    | Welcome
    | Call
    | Reply
    | Error
    | Cast
    | ReportBatch
    | AckBatch
    | Credit
    | Event
    | Bye
    | Nak
    | HelloRequired
    | Cancel
    | Follow
    | StreamBatch
    | StreamGap
    | StreamCredit
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Envelope])
_generic = msgspec.msgpack.Decoder(list[list[Any]])
_attributes = msgspec.msgpack.Decoder(dict[str, Any])


encode_frame: Callable[[list[Envelope]], bytes] = _encoder.encode
"""The bytes of one frame."""


def decode_frame(frame: bytes, limits: Limits) -> list[Envelope]:
    """The envelopes of a frame. Raises FrameRefused (details: reason = size, envelopes or malformed)."""
    if len(frame) > limits.frame_bytes_max:
        raise FrameRefused(
            f"expected at most {limits.frame_bytes_max} bytes a frame, found {len(frame)}", reason="size"
        )
    first = frame[0] if frame else 0
    count = first & 0x0F if first & 0xF0 == 0x90 else _long_count(frame, first)
    if not 0 < count <= limits.frame_envelopes_max:
        raise FrameRefused(
            f"expected an array of 1 to {limits.frame_envelopes_max} envelopes, found {count}",
            reason="envelopes" if count > 0 else "malformed",
        )
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FrameRefused(f"expected envelopes of protocol 1, found: {error}", reason="malformed") from None


def _long_count(frame: bytes, first: int) -> int:
    """Elements that a longer array's header announces, -1 when it is no array: known before anything is built."""
    if first == 0xDC and len(frame) >= 3:
        return int.from_bytes(frame[1:3], "big")
    if first == 0xDD and len(frame) >= 5:
        return int.from_bytes(frame[1:5], "big")
    return -1


def foreign_protocol(frame: bytes) -> tuple[int, int] | None:
    """(major, minor) when the frame is a hello of another major version of the protocol, else None.

    The first three elements of a hello keep their place for ever.
    """
    try:
        head = _generic.decode(frame)[0][:3]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, IndexError):
        return None
    if len(head) == 3 and head[0] == 1 and isinstance(head[1], int) and isinstance(head[2], int):
        return (head[1], head[2]) if head[1] != PROTOCOL_MAJOR else None
    return None


def encode_attributes(attributes: dict[str, Any], limits: Limits) -> bytes:
    """The bin of a hello's attributes. Raises FrameRefused when over `attributes_bytes_max`."""
    data = _encoder.encode(attributes)
    if len(data) > limits.attributes_bytes_max:
        raise FrameRefused(
            f"expected at most {limits.attributes_bytes_max} bytes of attributes, found {len(data)}",
            reason="attributes",
        )
    return data


def decode_attributes(data: bytes, limits: Limits) -> dict[str, Any]:
    """The map in a hello's attributes. Raises FrameRefused."""
    if len(data) > limits.attributes_bytes_max:
        raise FrameRefused("attributes are too large", reason="attributes")
    try:
        return _attributes.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FrameRefused(f"attributes are no map: {error}", reason="attributes") from None
