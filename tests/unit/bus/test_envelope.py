"""Frames off the wire: what is no frame is refused, whatever its bytes."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcompute.bus.envelope import (
    Call,
    Cast,
    Credit,
    Event,
    Reply,
    decode_attributes,
    decode_frame,
    encode_attributes,
    encode_frame,
    foreign_protocol,
)
from zcompute.bus.errors import FrameRefused
from zcompute.bus.limits import Limits

LIMITS = Limits()
FRAME = encode_frame([Call(1, "echo.say", 1, 0, 500, "req-1", b"payload"), Reply(2, b""), Event("t", "k", 3, b"x")])


def test_a_frame_is_an_array_of_arrays_with_the_kind_first() -> None:
    assert msgspec.msgpack.decode(FRAME) == [
        [3, 1, "echo.say", 1, 0, 500, "req-1", b"payload"],
        [4, 2, b""],
        [10, "t", "k", 3, b"x"],
    ]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "malformed"),
        (b"\x90", "malformed"),
        (b"\xc1", "malformed"),
        (b"hello there", "malformed"),
        (b"\x91\x91\xcc\xc8", "malformed"),  # kind 200
        (b"\x91\x92\x04\x01", "malformed"),  # a reply without its payload
        (b"\x91\x93\x04\xff\xc4\x00", "malformed"),  # call id -1
        (b"\x91\x93\x04\xa11\xc4\x00", "malformed"),  # call id "1"
        (FRAME + b"\x00", "malformed"),
        (FRAME[:-1], "malformed"),
        (b"\xdd\xff\xff\xff\xff", "envelopes"),
        (b"\xdc\x01\x01" + b"\x94\x09\x00\x00\x00" * 257, "envelopes"),
        (b"\x91\x95\x05\x01\xa1x\xa1y\x81\xa1a" + b"\x91" * 100_000, "malformed"),  # nested deeply
        (b"\x91\x93\x04\x01\xc6\x7f\xff\xff\xff", "malformed"),  # announces 2 GiB
        (b"\x91" + b"x" * (LIMITS.frame_bytes_max + 1), "size"),
    ],
)
def test_a_bad_frame_is_refused_with_its_reason(frame: bytes, reason: str) -> None:
    with pytest.raises(FrameRefused) as refused:
        decode_frame(frame, LIMITS)
    assert refused.value.details["reason"] == reason


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    try:
        decode_frame(data, LIMITS)
    except FrameRefused:
        return


def test_a_mutated_frame_is_a_frame_or_refused() -> None:
    chance = random.Random(7)
    for _ in range(20_000):
        frame = bytearray(FRAME)
        for _ in range(chance.randrange(1, 4)):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        try:
            decode_frame(bytes(frame[: chance.randrange(1, len(frame) + 1)]), LIMITS)
        except FrameRefused:
            continue


def test_fields_added_by_a_later_minor_version_are_ignored() -> None:
    frame = msgspec.msgpack.encode([[9, 1, 2, 3, "later"], [6, "echo.note", 1, 0, "-", b"", {"more": 1}]])
    assert decode_frame(frame, LIMITS) == [Credit(1, 2, 3), Cast("echo.note", 1, 0, "-", b"")]


def test_a_hello_of_another_protocol_is_recognised_whatever_follows() -> None:
    assert foreign_protocol(msgspec.msgpack.encode([[1, 2, 5, {"all": "different"}]])) == (2, 5)
    assert foreign_protocol(msgspec.msgpack.encode([[1, 1, 0]])) is None
    assert foreign_protocol(b"junk") is None


def test_attributes_have_a_size_limit_on_both_sides() -> None:
    assert decode_attributes(encode_attributes({"epoch": 3}, LIMITS), LIMITS) == {"epoch": 3}
    with pytest.raises(FrameRefused):
        encode_attributes({"x": "y" * LIMITS.attributes_bytes_max}, LIMITS)
    with pytest.raises(FrameRefused):
        decode_attributes(b"\x91\x01", LIMITS)
