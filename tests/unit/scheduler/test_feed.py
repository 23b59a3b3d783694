from collections import namedtuple

import msgspec

from tests.unit.scheduler.hosts import host_state
from zcompute.objects.messages.cluster import PartitionSnapshotDone
from zcompute.objects.partition import PartitionMap
from zcompute.scheduler.feed import HostFeed
from zcompute.scheduler.host_states import HostStates
from zcompute.scheduler.settings import SelectionSettings

Pushed = namedtuple("Pushed", "payload")
encode = msgspec.msgpack.encode


def test_events_become_host_states():
    states = HostStates(SelectionSettings())
    feed = HostFeed(states)
    feed.on_host("peer", Pushed(encode(host_state("h1"))))
    for partition in range(256):
        feed.on_partition("peer", Pushed(encode(PartitionSnapshotDone(partition=partition, owner_epoch=1))))
    assert (len(states), states.missing_partitions, feed.refused) == (1, 0, 0)


def test_a_malformed_event_is_counted_and_changes_nothing():
    states = HostStates(SelectionSettings())
    feed = HostFeed(states)
    feed.on_host("peer", Pushed(b"\xc1"))
    feed.on_partition("peer", Pushed(encode({"partition": "three", "owner_epoch": 1})))
    assert feed.map_of("peer", Pushed(b"")) is None
    assert (len(states), states.missing_partitions, feed.refused) == (0, 256, 3)


def test_a_map_is_read():
    pushed = PartitionMap(cell="c1", version=3)
    assert HostFeed(HostStates(SelectionSettings())).map_of("peer", Pushed(encode(pushed))) == pushed
