"""Domains that a host should have no more: it was forced down meanwhile, and must destroy them when it returns.

A delete counts a forced-down host as done, and ends; an evacuation leaves it out. When the host is back its agent
reports all it has; a report of a deleted instance is a ghost, and so is what the host's owner finds in quarantine. The
instance's owner orders it destroyed, under the generation that the instance has by now.
"""

import logging
from collections import deque

import gevent

from zcompute.bus.errors import BusError
from zcompute.conductor.change import Change
from zcompute.conductor.tasks.decision import counts_as_clean
from zcompute.conductor.tasks.delete_walk import STEP_DESTROY
from zcompute.conductor.tasks.forgetting import Forgetting
from zcompute.conductor.tasks.run import TaskEnv
from zcompute.db.errors import StoreError
from zcompute.db.tables import INSTANCES
from zcompute.objects.command import DestroyRequest, Order
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.methods import DESTROY
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task

log = logging.getLogger(__name__)

PENDING_MAX = 10_000
Ghost = tuple[str, str]  # host, instance


def has_left(instance: Instance, task: Task | None, host: str) -> bool:
    """Whether the instance has no business on this host (any more, or soon): it is deleted, of another host, or on its
    way to one without this host being asked (any more). ``task`` is the instance's. Pure."""
    if instance.vm_state == VM_DELETED:
        return True
    if task is not None and counts_as_clean(task, host):
        return True
    if task is not None and host in task.body.named_hosts:
        return False
    if instance.move is not None and instance.move.former_host == host:
        return False
    return instance.host != host or (task is not None and task.body.source == host)


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
        """The host has an instance that is said to be deleted, or elsewhere. Must not block."""
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
                except (BusError, ServiceError, StoreError) as error:
                    log.info("ghost not destroyed host=%s uuid=%s error=%s", *ghost, error)
                finally:
                    self._known.discard(ghost)
        finally:
            self._greenlet = None

    def _destroy(self, host: str, uuid: str) -> None:
        """Raises BusError, ServiceError, StoreError."""
        partition = partition_of(uuid)
        settings = self._env.settings

        def decide(change: Change) -> Instance | None:
            return change.get(INSTANCES, (uuid,))

        instance = self._env.ledger.commit(partition, [(INSTANCES, (uuid,))], decide, timeout_ms=settings.commit_ms_max)
        if instance is None or instance.task_id is not None or not has_left(instance, None, host):
            return
        if instance.vm_state != VM_DELETED and host not in self._env.forced_down([host]):
            return  # it is let in again by now, so it may be told of the instance by another way
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
        what = "a deleted instance" if instance.vm_state == VM_DELETED else "an instance that moved away"
        log.warning("ghost of %s is destroyed host=%s uuid=%s", what, host, uuid)
        self._env.commands.send(host, DESTROY, DestroyRequest(order=order), timeout_ms=settings.command_ms_max)
        self._forgetting.add(instance, order.task_id, [host])
