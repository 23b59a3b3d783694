import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scheduler.hosts import TINY, host_state, states_of
from zcompute.objects.errors import SchedulerStale
from zcompute.objects.flavor import Amounts
from zcompute.objects.messages.hosts import SelectRequest
from zcompute.scheduler.errors import SelectionRefused
from zcompute.scheduler.selection import select
from zcompute.scheduler.settings import SelectionSettings

SETTINGS = SelectionSettings()
BEST_ONLY = SelectionSettings(host_subset_size=1)


def ask(states, count=1, *, settings=SETTINGS, seed=0, now=0.0, amounts=TINY, **fields):
    request = SelectRequest(instance_uuids=[f"u{n}" for n in range(count)], amounts=amounts, **fields)
    return select(states, request, settings, np.random.default_rng(seed), now)


def test_it_refuses_until_every_partition_is_known():
    with pytest.raises(SchedulerStale) as caught:
        ask(states_of(host_state("h1"), partitions=255))
    assert caught.value.details == {"missing": 1}


def test_the_host_with_most_free_memory_comes_first():
    states = states_of(*(host_state(f"h{n}", used=Amounts(memory_mb=n * 100)) for n in range(9)), settings=BEST_ONLY)
    reply = ask(states, settings=BEST_ONLY, alternates=2)
    assert reply.hosts == [["h0", "h1", "h2"]]
    assert reply.reasons == {}


def test_racing_schedulers_choose_different_ones_of_the_best_few():
    chosen = {
        ask(states_of(*(host_state(f"h{n}", used=Amounts(memory_mb=n)) for n in range(20))), seed=seed).hosts[0][0]
        for seed in range(60)
    }
    assert chosen == {f"h{n}" for n in range(5)}


def test_equal_hosts_are_all_chosen_in_time():
    hosts = [host_state(f"h{n}") for n in range(20)]
    chosen = {ask(states_of(*hosts), seed=seed, settings=BEST_ONLY).hosts[0][0] for seed in range(300)}
    assert len(chosen) == 20


def test_a_burst_spreads_over_the_hosts():
    states = states_of(*(host_state(f"h{n}") for n in range(10)), settings=BEST_ONLY)
    chosen = [ask(states, settings=BEST_ONLY, seed=n).hosts[0][0] for n in range(30)]
    assert {chosen.count(f"h{n}") for n in range(10)} == {3}


def test_one_call_for_many_never_gives_more_than_there_is():
    states = states_of(host_state("h1", total=Amounts(vcpus=8, memory_mb=1024, disk_gb=100)))
    reply = ask(states, 4)
    assert [hosts[:1] for hosts in reply.hosts] == [["h1"], ["h1"], [], []]
    assert reply.reasons == {"RamFilter": 1}


def test_each_filter_counts_whom_it_turned_away():
    states = states_of(
        host_state("ignored"),
        host_state("down", state="down"),
        host_state("unknown", state="unknown"),
        host_state("disabled", enabled=False),
        host_state("elsewhere", availability_zone="az2"),
        host_state("memory", used=Amounts(memory_mb=16000)),
        host_state("cores", used=Amounts(vcpus=128)),
        host_state("disk", used=Amounts(disk_gb=100)),
    )
    reply = ask(states, availability_zone="nova", ignore_hosts=["ignored", "never seen"])
    assert reply.hosts == [[]]
    assert reply.reasons == {
        "IgnoreHostsFilter": 1,
        "ComputeFilter": 3,
        "AvailabilityZoneFilter": 1,
        "RamFilter": 1,
        "CoreFilter": 1,
        "DiskFilter": 1,
    }


def test_an_unknown_zone_has_no_host():
    reply = ask(states_of(host_state("h1")), availability_zone="mars")
    assert reply.hosts == [[]]
    assert reply.reasons == {"AvailabilityZoneFilter": 1}


def test_without_any_host_there_is_nothing_to_count():
    reply = ask(states_of())
    assert reply.hosts == [[]]
    assert reply.reasons == {}


def test_an_instance_never_overcommits_against_itself():
    states = states_of(host_state("h1", total=Amounts(vcpus=4, memory_mb=16384, disk_gb=100)))
    assert ask(states, amounts=Amounts(vcpus=5, memory_mb=1, disk_gb=1)).reasons == {"CoreFilter": 1}


@pytest.mark.parametrize(
    ("count", "fields", "field"),
    [
        (1001, {}, "instance_uuids"),
        (1, {"alternates": 17}, "alternates"),
        (1, {"alternates": -1}, "alternates"),
        (1, {"amounts": Amounts(vcpus=-1)}, "amounts"),
    ],
)
def test_a_request_beyond_the_limits_is_refused_by_field(count, fields, field):
    with pytest.raises(SelectionRefused, match=field) as caught:
        ask(states_of(host_state("h1")), count, **fields)
    assert caught.value.for_the_wire().field == field


amounts = st.builds(Amounts, vcpus=st.integers(0, 4), memory_mb=st.integers(0, 4096), disk_gb=st.integers(0, 40))


@given(
    hosts=st.lists(st.tuples(amounts, st.sampled_from(["up", "down", "unknown"]), st.booleans()), max_size=12),
    wanted=amounts,
    count=st.integers(1, 8),
    alternates=st.integers(0, 4),
    seed=st.integers(0, 2**32),
)
def test_every_host_named_has_room_and_no_host_is_named_twice(hosts, wanted, count, alternates, seed):
    known = [
        host_state(f"h{n}", used=used, state=state, enabled=enabled, total=Amounts(vcpus=4, memory_mb=4096, disk_gb=40))
        for n, (used, state, enabled) in enumerate(hosts)
    ]
    settings = SelectionSettings(cpu_allocation_ratio=1.0)
    reply = ask(states_of(*known, settings=settings), count, settings=settings, seed=seed, amounts=wanted,
                alternates=alternates)  # fmt: skip
    room = {host.name: host.total.minus(host.used) for host in known if host.state == "up" and host.enabled}
    assert len(reply.hosts) == count
    for chosen in reply.hosts:
        assert len(set(chosen)) == len(chosen) <= alternates + 1
        for name in chosen:
            assert wanted.fits_in(room[name])
        if chosen:
            room[chosen[0]] = room[chosen[0]].minus(wanted)
        else:
            assert not any(wanted.fits_in(left) for left in room.values())


def test_only_the_hosts_that_are_named_are_looked_at_and_the_others_are_counted():
    states = states_of(*(host_state(f"h{n}") for n in range(5)))
    assert sorted(ask(states, only_hosts=["h1", "h3", "never seen"], alternates=4).hosts[0]) == ["h1", "h3"]
    assert ask(states, only_hosts=["h1"], ignore_hosts=["h1"]).reasons == {
        "IgnoreHostsFilter": 1,
        "ServerGroupAffinityFilter": 4,
    }
    reply = ask(states, only_hosts=["never seen"])
    assert (reply.hosts, reply.reasons) == ([[]], {"ServerGroupAffinityFilter": 5})
