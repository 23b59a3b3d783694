"""Runs a recorded command on the hypervisor and lets its outcome be known.

Nothing here talks to a conductor: a command has everything with it, and the outcome goes through the outbox. The result
is owed (on disk) before the step counts as ended, so a death in between leaves a result, never a step run twice.
"""

import logging
from collections.abc import Callable

from zcompute.compute.errors import DomainExists, DriverError, ResultsFull
from zcompute.compute.generations import COMMAND_DESTROY, COMMAND_SPAWN, Generations, Record, Step
from zcompute.compute.observer import Observer
from zcompute.compute.reporter import Reporter
from zcompute.compute.verbs import do_verb
from zcompute.compute.virt.driver import Domain, Done, Driver
from zcompute.failpoints import failpoint
from zcompute.objects.command import Order, StepRequest
from zcompute.objects.instance import POWER_NOSTATE, Instance
from zcompute.objects.partition import partition_of
from zcompute.objects.report import OUTCOME_DONE, OUTCOME_FAILED, StepResult

log = logging.getLogger(__name__)

MESSAGE_CHARS_MAX = 1000
_SHOWN = (COMMAND_SPAWN, COMMAND_DESTROY)  # the hypervisor's list of domains tells whether these were done


class Steps:
    """Spawn, destroy and verbs, each ending in a StepResult."""

    def __init__(self, driver: Driver, generations: Generations, reporter: Reporter, observer: Observer) -> None:
        self._driver = driver
        self._generations = generations
        self._reporter = reporter
        self._observer = observer

    def spawn(self, order: Order, instance: Instance) -> None:
        """Build the instance, unless it is here already (an earlier try got as far as that)."""
        self._run(order, COMMAND_SPAWN, lambda: Done(self._spawned(order, instance)))

    def destroy(self, order: Order) -> None:
        """Remove the instance if it is here."""
        self._run(order, COMMAND_DESTROY, lambda: self._destroyed(order))

    def act(self, request: StepRequest) -> None:
        """Do a verb; one that was begun before is begun again."""
        self._run(request.order, request.verb, lambda: do_verb(self._driver, request))

    def _destroyed(self, order: Order) -> Done:
        self._driver.destroy(order.host, order.instance_uuid, order)
        return Done(None)

    def _spawned(self, order: Order, instance: Instance) -> Domain:
        there = self._driver.domains(order.host).get(instance.uuid)
        if there is not None:
            log.info("domain found instance=%s host=%s", instance.uuid, order.host)
            return there
        try:
            return self._driver.spawn(order.host, instance, order)
        except DomainExists:
            return self._driver.domains(order.host)[instance.uuid]

    def _run(self, order: Order, command: str, work: Callable[[], Done]) -> None:
        if not self._generations.is_current(order):
            log.info(
                "command dropped, a newer generation came command=%s instance=%s generation=%d",
                command,
                order.instance_uuid,
                order.generation,
            )
            return
        done = Done(None)
        outcome, message = OUTCOME_DONE, ""
        failpoint("steps.before_work")
        try:
            done = work()
        except DriverError as error:
            outcome, message = OUTCOME_FAILED, str(error)
            log.warning("%s failed instance=%s host=%s error=%s", command, order.instance_uuid, order.host, error)
        except Exception as error:
            outcome, message = OUTCOME_FAILED, f"internal error: {type(error).__name__}"
            log.exception("%s failed instance=%s host=%s", command, order.instance_uuid, order.host)
        if outcome == OUTCOME_FAILED and command == COMMAND_SPAWN and not self._cleared(order):
            return
        failpoint("steps.after_work")
        self.ended(order, self._step(order, command, outcome, message, done), done.domain)

    def _cleared(self, order: Order) -> bool:
        """Nothing is left of a failed build. While that is not sure the step has no outcome: the instance must not be
        built elsewhere beside what may run here; its command, when it comes again, tries again."""
        try:
            self._driver.destroy(order.host, order.instance_uuid, order)
            return order.instance_uuid not in self._driver.domains(order.host)
        except Exception:
            log.exception("failed build not cleared instance=%s host=%s", order.instance_uuid, order.host)
            return False

    @staticmethod
    def _step(order: Order, command: str, outcome: str, message: str, done: Done) -> Step:
        return Step(
            command=command,
            task_id=order.task_id,
            step=order.step,
            attempt=order.attempt,
            grant=order.reporter_generation,
            outcome=outcome,
            message=message[:MESSAGE_CHARS_MAX],
            power_state=POWER_NOSTATE if done.domain is None else done.domain.power_state,
            answer=done.answer,
        )

    def ended(self, order: Order, step: Step, domain: Domain | None) -> None:
        """Owe the result, then record it, then report the instance where this host was granted it."""
        self.report(order, step)
        failpoint("steps.after_result")
        done = step.outcome == OUTCOME_DONE
        grant: int | None = None
        if done and step.command == COMMAND_DESTROY:
            grant = 0
            self._observer.forget(order.host, order.instance_uuid)
        elif done and step.grant:
            grant = step.grant
        self._generations.finish(order, step, grant)
        failpoint("steps.after_finish")
        self.observe(order, domain)
        failpoint("steps.after_observation")
        log.info(
            "%s %s instance=%s host=%s task=%s attempt=%d",
            step.command,
            step.outcome,
            order.instance_uuid,
            order.host,
            order.task_id,
            order.attempt,
        )

    def observe(self, order: Order, domain: Domain | None) -> None:
        """Report the instance's state where this host was granted it."""
        record = self._generations.get(order.host, order.instance_uuid)
        if record is not None and record.grant and domain is not None:
            self._observer.report(record, domain)

    def report(self, order: Order, step: Step) -> None:
        """Owe the result of a step; once more when its command came again."""
        try:
            self._reporter.report(
                StepResult(
                    instance_uuid=order.instance_uuid,
                    host=order.host,
                    generation=order.generation,
                    task_id=step.task_id,
                    step=step.step,
                    attempt=step.attempt,
                    outcome=step.outcome,
                    message=step.message,
                    power_state=step.power_state,
                    answer=step.answer,
                )
            )
        except ResultsFull as error:
            log.error("result not owed, its command must come again instance=%s: %s", order.instance_uuid, error)

    # -- after a restart -------------------------------------------------------------------------------------------

    def settle(self, owed: list[StepResult]) -> None:
        """At start: end every step whose outcome can be known without doing anything.

        Either its result is owed already, or the hypervisor shows that it was done, as it does of a spawn and a
        destroy. What remains, every verb too, waits for its command to come again: only the present owner knows whether
        it is still wanted.
        """
        for result in owed:
            record = self._generations.get(result.host, result.instance_uuid)
            step = None if record is None else _open_step(record, result.task_id, result.step, result.attempt)
            if record is not None and step is not None and record.generation == result.generation:
                step.outcome, step.message, step.power_state = result.outcome, result.message, result.power_state
                step.answer = result.answer
                self._finish_known(record, step)
        for record in self._generations.records():
            for step in [step for step in record.steps if not step.outcome and step.command in _SHOWN]:
                self._settle_by_domains(record, step)

    def _finish_known(self, record: Record, step: Step) -> None:
        grant: int | None = None
        if step.outcome == OUTCOME_DONE:
            grant = 0 if step.command == COMMAND_DESTROY else step.grant or None
        self._generations.finish(_order(record, step), step, grant)

    def _settle_by_domains(self, record: Record, step: Step) -> None:
        try:
            domain = self._driver.domains(record.host).get(record.uuid)
        except DriverError as error:
            log.error("step left open instance=%s host=%s error=%s", record.uuid, record.host, error)
            return
        if (step.command == COMMAND_SPAWN) != (domain is not None):
            log.info("step left open command=%s instance=%s host=%s", step.command, record.uuid, record.host)
            return
        order = _order(record, step)
        self.ended(order, self._step(order, step.command, OUTCOME_DONE, "", Done(domain)), domain)


def _open_step(record: Record, task_id: str, name: str, attempt: int) -> Step | None:
    for step in record.steps:
        if (step.task_id, step.step, step.attempt) == (task_id, name, attempt) and not step.outcome:
            return step
    return None


def _order(record: Record, step: Step) -> Order:
    """The order that a recorded step came from."""
    return Order(
        instance_uuid=record.uuid,
        host=record.host,
        partition=partition_of(record.uuid),
        owner_epoch=0,
        generation=record.generation,
        task_id=step.task_id,
        step=step.step,
        attempt=step.attempt,
        reporter_generation=step.grant,
    )
