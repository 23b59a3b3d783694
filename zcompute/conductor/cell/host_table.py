"""The hosts of the owned partitions, as last committed: what capacity, scheduler feed and liveness look at."""

from collections.abc import Callable, Iterable, Iterator

from zcompute.objects.host import Host
from zcompute.objects.partition import partition_of


class HostTable:
    """In memory, newest revision wins; every change is told to the listeners. Rows of partitions that are not held
    (a commit that ended after the loss) are ignored."""

    def __init__(self) -> None:
        self._by_partition: dict[int, dict[str, Host]] = {}
        self._listeners: list[Callable[[Host], None]] = []

    def on_change(self, listener: Callable[[Host], None]) -> None:
        """Call with every newer row. Must not block."""
        self._listeners.append(listener)

    def hold(self, partitions: Iterable[int]) -> None:
        """These are owned from now on; their rows are still to come."""
        for partition in partitions:
            self._by_partition.setdefault(partition, {})

    def put(self, host: Host) -> None:
        """A committed row."""
        rows = self._by_partition.get(partition_of(host.name))
        if rows is None:
            return
        known = rows.get(host.name)
        if known is not None and known.revision >= host.revision:
            return
        rows[host.name] = host
        for listener in self._listeners:
            listener(host)

    def drop(self, partitions: Iterable[int]) -> list[str]:
        """These partitions are others'; returns the hosts that were in them."""
        return [name for partition in partitions for name in self._by_partition.pop(partition, {})]

    def get(self, name: str) -> Host | None:
        """One host, None when it is not in a held partition."""
        return self._by_partition.get(partition_of(name), {}).get(name)

    def of_partition(self, partition: int) -> list[Host]:
        """The hosts of one partition."""
        return list(self._by_partition.get(partition, {}).values())

    def __iter__(self) -> Iterator[Host]:
        return (host for rows in list(self._by_partition.values()) for host in list(rows.values()))

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._by_partition.values())
