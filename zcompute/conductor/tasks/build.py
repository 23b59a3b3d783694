"""The steps of a build. Their decisions are in build_walk."""

import logging

from zcompute.conductor.tasks import build_walk
from zcompute.conductor.tasks.decision import Decision
from zcompute.conductor.tasks.placing import claim_present, select_hosts
from zcompute.conductor.tasks.run import TaskRun
from zcompute.conductor.tasks.telling import Telling, tell
from zcompute.objects.command import SpawnRequest
from zcompute.objects.instance import Instance
from zcompute.objects.methods import SPAWN
from zcompute.objects.task import Task

log = logging.getLogger(__name__)


class Schedule:
    """Ask a scheduler, and journal the first attempt; no host at all is the cell's definite refusal."""

    name = build_walk.STEP_SCHEDULE
    commands_hosts = False
    ends = False

    def run(self, run: TaskRun) -> None:
        run.release_owed()
        body = run.now_task().body
        if body.reschedules > run.settings.reschedules_max:
            self._refuse(run, f"tried {len(body.refused)} hosts; {build_walk.refusal_reason(body, {})}")
            return
        found = select_hosts(run, run.instance.flavor.amounts(), body.refused)
        if found.hosts:
            run.journal(lambda _, task, __: build_walk.begin_attempt(task, found.hosts))
        else:
            self._refuse(run, build_walk.refusal_reason(body, found.reasons))

    def _refuse(self, run: TaskRun, reason: str) -> None:
        log.info("build refused uuid=%s reason=%s", run.uuid, reason)

        def decide(instance: Instance, task: Task, now_us: int) -> Decision:
            return build_walk.refuse_build(instance, task, run.env.cell, reason, now_us)

        run.journal(decide, outbox_kind=build_walk.OUTBOX_REFUSED)


class ClaimHost:
    """Claim at the owner of the host; silence repeats the same claim, a refusal goes to the next candidate."""

    name = build_walk.STEP_CLAIM
    commands_hosts = False
    ends = False

    def run(self, run: TaskRun) -> None:
        run.release_owed()
        task = run.now_task()
        reply = claim_present(run, run.instance.flavor.amounts())
        if reply.granted:
            if run.journal(lambda instance, task, _: build_walk.begin_spawn(instance, task)):
                run.own_attempt = task.attempt
            return
        log.info("claim refused uuid=%s host=%s reason=%s", run.uuid, task.body.host, reply.reason)
        run.journal(lambda instance, task, _: build_walk.claim_refused(instance, task, reply.reason))


class Spawn:
    """Send the whole instance to its host until it is accepted; the result comes as a report.

    It is sent again after a while and when the host's agent is back: the agent recognises a repeat. A host that was
    not linked at all since this very runner chose it cannot have been told anything: the next candidate is tried. One
    that may have been told, and is forced down, is waited for no longer.
    """

    name = build_walk.STEP_SPAWN
    commands_hosts = True
    ends = False

    def run(self, run: TaskRun) -> None:
        task = run.now_task()
        own = run.own_attempt == task.attempt
        telling = Telling(
            SPAWN,
            lambda order, instance, _: SpawnRequest(order=order, instance=instance),
            build_walk.host_lost,
            build_walk.spawn_refused,
            grants=True,
            untold=build_walk.spawn_refused if own else None,
            link_wait_ms=run.settings.link_wait_ms_max,
        )
        tell(run, task.body.host or "", telling)


class Abandon:
    """A failure behind the deadline: release, and leave the instance in ERROR."""

    name = build_walk.STEP_ABANDON
    commands_hosts = False
    ends = True

    def run(self, run: TaskRun) -> None:
        run.release_owed()
        run.journal(lambda instance, _, __: build_walk.end_abandoned(instance))


BUILD_STEPS = (Schedule(), ClaimHost(), Spawn(), Abandon())
