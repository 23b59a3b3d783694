"""Moving every server off one host: looks at the cell's rows, asks for what zcompute.cli.draining decides."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import gevent
from gevent.pool import Pool
from rich.progress import Progress

from zcompute.bus.errors import BusError
from zcompute.cli.draining import EVACUATION, Ask, Draining, Look
from zcompute.cli.exits import CommandError
from zcompute.cli.operator import Operator
from zcompute.objects.errors import InstanceNotFound, ServiceError
from zcompute.objects.host import HOST_UP, Host
from zcompute.objects.instance import VM_RESIZED, Instance
from zcompute.objects.messages.instances import (
    InstanceActionRequest,
    InstanceActionsReply,
    InstanceGetRequest,
    InstanceListReply,
    InstanceQuery,
)
from zcompute.objects.messages.topology import HostListReply, HostListRequest
from zcompute.objects.methods import HOST_LIST, INSTANCE_ACTION, INSTANCE_HISTORY, INSTANCE_LIST

ASK_MS_MAX = 10_000
LOOK_S = 0.5
HOST_LOOK_S = 5.0
SILENT_S_MAX = 60.0  # the cell does not answer for so long: it is begun again later
PAGE_ROWS = 500
PAGES_MAX = 200
EXPLAINED_MAX = 100


class HostUnfit(CommandError):
    """The host's state does not allow this."""


def check_host(row: Host, way: str) -> None:
    """Raises HostUnfit."""
    if way == EVACUATION:
        if not row.forced_down:
            raise HostUnfit(
                f"host {row.name} is not forced down: make sure that it is off, then `zcompute host force-down`"
            )
        return
    if row.forced_down or row.state != HOST_UP:
        state = "forced down" if row.forced_down else row.state
        raise HostUnfit(
            f"host {row.name} is {state}: its servers cannot be moved off. Should it be off: `zcompute host "
            "force-down`, then `zcompute host evacuate`"
        )


@dataclass
class Outcome:
    """What a drain came to. ``timed_out``: there was more to do."""

    cell: str
    host: str
    servers: int = 0
    left: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    timed_out: bool = False

    @property
    def on_host(self) -> int:
        return len(self.names)


class Drain:
    """One host's servers, moved over the operator's bus. ``timeout_s`` is of all of it."""

    def __init__(self, operator: Operator, cell: str, host: str, way: str, parallel: int, timeout_s: float) -> None:
        self._operator = operator
        self._cell = cell
        self._host = host
        self._way = way
        self._draining = Draining(host, way, parallel)
        self._pool = Pool(parallel)
        self._ends_at_s = time.monotonic() + timeout_s
        self._heard_at_s = time.monotonic()
        self._host_at_s = time.monotonic()

    def plan(self) -> Look:
        """What the first look comes to; nothing is asked for."""
        return Draining(self._host, self._way, PAGE_ROWS * PAGES_MAX).look(self._instances())

    def run(self, progress: Progress) -> Outcome:
        """Until the host is empty, nothing more can be done, or the time is over. Raises CommandError."""
        bar = progress.add_task(self._host, total=None)
        outcome = Outcome(self._cell, self._host)
        while True:
            look = self._look()
            if look is not None:
                outcome.servers = max(outcome.servers, look.on_host)
                progress.update(bar, total=max(1, outcome.servers), completed=outcome.servers - look.on_host)
                outcome.left, outcome.names = look.left, look.names
                if look.over:
                    self._explain(outcome)
                    return outcome
            if time.monotonic() > self._ends_at_s:
                outcome.timed_out = True
                return outcome
            gevent.sleep(LOOK_S)

    def _look(self) -> Look | None:
        """One look and what it asks for; None while the cell does not answer."""
        try:
            self._check_host()
            look = self._draining.look(self._instances())
        except (CommandError, BusError) as error:
            if isinstance(error, HostUnfit) or time.monotonic() - self._heard_at_s > SILENT_S_MAX:
                raise
            return None
        self._heard_at_s = time.monotonic()
        for instance, ask in look.asks:
            self._pool.spawn(self._ask, instance, ask)
        self._pool.join()
        return look

    def _check_host(self) -> None:
        if time.monotonic() - self._host_at_s < HOST_LOOK_S:
            return
        reply: HostListReply = self._operator.ask_cell(
            self._cell, HOST_LIST, HostListRequest(name=self._host), ASK_MS_MAX
        )
        check_host(reply.hosts[0], self._way)
        self._host_at_s = time.monotonic()

    def _ask(self, instance: Instance, ask: Ask) -> None:
        """An answer that is lost is no matter: the same is asked for again at the next look."""
        request = InstanceActionRequest(
            uuid=instance.uuid,
            project_id=instance.project_id,
            operation_id=ask.operation_id,
            action=ask.action,
            arguments=ask.arguments,
            administrator=True,
        )
        try:
            self._operator.ask_cell(self._cell, INSTANCE_ACTION, request, ASK_MS_MAX)
        except InstanceNotFound:
            return  # deleted meanwhile
        except ServiceError as error:
            self._draining.refused(instance, ask, error.message)
        except (CommandError, BusError):
            return

    def _instances(self) -> Iterator[Instance]:
        """Those on the host, and those whose copy may be there still."""
        seen: set[str] = set()
        for query in (
            InstanceQuery(project_id=None, limit=PAGE_ROWS, host=self._host),
            InstanceQuery(project_id=None, limit=PAGE_ROWS, vm_states=[VM_RESIZED]),
        ):
            for instance in self._pages(query):
                if instance.uuid not in seen:
                    seen.add(instance.uuid)
                    yield instance

    def _pages(self, query: InstanceQuery) -> Iterator[Instance]:
        for _ in range(PAGES_MAX):
            page: InstanceListReply = self._operator.ask_cell(self._cell, INSTANCE_LIST, query, ASK_MS_MAX)
            yield from page.instances
            if not page.cut and len(page.instances) < query.limit:
                return
            last = page.instances[-1]
            query.after = [last.created_at_us, last.uuid]
        raise CommandError(f"more than {PAGES_MAX * PAGE_ROWS} servers to look at in cell {self._cell}: not drained")

    def _explain(self, outcome: Outcome) -> None:
        """Why those could not be moved that were tried: by their own histories."""
        for uuid, reason in list(outcome.left.items())[:EXPLAINED_MAX]:
            operation_id = self._draining.asked.get(uuid)
            if reason or operation_id is None:
                continue
            try:
                reply: InstanceActionsReply = self._operator.ask_cell(
                    self._cell, INSTANCE_HISTORY, InstanceGetRequest(uuid=uuid, project_id=None), ASK_MS_MAX
                )
            except (CommandError, BusError, ServiceError):
                continue
            told = [action.message for action in reply.actions if action.operation_id == operation_id]
            outcome.left[uuid] = told[0] if told and told[0] else "its moves have failed"
