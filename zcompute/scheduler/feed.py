"""What conductors push, decoded into host states."""

import logging
from typing import Protocol

import msgspec

from zcompute.objects.host import HostState
from zcompute.objects.messages.cluster import PartitionSnapshotDone
from zcompute.objects.partition import PartitionMap
from zcompute.scheduler.host_states import HostStates

log = logging.getLogger(__name__)

_host_state = msgspec.msgpack.Decoder(HostState)
_snapshot_done = msgspec.msgpack.Decoder(PartitionSnapshotDone)
_partition_map = msgspec.msgpack.Decoder(PartitionMap)


class Payload(Protocol):
    """The part of a bus event that is read here."""

    @property
    def payload(self) -> bytes:
        """msgpack of the topic's object."""


class HostFeed:
    """Takes events into HostStates; ones that do not decode are counted and logged, and change nothing."""

    def __init__(self, states: HostStates) -> None:
        self._states = states
        self.refused = 0

    def on_host(self, sender: str, event: Payload) -> None:
        """Topic ``hosts``."""
        try:
            state = _host_state.decode(event.payload)
        except msgspec.MsgspecError as error:
            self._refuse("host state", sender, error)
            return
        missing = self._states.missing_partitions
        self._states.apply(state)
        self._say_when_complete(missing)

    def on_partition(self, sender: str, event: Payload) -> None:
        """Topic ``partitions``."""
        missing = self._states.missing_partitions
        try:
            done = _snapshot_done.decode(event.payload)
        except msgspec.MsgspecError as error:
            self._refuse("snapshot done", sender, error)
            return
        self._states.partition_done(done.partition, done.hosts)
        self._say_when_complete(missing)

    def map_of(self, sender: str, event: Payload) -> PartitionMap | None:
        """Topic ``map``: the map, None when it does not decode."""
        try:
            return _partition_map.decode(event.payload)
        except msgspec.MsgspecError as error:
            self._refuse("partition map", sender, error)
            return None

    def _say_when_complete(self, missing_before: int) -> None:
        if missing_before and not self._states.missing_partitions:
            log.info("all partitions known hosts=%d", len(self._states))

    def _refuse(self, what: str, sender: str, error: Exception) -> None:
        self.refused += 1
        log.warning("event refused what=%s peer=%s reason=%s", what, sender, error)
