"""After a task's end its hosts may forget its commands: told late enough that none of them is still on its way.

Best effort: what a dying conductor does not tell stays at the agent as a tombstone.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import gevent

from zcompute.bus.errors import BusError
from zcompute.conductor.tasks.run import TaskEnv
from zcompute.objects.command import ForgetRequest, Order
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import Instance
from zcompute.objects.methods import FORGET
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

PENDING_MAX = 50_000
TICK_S = 1.0
FORGET_STEP = "forget"


@dataclass(frozen=True)
class _Due:
    at: float
    instance: Instance
    task_id: str
    host: str


class Forgetting:
    """A queue of what may be forgotten, and the greenlet that says so."""

    def __init__(self, env: TaskEnv) -> None:
        self._env = env
        self._queue: deque[_Due] = deque()
        self._greenlet: gevent.Greenlet | None = None

    def add(self, instance: Instance, task_id: str, hosts: Iterable[str]) -> None:
        """These hosts had commands of a task that has ended."""
        at = time.monotonic() + 2 * self._env.settings.command_ms_max / 1000
        for host in hosts:
            if len(self._queue) >= PENDING_MAX:
                dropped = self._queue.popleft()
                log.warning("forget dropped at pending_max=%s uuid=%s", PENDING_MAX, dropped.instance.uuid)
            self._queue.append(_Due(at, instance, task_id, host))

    def start(self) -> None:
        """Begin."""
        self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        """End; what was not told stays at the agents."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _loop(self) -> None:
        while True:
            gevent.sleep(TICK_S)
            now = time.monotonic()
            while self._queue and self._queue[0].at <= now:
                self._tell(self._queue.popleft())

    def _tell(self, due: _Due) -> None:
        partition = partition_of(due.instance.uuid)
        try:
            order = Order(
                instance_uuid=due.instance.uuid,
                host=due.host,
                partition=partition,
                owner_epoch=self._env.ledger.owner_epoch(partition),
                generation=due.instance.command_generation,
                task_id=due.task_id,
                step=FORGET_STEP,
                attempt=0,
            )
            self._env.commands.send(
                due.host, FORGET, ForgetRequest(order=order), timeout_ms=self._env.settings.command_ms_max
            )
        except (BusError, ServiceError) as error:
            log.debug("forget not told uuid=%s host=%s error=%s", due.instance.uuid, due.host, type(error).__name__)
