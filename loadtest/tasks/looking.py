"""What the cell's database says of servers and tasks, looked at again and again past every service."""

import time
from dataclasses import dataclass, field

import gevent

from zcompute.db.errors import StoreError
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.url import MariaDbTarget, parse_url

LOOK_S = 0.02
_SERVERS = b"SELECT uuid, vm_state, task_state, task_id, host, revision FROM instances WHERE vm_state <> 'deleted'"
_TASKS = b"SELECT id, partition_id, kind, step, state, revision FROM tasks"
_OWNERS = b"SELECT partition_id, owner_epoch FROM partitions"


@dataclass(frozen=True)
class Server:
    """A server's row."""

    vm_state: str
    task_state: str | None
    task_id: str | None
    host: str | None
    revision: int


@dataclass
class Look:
    """The newest of everything, and what has been gathered since the start.

    ``resumes_s``: for each task under way at a take-over's commit, how long until its row changed or went (an upper
    bound: looks are LOOK_S apart). ``under_way``: how many tasks each look found.
    """

    servers: dict[str, Server] = field(default_factory=dict)
    tasks: dict[str, tuple[int, str, str, str, int]] = field(default_factory=dict)
    resumes_s: list[float] = field(default_factory=list)
    under_way: list[int] = field(default_factory=list)
    steps: set[tuple[str, str]] = field(default_factory=set)


class Looking:
    """Looks until it is stopped. ``gathering``: whether what is found counts."""

    def __init__(self, url: str) -> None:
        target = parse_url(url)
        if not isinstance(target, MariaDbTarget):
            raise TypeError(f"expected a MariaDB, found {url}")
        self._target = target
        self._connection: Connection | None = None
        self._owners: dict[int, int] = {}
        self._waiting: dict[str, tuple[float, int]] = {}
        self.found = Look()
        self.gathering = False
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End, and raise what went wrong."""
        self._greenlet.kill()
        if self._connection is not None:
            self._connection.cut()

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except (StoreError, ServerError):
                self._connection = None
            gevent.sleep(LOOK_S)

    def _look(self) -> None:
        connection = self._connection = self._connection or Connection(self._target)
        owners = {int(partition): int(epoch) for partition, epoch in connection.rows(_OWNERS)}
        tasks = {
            task_id: (int(partition), kind, step, state, int(revision))
            for task_id, partition, kind, step, state, revision in connection.rows(_TASKS)
        }
        now_s = time.monotonic()
        servers = {
            uuid: Server(vm_state, task_state, task_id, host, int(revision))
            for uuid, vm_state, task_state, task_id, host, revision in connection.rows(_SERVERS)
        }
        if self.gathering:
            self._gather(owners, tasks, now_s)
        self._owners = owners
        self.found.servers, self.found.tasks = servers, tasks

    def _gather(self, owners: dict[int, int], tasks: dict[str, tuple[int, str, str, str, int]], now_s: float) -> None:
        found = self.found
        found.under_way.append(len(tasks))
        found.steps.update((kind, step) for _, kind, step, _, _ in tasks.values())
        for task_id, (since_s, revision) in list(self._waiting.items()):
            task = tasks.get(task_id)
            if task is None or task[4] != revision:
                found.resumes_s.append(now_s - since_s)
                del self._waiting[task_id]
        moved = {partition for partition, epoch in owners.items() if self._owners.get(partition, epoch) != epoch}
        for task_id, (partition, _, _, state, revision) in tasks.items():
            if partition in moved and state == "running":
                self._waiting[task_id] = (now_s, revision)

    def waiting(self) -> int:
        """Tasks that nobody has resumed yet."""
        return len(self._waiting)
