"""The step in which a destination proves that it is there, before a move is given to it for good."""

import logging
import time

from zcompute.bus.errors import BusError
from zcompute.conductor.tasks.decision import Decision
from zcompute.conductor.tasks.moves.plans import STEP_REACH, host_of_step
from zcompute.conductor.tasks.moves.walk import advance, next_destination
from zcompute.conductor.tasks.run import TaskRun
from zcompute.objects.command import AdoptRequest
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import Instance
from zcompute.objects.methods import ADOPT
from zcompute.objects.task import Task

log = logging.getLogger(__name__)


class Reach:
    """The destination answers. It is asked to adopt what it does not have, which begins nothing: one that is silent for
    ``link_wait_ms_max``, linked or not, gives way to the next without a trace. Without this step an
    evacuation's switch, which no command goes before, would give the server to a host that hangs, and any other move
    would wait for it until its deadline."""

    name = STEP_REACH
    commands_hosts = False  # it is an adoption itself
    ends = False

    def run(self, run: TaskRun) -> None:
        task = run.now_task()
        host = host_of_step(task)
        ending_s = run.settings.ending_s_max
        give_up_at = time.monotonic() + run.settings.link_wait_ms_max / 1000
        while run.is_at(task):
            run.changed.clear()
            reason = _silence(run, task, host)
            if not reason:
                run.journal(lambda instance, task, now_us: advance(instance, task, now_us, ending_s))
                return
            if host in run.env.forced_down([host]):
                reason = f"host {host} is forced down"
            elif time.monotonic() < give_up_at:
                run.wait(run.settings.retry_ms_max)
                continue
            _pass_over(run, reason, ending_s)
            return


def _silence(run: TaskRun, task: Task, host: str) -> str:
    """Why it did not answer; "" when it did. One in quarantine would answer, and take nothing else."""
    if run.env.commands.is_forced_down(host):
        return f"host {host} is forced down"
    if not run.env.commands.has_way(host):
        return f"host {host} is not linked"
    order = run.env.commands.order(run.instance, task, host)
    run.commanded.add(host)
    try:
        run.env.commands.send(
            host, ADOPT, AdoptRequest(order=order), timeout_ms=run.left_ms(run.settings.command_ms_max)
        )
    except (BusError, ServiceError) as error:
        return f"host {host} does not answer: {error}"
    return ""


def _pass_over(run: TaskRun, reason: str, ending_s: int) -> None:
    def decide(instance: Instance, task: Task, now_us: int) -> Decision:
        return next_destination(instance, task, reason, now_us, ending_s)

    log.warning("destination passed over uuid=%s reason=%s", run.uuid, reason)
    run.journal(decide)
