"""The frame decoder against mutated frames: it refuses with FrameRefused, or reads what it can write again."""

import time
from collections import Counter

from tests.fuzz.bus import seeds
from tests.fuzz.bus.mutate import Mutator
from zcompute.bus.envelope import Hello, Welcome, decode_attributes, decode_frame, encode_frame, foreign_protocol
from zcompute.bus.errors import FrameRefused
from zcompute.bus.limits import Limits

FRAME_S_MAX = 1.0  # a frame that takes longer is a hang


class FindingError(Exception):
    """What the fuzzer is for: the text says how to see it again."""


def run(mutations: int, seed: int) -> Counter[str]:
    """How many frames were read, and refused by reason. Raises FindingError."""
    mutator = Mutator(seed, seeds.frames())
    limits = Limits()
    outcomes: Counter[str] = Counter()
    for number in range(mutations):
        frame = mutator.frame()
        started = time.monotonic()
        try:
            outcomes[check(frame, limits)] += 1
        except Exception as error:
            raise FindingError(f"frame {number} of seed {seed}: {error!r}: {frame[:2_000].hex()}") from error
        if time.monotonic() - started > FRAME_S_MAX:
            raise FindingError(f"frame {number} of seed {seed} took over {FRAME_S_MAX} s: {frame[:2_000].hex()}")
    return outcomes


def check(frame: bytes, limits: Limits) -> str:
    """ "read", or why the frame is refused."""
    foreign_protocol(frame)
    try:
        envelopes = decode_frame(frame, limits)
        for envelope in envelopes:
            if isinstance(envelope, Hello | Welcome):
                decode_attributes(envelope.attributes, limits)
    except FrameRefused as error:
        return str(error.details["reason"])
    written = encode_frame(envelopes)
    if encode_frame(decode_frame(written, limits)) != written:
        raise ValueError("what was read and written is read as something else")
    return "read"
