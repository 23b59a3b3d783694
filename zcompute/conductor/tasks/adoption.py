"""A new owner takes a task over: first the instance is adopted at every host that may have been commanded."""

import logging

from zcompute.bus.errors import BusError
from zcompute.conductor.tasks.decision import raise_generation
from zcompute.conductor.tasks.run import TaskRun
from zcompute.objects.command import AdoptRequest, CommandReply
from zcompute.objects.errors import ServiceError
from zcompute.objects.methods import ADOPT

log = logging.getLogger(__name__)


def adopt(run: TaskRun) -> None:
    """Raise the command generation, then wait until every named host knows it or is forced down.

    The outcome of what the former owner had begun comes by the step itself: begun again under the new generation, it
    finds the work done. Raises DeadlinePassed while a host is silent, TaskLost.
    """
    if not run.journal(raise_generation):
        return
    task = run.now_task()
    pending = [host for host in task.body.named_hosts if host not in task.body.destroyed]
    silent: set[str] = set()  # linked, and did not answer: forced down, they are not waited for either
    while pending and run.is_at(task):
        run.changed.clear()
        linked = [host for host in pending if run.env.commands.has_way(host)]
        asked = [host for host in pending if host in silent or host not in linked]
        forced = run.env.forced_down(asked) if asked else set()
        linked = [host for host in linked if host not in forced]
        adopted = run.at_hosts(linked, lambda host: _adopt_at(run, host))
        silent = set(linked) - adopted
        pending = [host for host in pending if host not in forced and host not in adopted]
        if pending:
            run.wait(run.settings.resend_ms)


def _adopt_at(run: TaskRun, host: str) -> bool:
    task = run.task
    if task is None:
        return True
    order = run.env.commands.order(run.instance, task, host)
    run.commanded.add(host)
    try:
        reply: CommandReply = run.env.commands.send(
            host, ADOPT, AdoptRequest(order=order), timeout_ms=run.left_ms(run.settings.command_ms_max)
        )
    except (BusError, ServiceError) as error:
        log.info("adoption not answered uuid=%s host=%s error=%s", run.uuid, host, error)
        return False
    log.info(
        "instance adopted uuid=%s host=%s generation=%s running=%s last_step=%s last_outcome=%s",
        run.uuid, host, order.generation, reply.running, reply.last_step, reply.last_outcome,
    )  # fmt: skip
    return True
