"""What any conductor says to anybody."""

import msgspec

from zcompute.objects.partition import PartitionMap


class Empty(msgspec.Struct):
    """Nothing but success."""


class HostEpoch(msgspec.Struct, kw_only=True):
    """A host's present agent epoch, and whether it is forced down, as committed. The event's version is the row's
    revision."""

    host: str
    agent_epoch: int
    forced_down: bool = False


class PartitionSnapshotDone(msgspec.Struct, kw_only=True):
    """The sender owns ``partition`` since ``owner_epoch`` and has sent all its ``hosts`` (their number).

    Events of different keys may overtake one another: the snapshot is complete when so many hosts have arrived.
    """

    partition: int
    owner_epoch: int
    hosts: int = 0


class MapReply(msgspec.Struct, kw_only=True):
    map: PartitionMap
