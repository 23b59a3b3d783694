"""Domains of instances that are deleted: a host that was forced down has them when it returns, and must destroy them.

A delete counts a forced-down host as done, and ends. When the host is back its agent reports all it has; a report of a
deleted instance is a ghost, and the instance's owner orders it destroyed, under the generation of that delete.
"""

import logging
from collections import deque

import gevent

from zcompute.bus.errors import BusError
from zcompute.conductor.change import Change
from zcompute.conductor.tasks.delete_walk import STEP_DESTROY
from zcompute.conductor.tasks.forgetting import Forgetting
from zcompute.conductor.tasks.run import TaskEnv
from zcompute.db.tables import INSTANCES
from zcompute.objects.command import DestroyRequest, Order
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.methods import DESTROY
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

PENDING_MAX = 10_000
Ghost = tuple[str, str]  # host, instance


class Ghosts:
    """One greenlet over a queue, as ghosts are few. What fails here is reported again when the agent begins anew."""

    def __init__(self, env: TaskEnv, forgetting: Forgetting) -> None:
        self._env = env
        self._forgetting = forgetting
        self._queue: deque[Ghost] = deque()
        self._known: set[Ghost] = set()
        self._greenlet: gevent.Greenlet | None = None
        self._stopped = False

    def suspect(self, host: str, uuid: str) -> None:
        """The host reports an instance that is said to be deleted. Must not block."""
        if self._stopped or (host, uuid) in self._known:
            return
        if len(self._queue) >= PENDING_MAX:
            log.warning("ghost left until its host begins anew, at pending_max=%s uuid=%s", PENDING_MAX, uuid)
            return
        self._known.add((host, uuid))
        self._queue.append((host, uuid))
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End; the next owner hears of them when the agent begins anew."""
        self._stopped = True
        self._queue.clear()
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _run(self) -> None:
        try:
            while self._queue:
                ghost = self._queue.popleft()
                try:
                    self._destroy(*ghost)
                except (BusError, ServiceError) as error:
                    log.info("ghost not destroyed host=%s uuid=%s error=%s", *ghost, error)
                finally:
                    self._known.discard(ghost)
        finally:
            self._greenlet = None

    def _destroy(self, host: str, uuid: str) -> None:
        """Raises BusError, ServiceError."""
        partition = partition_of(uuid)
        settings = self._env.settings

        def decide(change: Change) -> Instance | None:
            return change.get(INSTANCES, (uuid,))

        instance = self._env.ledger.commit(partition, [(INSTANCES, (uuid,))], decide, timeout_ms=settings.commit_ms_max)
        if instance is None or instance.vm_state != VM_DELETED or instance.task_id is not None:
            return
        order = Order(
            instance_uuid=uuid,
            host=host,
            partition=partition,
            owner_epoch=self._env.ledger.owner_epoch(partition),
            generation=instance.command_generation,
            task_id=f"ghost-{uuid}",
            step=STEP_DESTROY,
            attempt=1,
        )
        log.warning("ghost of a deleted instance is destroyed host=%s uuid=%s", host, uuid)
        self._env.commands.send(host, DESTROY, DestroyRequest(order=order), timeout_ms=settings.command_ms_max)
        self._forgetting.add(instance, order.task_id, [host])
