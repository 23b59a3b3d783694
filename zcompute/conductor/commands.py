"""Commands to agents: which link reaches which host, and the order that each command carries."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from zcompute.bus import Link
from zcompute.bus.errors import LinkDown
from zcompute.conductor.ledger import Ledger
from zcompute.objects.command import Order
from zcompute.objects.instance import Instance
from zcompute.objects.methods import Method
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task

log = logging.getLogger(__name__)


class Commands:
    """The table host -> link, fed by ``host.attach`` and by links going down, and calls over it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._links: dict[str, Link] = {}
        self._on_attach: list[Callable[[str], None]] = []

    def on_attach(self, callback: Callable[[str], None]) -> None:
        """Call with each host that has become reachable. Must not block."""
        self._on_attach.append(callback)

    def attach(self, host: str, link: Link) -> None:
        """The host's agent has been let in on this link; a later attachment replaces an earlier one."""
        self._links[host] = link
        for callback in self._on_attach:
            callback(host)

    def detach(self, host: str, link: Link) -> None:
        """The host is no longer to be reached over this link."""
        if self._links.get(host) is link:
            del self._links[host]

    def link(self, host: str) -> Link | None:
        """The link that reaches the host, None while there is none."""
        link = self._links.get(host)
        return link if link is not None and link.up else None

    def order(self, instance: Instance, task: Task, host: str, *, reporter_generation: int = 0) -> Order:
        """The order of the task's present step. Raises NotOwner when the instance's partition is lost."""
        partition = partition_of(instance.uuid)
        return Order(
            instance_uuid=instance.uuid,
            host=host,
            partition=partition,
            owner_epoch=self._ledger.owner_epoch(partition),
            generation=instance.command_generation,
            task_id=task.id,
            step=task.step,
            attempt=task.attempt,
            reporter_generation=reporter_generation,
        )

    def send(self, host: str, method: Method, request: msgspec.Struct, *, timeout_ms: int) -> Any:
        """Call the host's agent. Raises LinkDown when no link reaches it, CommandRefused, and the bus' errors."""
        link = self.link(host)
        if link is None:
            raise LinkDown(f"no link reaches host {host}")
        return link.call(method, request, timeout_ms=timeout_ms)
