"""The hosts of a cell as columns: what their owners last said, less what this scheduler has just given away."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HOST_UP, HostState
from zcompute.objects.partition import PARTITIONS
from zcompute.scheduler.settings import SelectionSettings

IntColumn = NDArray[np.int64]
BoolColumn = NDArray[np.bool_]

_ROWS_AT_FIRST = 256


@dataclass(frozen=True)
class View:
    """The columns of all known hosts, one row a host; read only while nothing is applied.

    ``free_*`` are after allocation ratios, claims and optimistic consumption; they may be negative.
    """

    usable: BoolColumn
    zones: IntColumn
    total_vcpus: IntColumn
    total_memory_mb: IntColumn
    free_vcpus: IntColumn
    free_memory_mb: IntColumn
    free_disk_gb: IntColumn

    def __len__(self) -> int:
        return len(self.usable)


@dataclass(frozen=True)
class _Consumption:
    row: int
    heard: int
    expires_at: float
    amounts: Amounts


class HostStates:
    """Host states fed by `state` events; the newest revision of a host wins, whoever sends it.

    A partition is known once all the hosts that some owner has announced for it have arrived (events of different
    keys may overtake one another); it stays known when its owner changes (the next owner says the same hosts again,
    and a claim is what decides in the end).
    """

    def __init__(self, settings: SelectionSettings) -> None:
        self._settings = settings
        self._row_of: dict[str, int] = {}
        self._names: list[str] = []
        self._zone_ids: dict[str, int] = {}
        self._announced: dict[int, int] = {}  # partitions whose announced hosts have not all arrived
        self._known: set[int] = set()
        self._hosts_of_partition: dict[int, int] = {}
        self._consumptions: deque[_Consumption] = deque()
        self._heard: list[int] = []  # per row: how many states were taken; ties a consumption to what it was based on
        self._numbers: NDArray[np.int64] = np.zeros((_COLUMNS, _ROWS_AT_FIRST), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def missing_partitions(self) -> int:
        """How many partitions no owner has given a snapshot of."""
        return PARTITIONS - len(self._known)

    def apply(self, state: HostState) -> bool:
        """Take a host's state; False when a newer or the same one is known, or hosts_max is reached."""
        row = self._row_of.get(state.name)
        if row is None:
            if len(self._names) >= self._settings.hosts_max:
                return False
            row = self._new_row(state.name)
            self._hosts_of_partition[state.partition] = self._hosts_of_partition.get(state.partition, 0) + 1
            self._complete(state.partition)
        elif state.revision <= self._numbers[_REVISION, row]:
            return False
        numbers = self._numbers
        numbers[_REVISION, row] = state.revision
        numbers[_USABLE, row] = state.state == HOST_UP and state.enabled
        numbers[_ZONE, row] = self._zone_ids.setdefault(state.availability_zone, len(self._zone_ids))
        numbers[_TOTAL_VCPUS, row] = state.total.vcpus
        numbers[_TOTAL_MEMORY, row] = state.total.memory_mb
        numbers[_TOTAL_DISK, row] = state.total.disk_gb
        numbers[_USED_VCPUS, row] = state.used.vcpus
        numbers[_USED_MEMORY, row] = state.used.memory_mb
        numbers[_USED_DISK, row] = state.used.disk_gb
        numbers[_GIVEN_VCPUS : _GIVEN_DISK + 1, row] = 0
        self._heard[row] += 1
        return True

    def partition_done(self, partition: int, hosts: int) -> None:
        """An owner has sent all ``hosts`` of its partition. Numbers outside the partitions are ignored."""
        if 0 <= partition < PARTITIONS and partition not in self._known:
            self._announced[partition] = hosts
            self._complete(partition)

    def _complete(self, partition: int) -> None:
        announced = self._announced.get(partition)
        if announced is None:
            return
        if self._hosts_of_partition.get(partition, 0) >= announced or len(self._names) >= self._settings.hosts_max:
            del self._announced[partition]
            self._known.add(partition)

    def consume(self, row: int, amounts: Amounts, now: float) -> None:
        """Take amounts off a host at once, until its owner says more or consumption_ttl_s passes."""
        if len(self._consumptions) >= self._settings.consumptions_max:
            self._give_back(self._consumptions.popleft())
        self._numbers[_GIVEN_VCPUS : _GIVEN_DISK + 1, row] += (amounts.vcpus, amounts.memory_mb, amounts.disk_gb)
        expires_at = now + self._settings.consumption_ttl_s
        self._consumptions.append(_Consumption(row, self._heard[row], expires_at, amounts))

    def expire(self, now: float) -> None:
        """Give back consumptions that no owner has confirmed in time."""
        while self._consumptions and self._consumptions[0].expires_at <= now:
            self._give_back(self._consumptions.popleft())

    def view(self) -> View:
        """The columns as they are now."""
        count, numbers, settings = len(self._names), self._numbers, self._settings

        def free(total: int, used: int, given: int, ratio: float) -> IntColumn:
            room: IntColumn = (numbers[total, :count] * ratio).astype(np.int64)
            return room - numbers[used, :count] - numbers[given, :count]

        return View(
            usable=numbers[_USABLE, :count].astype(np.bool_),
            zones=numbers[_ZONE, :count],
            total_vcpus=numbers[_TOTAL_VCPUS, :count],
            total_memory_mb=numbers[_TOTAL_MEMORY, :count],
            free_vcpus=free(_TOTAL_VCPUS, _USED_VCPUS, _GIVEN_VCPUS, settings.cpu_allocation_ratio),
            free_memory_mb=free(_TOTAL_MEMORY, _USED_MEMORY, _GIVEN_MEMORY, settings.ram_allocation_ratio),
            free_disk_gb=free(_TOTAL_DISK, _USED_DISK, _GIVEN_DISK, settings.disk_allocation_ratio),
        )

    def name(self, row: int) -> str:
        """The host in a row."""
        return self._names[row]

    def zone_id(self, zone: str) -> int:
        """Number of an availability zone as the columns hold it, -1 for one that no host is in."""
        return self._zone_ids.get(zone, -1)

    def rows(self, names: Iterable[str]) -> list[int]:
        """Rows of those hosts that are known."""
        return [row for row in map(self._row_of.get, names) if row is not None]

    def _new_row(self, name: str) -> int:
        row = len(self._names)
        if row == self._numbers.shape[1]:
            self._numbers = np.concatenate([self._numbers, np.zeros_like(self._numbers)], axis=1)
        self._row_of[name] = row
        self._names.append(name)
        self._heard.append(0)
        return row

    def _give_back(self, consumption: _Consumption) -> None:
        if self._heard[consumption.row] == consumption.heard:
            given = consumption.amounts
            column = self._numbers[_GIVEN_VCPUS : _GIVEN_DISK + 1, consumption.row]
            column -= (given.vcpus, given.memory_mb, given.disk_gb)


(
    _REVISION,
    _USABLE,
    _ZONE,
    _TOTAL_VCPUS,
    _TOTAL_MEMORY,
    _TOTAL_DISK,
    _USED_VCPUS,
    _USED_MEMORY,
    _USED_DISK,
    _GIVEN_VCPUS,
    _GIVEN_MEMORY,
    _GIVEN_DISK,
) = range(12)
_COLUMNS = 12
