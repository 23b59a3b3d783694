"""What a read needs to see."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """PRIMARY: the primary's rows. CURRENT: all that had committed when the read was asked for. STALE: it may be
    somewhat old, and a miss is confirmed at the primary."""

    PRIMARY = "primary"
    CURRENT = "current"
    STALE = "stale"


@dataclass(frozen=True)
class Need:
    """A read's. ``lag_ms_max`` is for STALE: how old what is shown may be at most."""

    kind: Kind
    lag_ms_max: int = 0


PRIMARY = Need(Kind.PRIMARY)
CURRENT = Need(Kind.CURRENT)


def stale(lag_ms_max: int) -> Need:
    """At most so old. Where no replica is known to be so near, the read is CURRENT."""
    return Need(Kind.STALE, lag_ms_max)
