"""The step of an act. Its decisions are in act_walk."""

import logging
import time

from zcompute.bus.errors import BusError, UnknownMethod, UnsupportedVersion
from zcompute.conductor.tasks.act_walk import STEP_APPLY, act_failed, act_host_lost
from zcompute.conductor.tasks.decision import raise_generation
from zcompute.conductor.tasks.run import TaskRun
from zcompute.objects.actions import ACTIONS
from zcompute.objects.command import StepRequest
from zcompute.objects.errors import CommandRefused
from zcompute.objects.methods import STEP
from zcompute.objects.task import Task

log = logging.getLogger(__name__)

STALE_GENERATION = "stale_generation"


class Apply:
    """Tell the host until it has recorded the verb; the result comes as a report.

    It is sent again after a while and when the host's agent is back: the agent recognises a repeat. A host that is
    forced down is waited for no longer. One that for certain was told nothing, and is not linked for
    ``act_link_wait_ms_max``, fails the action: the server is what it was, and nobody's command is on its way.
    """

    name = STEP_APPLY
    commands_hosts = True
    ends = False

    def run(self, run: TaskRun) -> None:
        task = run.now_task()
        host = task.body.host or ""
        give_up_at = time.monotonic() + run.settings.act_link_wait_ms_max / 1000
        while run.is_at(task):
            run.changed.clear()
            if run.env.commands.reaches(host, STEP):
                if self._send(run, task, host):
                    run.wait(run.settings.resend_ms)
                continue
            if host in run.env.forced_down([host]):
                log.warning("host is forced down uuid=%s host=%s action=%s", run.uuid, host, task.body.action)
                run.journal(act_host_lost)
                return
            if host not in run.commanded and not run.parked and time.monotonic() >= give_up_at:
                log.warning("host is not linked uuid=%s host=%s action=%s", run.uuid, host, task.body.action)
                run.journal(lambda instance, task, _: act_failed(instance, task, f"host {host} is not linked"))
                return
            run.wait(min(run.settings.resend_ms, run.settings.act_link_wait_ms_max))

    def _send(self, run: TaskRun, task: Task, host: str) -> bool:
        """True: recorded by the agent, or over. False: the generation was raised, send again. Raises BusError."""
        instance = run.instance
        order = run.env.commands.order(instance, task, host)
        request = StepRequest(
            order=order, verb=ACTIONS[task.body.action].verb, instance=instance, arguments=task.body.arguments
        )
        run.commanded.add(host)
        try:
            run.env.commands.send(host, STEP, request, timeout_ms=run.left_ms(run.settings.command_ms_max))
        except CommandRefused as error:
            if error.details.get("reason") != STALE_GENERATION:
                raise
            log.warning("generation was stale uuid=%s host=%s generation=%s", run.uuid, host, order.generation)
            run.journal(raise_generation)
            return False
        except (UnsupportedVersion, UnknownMethod):
            reason = f"the agent of host {host} is of an older release: it cannot {ACTIONS[task.body.action].name}"
            run.journal(lambda instance, task, _: act_failed(instance, task, reason))
        except BusError:
            if not run.is_at(task):
                return True
            raise
        return True


ACT_STEPS = (Apply(),)
