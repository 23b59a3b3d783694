"""Real frames: those of the newest release's corpus, and those of a dialog between two link cores."""

import msgspec

from tests.upgrade import corpus
from zcompute.bus.envelope import Hello, Welcome, decode_frame, encode_frame
from zcompute.bus.limits import Limits

ATTRIBUTES = msgspec.msgpack.encode({"map_version": 7, "epochs": {"h1": 3}})
RELEASE = "0.1.0"
SEED_BYTES_MAX = 4_096  # a mutation copies its seed
BATCH = 16


def hello(service_id: str = "evil-1", link_number: int = 1, incarnation: str = "e1") -> Hello:
    """The hello of a compute."""
    return Hello(
        protocol_major=1, protocol_minor=1, link_number=link_number, service_id=service_id, incarnation=incarnation,
        role="compute", cell="c1", release="1.0", hosts=[], interfaces={"echo": ((1, 0), (1, 0))}, topics=["map"],
        attributes=ATTRIBUTES, report_credit=1_000, lane_credit=10,
    )  # fmt: skip


def welcome() -> Welcome:
    """A conductor's welcome."""
    return Welcome(**{name: getattr(hello("conductor-1"), name) for name in Hello.__struct_fields__})


def frames() -> list[bytes]:
    """Of each envelope one frame, one with all of them, and each repeated to a full batch."""
    golden = [entry.data for entry in corpus.read(RELEASE, "frames.jsonl")]
    batches = [encode_frame(decode_frame(frame, Limits()) * BATCH) for frame in golden]
    ours = [encode_frame([hello()]), encode_frame([welcome()])]
    return [frame for frame in golden + batches + ours if len(frame) <= SEED_BYTES_MAX]
