"""The methods that conductors call: decide, record, answer at once; the work follows in a worker."""

import logging
import time
from functools import partial

from zcompute.bus import Busy, CallContext, Endpoint, InvalidRequest
from zcompute.bus.context import request_id
from zcompute.compute.doubt import Doubt
from zcompute.compute.errors import CommandsFull, DriverError, WorkersFull
from zcompute.compute.fences import EPOCH_MAX, Fences
from zcompute.compute.generations import COMMAND_DESTROY, COMMAND_SPAWN, Finding, Generations, Step
from zcompute.compute.hosts import Hosts
from zcompute.compute.reporter import Reporter
from zcompute.compute.settings import Settings
from zcompute.compute.steps import Steps
from zcompute.compute.verbs import BESIDE, VERBS
from zcompute.compute.virt.driver import Domain, Driver
from zcompute.compute.workers import Work, Workers
from zcompute.failpoints import failpoint
from zcompute.objects.command import (
    AdoptRequest,
    CommandReply,
    DestroyRequest,
    DomainsReply,
    DomainsRequest,
    ForgetRequest,
    Order,
    SpawnRequest,
    StepRequest,
)
from zcompute.objects.errors import CommandRefused, HostNotFound
from zcompute.objects.methods import ADOPT, DESTROY, DOMAINS, FORGET, SPAWN, STEP
from zcompute.objects.partition import PARTITIONS, partition_of
from zcompute.objects.report import OUTCOME_DONE

log = logging.getLogger(__name__)

DOMAINS_ROWS_MAX = 1000

OrderKey = tuple[str, str, int, str, str, int]


