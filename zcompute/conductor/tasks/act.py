"""The step of an act. Its decisions are in act_walk."""

from zcompute.conductor.tasks.act_walk import STEP_APPLY, act_host_lost, act_refused
from zcompute.conductor.tasks.run import TaskRun
from zcompute.conductor.tasks.telling import Telling, tell
from zcompute.objects.actions import ACTIONS
from zcompute.objects.command import Order, StepRequest
from zcompute.objects.instance import Instance
from zcompute.objects.methods import STEP
from zcompute.objects.task import Task


class Apply:
    """Tell the host its verb. A host that is forced down is waited for no longer. One that was told nothing, and is
    not linked for ``act_link_wait_ms_max``, fails the action: nobody's command is on its way."""

    name = STEP_APPLY
    commands_hosts = True
    ends = False

    def run(self, run: TaskRun) -> None:
        wait_ms = run.settings.act_link_wait_ms_max
        telling = Telling(STEP, _request, act_host_lost, act_refused, untold=act_refused, link_wait_ms=wait_ms)
        tell(run, run.now_task().body.host or "", telling)


def _request(order: Order, instance: Instance, task: Task) -> StepRequest:
    verb = ACTIONS[task.body.action].verb
    return StepRequest(order=order, verb=verb, instance=instance, arguments=task.body.arguments)


ACT_STEPS = (Apply(),)
