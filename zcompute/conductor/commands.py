"""Commands to agents: which link reaches which host, and the order that each command carries."""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from zcompute.bus import Link
from zcompute.bus.errors import LinkDown
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.ways import Ways
from zcompute.objects.command import Order
from zcompute.objects.instance import Instance
from zcompute.objects.interface import Method
from zcompute.objects.methods import ADOPT, DESTROY, DOMAINS, FORGET
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task

log = logging.getLogger(__name__)

# What a host that is forced down may still be told: to say what it has, and to destroy it.
QUARANTINED_TAKES = frozenset({ADOPT.name, DESTROY.name, DOMAINS.name, FORGET.name})


class Commands:
    """The table host -> link, fed by ``host.attach`` and by links going down, and calls over it.

    A host that is not attached here is reached over another conductor (``ways``), with the same order: its agent judges
    the owner's epoch whoever hands the order on.
    """

    def __init__(self, ledger: Ledger, ways: Ways | None = None) -> None:
        self._ledger = ledger
        self._ways = ways
        self._links: dict[str, Link] = {}
        self._on_attach: list[Callable[[str], None]] = []
        self._on_forced_down: list[Callable[[str], None]] = []
        self._forced_down: set[str] = set()
        if ways is not None:
            ways.on_found = self._reached

    def on_attach(self, callback: Callable[[str], None]) -> None:
        """Call with each host that has become reachable. Must not block."""
        self._on_attach.append(callback)

    def attach(self, host: str, link: Link) -> None:
        """The host's agent has been let in on this link; a later attachment replaces an earlier one."""
        self._links[host] = link
        if self._ways is not None:
            self._ways.forget(host)
        self._reached(host)

    def _reached(self, host: str) -> None:
        for callback in self._on_attach:
            callback(host)

    def detach(self, host: str, link: Link) -> None:
        """The host is no longer to be reached over this link."""
        if self._links.get(host) is link:
            del self._links[host]

    def on_forced_down(self, callback: Callable[[str], None]) -> None:
        """Call with each host that is forced down from now on. Must not block."""
        self._on_forced_down.append(callback)

    def force_down(self, host: str, forced_down: bool) -> None:
        """What was committed of the host. One that is forced down is quarantined, whether it is linked or not."""
        if not forced_down:
            self._forced_down.discard(host)
        elif host not in self._forced_down:
            self._forced_down.add(host)
            for callback in self._on_forced_down:
                callback(host)

    def is_forced_down(self, host: str) -> bool:
        """Whether it is known here that the host is forced down. The rows at the primary may say more."""
        return host in self._forced_down

    def reaches(self, host: str, method: Method) -> bool:
        """Whether this can be sent to the host now: there is a way, and the host may be told this."""
        return not self._quarantined(host, method) and self.has_way(host)

    def has_way(self, host: str) -> bool:
        """Whether the host's agent can be reached. If not, others are asked; ``on_attach`` tells of a way."""
        return self.link(host) is not None or (self._ways is not None and self._ways.has(host))

    def link(self, host: str) -> Link | None:
        """The own link that reaches the host, None while there is none."""
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
        """Call the host's agent. Raises LinkDown when no way reaches it, or it is forced down and this is not for it;
        CommandRefused, and the bus' errors."""
        if self._quarantined(host, method):
            raise LinkDown(f"host {host} is forced down: it is not told to {method.name}")
        link = self.link(host)
        if link is not None:
            return link.call(method, request, timeout_ms=timeout_ms)
        if self._ways is None:
            raise LinkDown(f"no link reaches host {host}")
        return self._ways.send(host, method, request, timeout_ms=timeout_ms)

    def _quarantined(self, host: str, method: Method) -> bool:
        return host in self._forced_down and method.name not in QUARANTINED_TAKES