class Commands:
    """Handlers of SPAWN, DESTROY, STEP, ADOPT, FORGET and DOMAINS.

    All raise HostNotFound for a host of another agent, CommandRefused for an older owner or generation (and for a
    host that another agent took over), InvalidRequest, and Busy at a limit.
    """

    def __init__(
        self,
        driver: Driver,
        hosts: Hosts,
        fences: Fences,
        generations: Generations,
        workers: Workers,
        steps: Steps,
        reporter: Reporter,
        settings: Settings,
        doubt: Doubt,
    ) -> None:
        self._driver = driver
        self._hosts = hosts
        self._fences = fences
        self._generations = generations
        self._workers = workers
        self._steps = steps
        self._reporter = reporter
        self._settings = settings
        self._doubt = doubt
        self._under_way: set[OrderKey] = set()

    def serve(self, endpoint: Endpoint) -> None:
        """Answer these methods at the endpoint."""
        endpoint.serve(SPAWN, self.spawn)
        endpoint.serve(DESTROY, self.destroy)
        endpoint.serve(STEP, self.step)
        endpoint.serve(ADOPT, self.adopt)
        endpoint.serve(FORGET, self.forget)
        endpoint.serve(DOMAINS, self.domains)

    # -- handlers --------------------------------------------------------------------------------------------------

    def spawn(self, request: SpawnRequest, context: CallContext) -> CommandReply:
        """Record, then build. The outcome comes as a StepResult."""
        _check_instance(request)
        return self._command(request.order, COMMAND_SPAWN, partial(self._steps.spawn, request.order, request.instance))

    def destroy(self, request: DestroyRequest, context: CallContext) -> CommandReply:
        """Record, then destroy; a tombstone stays until the task's forget."""
        return self._command(request.order, COMMAND_DESTROY, partial(self._steps.destroy, request.order))

    def step(self, request: StepRequest, context: CallContext) -> CommandReply:
        """Record, then do the verb. The outcome comes as a StepResult."""
        _check_instance(request)
        if request.verb not in VERBS:
            raise InvalidRequest(f"expected a verb of {', '.join(sorted(VERBS))}, found {request.verb}", field="verb")
        if request.verb in BESIDE:
            return self._command(request.order, request.verb, partial(self._steps.act, request), beside=True)
        return self._command(request.order, request.verb, partial(self._act, request))

    def _act(self, request: StepRequest) -> None:
        """What was done already, under an owner before this one, is not done again: its outcome is told again."""
        record = self._generations.get(request.order.host, request.order.instance_uuid)
        known = None if record is None else record.known
        if known is not None and known.is_of(request.order) and known.outcome == OUTCOME_DONE:
            self._steps.ended(request.order, known, None)
        else:
            self._steps.act(request)

    def adopt(self, request: AdoptRequest, context: CallContext) -> CommandReply:
        """Raise the generation (commands of the former owner are refused from now on) and say what is here."""
        order = request.order
        self._admit(order)
        if self._generations.find(order)[0] is Finding.STALE:
            raise self._stale(order)
        try:
            on_disk = self._generations.raise_to(order, time.monotonic())
        except CommandsFull as error:
            raise self._busy(str(error)) from error
        self._check_kept(on_disk)
        domain = self._domain(order)
        # Looking may have yielded: only the newest adopter's grant counts.
        if order.reporter_generation and domain is not None and self._generations.is_current(order):
            self._generations.grant(order.host, order.instance_uuid, order.reporter_generation)
            self._steps.observe(order, domain)
        record = self._generations.get(order.host, order.instance_uuid)
        known = None if record is None else record.known
        log.info("adopted instance=%s host=%s generation=%d", order.instance_uuid, order.host, order.generation)
        return _reply(known, domain)

    def forget(self, request: ForgetRequest, context: CallContext) -> CommandReply:
        """The task has ended; of an older task than the newest known here it is no news."""
        self._admit(request.order)
        failpoint("commands.before_forget")
        self._generations.forget(request.order)
        failpoint("commands.after_forget")
        return CommandReply()

    def domains(self, request: DomainsRequest, context: CallContext) -> DomainsReply:
        """What is on the hypervisor, whoever made it. Raises HostNotFound, InvalidRequest, Busy."""
        if self._hosts.get(request.host) is None:
            raise HostNotFound(f"this agent does not serve host {request.host}", host=request.host)
        if not 1 <= request.limit <= DOMAINS_ROWS_MAX:
            raise InvalidRequest(f"expected 1 to {DOMAINS_ROWS_MAX} rows, found {request.limit}", field="limit")
        try:
            found = self._driver.domains(request.host)
        except DriverError as error:
            raise self._busy(f"the hypervisor of {request.host} does not answer: {error}") from error
        behind = sorted(uuid for uuid in found if uuid > request.after)
        return DomainsReply(uuids=behind[: request.limit], more=len(behind) > request.limit)

    # -- deciding --------------------------------------------------------------------------------------------------

    def _command(self, order: Order, command: str, work: Work, *, beside: bool = False) -> CommandReply:
        self._admit(order)
        finding, step = self._generations.find(order)
        if finding is Finding.STALE:
            raise self._stale(order)
        if step is not None and step.outcome and not beside:
            self._steps.report(order, step)
            return _reply(step, None)
        if _order_key(order) in self._under_way:
            return CommandReply()
        self._check_doubt(order)
        self._check_room(order, command)
        if finding is Finding.NEW:
            self._record(order, command)
        else:  # it may have been refused because it could not be recorded
            self._check_kept(not self._generations.journal.degraded)
        self._submit(order, work, beside)
        return CommandReply()

    def _admit(self, order: Order) -> None:
        """Whether this order may be looked at at all. Learns the owner's epoch."""
        host = self._hosts.get(order.host)
        if host is None:
            raise HostNotFound(f"this agent does not serve host {order.host}", host=order.host)
        if not 0 <= order.partition < PARTITIONS or order.partition != partition_of(order.instance_uuid):
            raise InvalidRequest(
                f"instance {order.instance_uuid} is of partition {partition_of(order.instance_uuid)}, "
                f"the order says {order.partition}",
                field="order.partition",
            )
        if not 0 <= order.owner_epoch <= EPOCH_MAX:
            raise InvalidRequest(f"an owner epoch is 0 to {EPOCH_MAX}", field="order.owner_epoch")
        if host.superseded:
            raise CommandRefused(f"another agent has taken host {order.host}", reason="host_superseded")
        if host.epoch is None:
            raise self._busy(f"host {order.host} has not begun its epoch yet")
        if not self._fences.allows(order.partition, order.owner_epoch):
            log.warning(
                "command of a former owner refused step=%s instance=%s host=%s owner_epoch=%d known=%d",
                order.step, order.instance_uuid, order.host, order.owner_epoch,
                self._fences.epochs[order.partition],
            )  # fmt: skip
            raise CommandRefused(
                f"partition {order.partition} has an owner since {self._fences.epochs[order.partition]}, "
                f"the order is of {order.owner_epoch}",
                reason="stale_owner",
            )
        self._fences.raise_to(order.partition, order.owner_epoch)
        self._check_kept(self._fences.on_disk)

    def _check_kept(self, on_disk: bool) -> None:
        """What is obeyed is remembered, or the next process knows that something is missing. Raises Busy."""
        if not on_disk and not self._doubt.raise_on_disk():
            raise self._busy("nothing can be written to the state directory: is its disk broken?")

    def _check_doubt(self, order: Order) -> None:
        """Raises Busy while a command may come that this agent has forgotten to be too old."""
        host = self._hosts.get(order.host)
        wait_s = 0.0 if host is None else host.commands_at - time.monotonic()
        if wait_s > 0:
            raise Busy(
                f"host {order.host} has lost records of former commands: none is obeyed until all are for certain new",
                retry_after_ms=min(self._settings.busy_retry_ms, int(wait_s * 1000) + 1),
            )

    def _check_room(self, order: Order, command: str) -> None:
        under_way = len(self._workers)
        if self._reporter.results_room() <= under_way:
            raise self._busy("the outbox has no room for another result: owners must acknowledge some first")
        if command != COMMAND_DESTROY:
            if self._generations.journal.degraded:
                raise self._busy("the command journal cannot be written: is the disk of the state directory full?")
            if self._grants_more(order) and (
                self._generations.granted_count() + under_way >= self._settings.observations_max
            ):
                raise self._busy(f"this agent reports {self._settings.observations_max} instances, the most it may")

    def _grants_more(self, order: Order) -> bool:
        """Whether one instance more is reported once this is done."""
        record = self._generations.get(order.host, order.instance_uuid)
        return bool(order.reporter_generation) and (record is None or not record.grant)

    def _record(self, order: Order, command: str) -> None:
        failpoint("commands.before_record")
        try:
            on_disk = self._generations.begin(order, command, time.monotonic())
        except CommandsFull as error:
            raise self._busy(str(error)) from error
        if not on_disk and command != COMMAND_DESTROY:
            raise self._busy("the command journal cannot be written: is the disk of the state directory full?")
        self._check_kept(on_disk)  # a destroy goes on: it is what makes room
        failpoint("commands.after_record")

    def _submit(self, order: Order, work: Work, beside: bool) -> None:
        key = _order_key(order)
        chain = (order.host, order.instance_uuid, *((order.step,) if beside else ()))
        caller = request_id.get()

        def run() -> None:
            request_id.set(caller)
            try:
                work()
            finally:
                self._under_way.discard(key)

        try:
            self._workers.submit(chain, run)
        except WorkersFull as error:
            raise self._busy(str(error)) from error
        self._under_way.add(key)

    def _domain(self, order: Order) -> Domain | None:
        try:
            return self._driver.domains(order.host).get(order.instance_uuid)
        except DriverError as error:
            raise self._busy(f"the hypervisor of {order.host} does not answer: {error}") from error

    def _stale(self, order: Order) -> CommandRefused:
        record = self._generations.get(order.host, order.instance_uuid)
        known = 0 if record is None else record.generation
        return CommandRefused(
            f"instance {order.instance_uuid} is commanded in generation {known}, the order is of {order.generation}",
            reason="stale_generation",
        )

    def _busy(self, message: str) -> Busy:
        return Busy(message, retry_after_ms=self._settings.busy_retry_ms)


def _check_instance(request: SpawnRequest | StepRequest) -> None:
    if request.instance.uuid != request.order.instance_uuid:
        raise InvalidRequest(
            f"the order is for {request.order.instance_uuid}, the instance is {request.instance.uuid}",
            field="instance.uuid",
        )


def _order_key(order: Order) -> OrderKey:
    return (order.host, order.instance_uuid, order.generation, order.task_id, order.step, order.attempt)


def _reply(known: Step | None, domain: Domain | None) -> CommandReply:
    reply = CommandReply(running=domain is not None, power_state=0 if domain is None else domain.power_state)
    if known is not None:
        reply.last_task_id, reply.last_step, reply.last_attempt = known.task_id, known.step, known.attempt
        reply.last_outcome, reply.last_message = known.outcome, known.message
    return reply
