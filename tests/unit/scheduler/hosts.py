"""Host states for tests."""

from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HOST_UP, HostState
from zcompute.objects.partition import PARTITIONS, partition_of
from zcompute.scheduler.host_states import HostStates
from zcompute.scheduler.settings import SelectionSettings

TINY = Amounts(vcpus=1, memory_mb=512, disk_gb=1)


def host_state(name: str, **changes) -> HostState:
    fields = {
        "name": name,
        "partition": partition_of(name),
        "total": Amounts(vcpus=8, memory_mb=16384, disk_gb=100),
        "used": Amounts(),
        "instances": 0,
        "state": HOST_UP,
        "enabled": True,
        "availability_zone": "nova",
        "revision": 1,
    }
    return HostState(**(fields | changes))


def states_of(*hosts: HostState, settings: SelectionSettings | None = None, partitions: int = PARTITIONS) -> HostStates:
    states = HostStates(settings or SelectionSettings())
    for host in hosts:
        states.apply(host)
    for partition in range(partitions):
        states.partition_done(partition, 0)
    return states
