"""Makes bad frames of good ones: in their bytes, and in the msgpack values that the bytes stand for."""

import random
import struct
from collections.abc import Callable
from typing import Any

import msgspec

CHANGES_MAX = 3
INSERT_BYTES_MAX = 64
NEST_DEPTH_MAX = 20_000
STRUCTURAL_SHARE = 0.3

NESTED = (b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\x81\x01")
HEADERS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
)
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 255, 256, 1_025, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"),
    float("inf"), "", "x" * 255, "x" * 256, "é" * 513, "\x00", "echo.say", "echo.", ".", "bus.stat", b"", b"\x80",
    b"\xff" * 300, [], [[]], [[1] * 300], {}, {"a": {"b": {}}}, {"": -1},
    msgspec.Raw(b"\xa2\xff\xfe"), msgspec.Raw(b"\xd4\x01\x00"), msgspec.Raw(b"\xd7" + b"\xff" * 9),
    msgspec.Raw(b"\x81\x90\x01"), msgspec.Raw(b"\x81\x80\x01"), msgspec.Raw(b"\x82\xa1a\x01\xa1a\x02"),
    msgspec.Raw(b"\x81\xa1a\x81\x80\x01"), msgspec.Raw(b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12), msgspec.Raw(b"\xc1"),
)  # fmt: skip

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode


class Mutator:
    """Gives mutated frames, the same for the same seed."""

    def __init__(self, seed: int, frames: list[bytes]) -> None:
        self._chance = random.Random(seed)
        self._frames = frames
        self._values = [_decode(frame) for frame in frames]
        self._operators: tuple[Callable[[bytearray], bytearray | bytes], ...] = (
            self._flip, self._flip, self._overwrite, self._overwrite, self._cut, self._insert, self._repeat,
            self._truncate, self._splice, self._header, self._number,
        )  # fmt: skip

    def frame(self) -> bytes:
        """A mutation of one of the frames."""
        chance = self._chance
        if chance.random() < STRUCTURAL_SHARE:
            return self._structural(chance.choice(self._values))
        return self.mutate(chance.choice(self._frames))

    def mutate(self, frame: bytes) -> bytes:
        """The frame with some of its bytes changed."""
        chance = self._chance
        if chance.random() < 0.001:
            return self._nest(frame)
        made: bytearray | bytes = bytearray(frame)
        for _ in range(chance.randrange(1, CHANGES_MAX + 1)):
            made = chance.choice(self._operators)(bytearray(made) if made else bytearray(b"\x90"))
        return bytes(made)

    def _at(self, frame: bytearray) -> int:
        return int(self._chance.random() * len(frame))

    def _flip(self, frame: bytearray) -> bytearray:
        frame[self._at(frame)] ^= 1 << self._chance.randrange(8)
        return frame

    def _overwrite(self, frame: bytearray) -> bytearray:
        frame[self._at(frame)] = self._chance.randrange(256)
        return frame

    def _cut(self, frame: bytearray) -> bytearray:
        at = self._at(frame)
        del frame[at : at + self._chance.randrange(1, 9)]
        return frame

    def _insert(self, frame: bytearray) -> bytearray:
        at = self._at(frame)
        frame[at:at] = self._chance.randbytes(self._chance.randrange(1, INSERT_BYTES_MAX))
        return frame

    def _repeat(self, frame: bytearray) -> bytearray:
        at = self._at(frame)
        frame[at:at] = frame[at : at + INSERT_BYTES_MAX]
        return frame

    def _truncate(self, frame: bytearray) -> bytearray:
        return frame[: self._at(frame)]

    def _splice(self, frame: bytearray) -> bytearray:
        other = self._chance.choice(self._frames)
        return frame[: self._at(frame)] + other[int(self._chance.random() * len(other)) :]

    def _header(self, frame: bytearray) -> bytearray:
        at = self._at(frame)
        header = self._chance.choice(HEADERS)
        frame[at : at + 1] = header
        return frame

    def _number(self, frame: bytearray) -> bytearray:
        at = self._at(frame)
        frame[at : at + 1] = b"\xcf" + struct.pack(">Q", self._chance.choice((0, 1, 2**32, 2**63 - 1, 2**64 - 1)))
        return frame

    def _nest(self, frame: bytes) -> bytes:
        depth = self._chance.randrange(1, NEST_DEPTH_MAX)
        at = int(self._chance.random() * len(frame))
        return frame[:at] + self._chance.choice(NESTED) * depth + frame[at:]

    def _structural(self, envelopes: list[list[Any]]) -> bytes:
        chance = self._chance
        changed = [list(envelope) for envelope in envelopes]
        holder = chance.choice(changed)
        while True:  # as deep as the value is
            at = chance.randrange(len(holder))
            inner = holder[at]
            if not isinstance(inner, list) or not inner or chance.random() < 0.3:
                break
            holder[at] = inner = list(inner)
            holder = inner
        kind = chance.random()
        if kind < 0.7:
            holder[at] = chance.choice(NASTY)
        elif kind < 0.8:
            del holder[at:]
        elif kind < 0.9:
            holder.insert(at, chance.choice(NASTY))
        else:
            chance.shuffle(holder)
        return _encode(changed)
