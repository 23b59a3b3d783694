from tests.unit.scheduler.hosts import TINY, host_state, states_of
from zcompute.objects.flavor import Amounts
from zcompute.objects.partition import PARTITIONS, partition_of
from zcompute.scheduler.host_states import HostStates
from zcompute.scheduler.settings import SelectionSettings


def free_memory(states: HostStates, name: str) -> int:
    (row,) = states.rows([name])
    return int(states.view().free_memory_mb[row])


def test_the_newest_revision_wins_whatever_the_order():
    states = states_of(host_state("h1", revision=5, used=Amounts(memory_mb=1000)))
    assert not states.apply(host_state("h1", revision=4))
    assert not states.apply(host_state("h1", revision=5))
    assert free_memory(states, "h1") == 15384
    assert states.apply(host_state("h1", revision=6))
    assert free_memory(states, "h1") == 16384


def test_ratios_stretch_what_a_host_has():
    settings = SelectionSettings(cpu_allocation_ratio=2.0, ram_allocation_ratio=1.5, disk_allocation_ratio=0.5)
    view = states_of(host_state("h1", used=Amounts(vcpus=1, memory_mb=1, disk_gb=1)), settings=settings).view()
    assert (view.free_vcpus[0], view.free_memory_mb[0], view.free_disk_gb[0]) == (15, 24575, 49)


def test_a_partition_stays_known_when_its_owner_changes():
    states = states_of(partitions=255)
    assert states.missing_partitions == 1
    states.partition_done(255, hosts=0)
    assert states.missing_partitions == 0
    states.partition_done(255, hosts=9)
    assert states.missing_partitions == 0


def test_a_snapshot_whose_end_overtakes_its_hosts_is_not_complete_before_they_are_there():
    name = "h1"
    partition = partition_of(name)
    states = states_of(partitions=0)
    for other in range(PARTITIONS):
        states.partition_done(other, hosts=1 if other == partition else 0)
    assert states.missing_partitions == 1
    assert states.apply(host_state(name))
    assert states.missing_partitions == 0


def test_a_partition_with_more_hosts_than_the_limit_still_becomes_known():
    states = states_of(host_state("h1"), settings=SelectionSettings(hosts_max=1), partitions=0)
    for partition in range(PARTITIONS):
        states.partition_done(partition, hosts=2)
    assert states.missing_partitions == 0


def test_a_partition_out_of_range_is_ignored():
    states = states_of(partitions=0)
    states.partition_done(256, 0)
    states.partition_done(-1, 0)
    assert states.missing_partitions == 256


def test_what_was_given_away_counts_until_the_owner_speaks():
    states = states_of(host_state("h1"))
    states.consume(0, TINY, now=10.0)
    states.consume(0, TINY, now=10.1)
    assert free_memory(states, "h1") == 16384 - 1024
    states.apply(host_state("h1", revision=2, used=TINY))
    assert free_memory(states, "h1") == 16384 - 512


def test_what_was_given_away_comes_back_when_the_owner_says_nothing():
    states = states_of(host_state("h1"))
    states.consume(0, TINY, now=10.0)
    states.consume(0, TINY, now=12.0)
    states.expire(now=15.0)
    assert free_memory(states, "h1") == 16384 - 512
    states.expire(now=17.0)
    assert free_memory(states, "h1") == 16384


def test_an_old_consumption_does_not_come_back_on_top_of_a_newer_state():
    states = states_of(host_state("h1"))
    states.consume(0, TINY, now=10.0)
    states.apply(host_state("h1", revision=2, used=TINY))
    states.consume(0, TINY, now=11.0)
    states.expire(now=15.5)
    assert free_memory(states, "h1") == 16384 - 1024


def test_consumptions_are_bounded():
    states = states_of(host_state("h1"), settings=SelectionSettings(consumptions_max=2))
    for _ in range(3):
        states.consume(0, TINY, now=1.0)
    assert free_memory(states, "h1") == 16384 - 1024


def test_hosts_are_bounded():
    states = states_of(settings=SelectionSettings(hosts_max=1))
    assert states.apply(host_state("h1"))
    assert not states.apply(host_state("h2"))
    assert states.apply(host_state("h1", revision=2))


def test_columns_grow_with_the_cell():
    states = states_of(*(host_state(f"h{n}", used=Amounts(memory_mb=n)) for n in range(1000)))
    assert len(states) == len(states.view()) == 1000
    assert free_memory(states, "h0") == 16384
    assert free_memory(states, "h999") == 16384 - 999
