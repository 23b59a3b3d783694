"""The steps of a delete. Their decisions are in delete_walk."""

import logging

import gevent

from zcompute.bus.errors import BusError
from zcompute.conductor.tasks import delete_walk
from zcompute.conductor.tasks.build import STALE_GENERATION
from zcompute.conductor.tasks.decision import Decision, raise_generation
from zcompute.conductor.tasks.run import TaskRun
from zcompute.objects.command import DestroyRequest
from zcompute.objects.errors import CommandRefused
from zcompute.objects.instance import Instance
from zcompute.objects.methods import DESTROY
from zcompute.objects.task import Task

log = logging.getLogger(__name__)


class Destroy:
    """Destroy at every host that may have it; each answers by a report. A forced-down host counts as done."""

    name = delete_walk.STEP_DESTROY
    commands_hosts = True
    ends = False

    def run(self, run: TaskRun) -> None:
        task = run.now_task()
        if task.attempt > 1:
            gevent.sleep(_pause_ms(run, task.attempt) / 1000)
        while run.is_at(task):
            run.changed.clear()
            pending = _pending(run)
            away = [host for host in pending if not run.env.commands.has_way(host)]
            forced = run.env.forced_down(away) if away else set()
            if forced:
                _count_clean(run, sorted(forced))
                continue
            linked = [host for host in pending if host not in away]
            if linked:
                stale = run.at_hosts(linked, lambda host: _send(run, task, host))
                if stale:
                    run.journal(raise_generation)
                    continue
            run.wait(run.settings.resend_ms)


class Finish:
    """Release what is claimed, then the last commit: deleted, and the root told by its outbox row."""

    name = delete_walk.STEP_FINISH
    commands_hosts = False
    ends = True

    def run(self, run: TaskRun) -> None:
        run.release_owed()
        if run.journal(delete_walk.finish_delete, outbox_kind=delete_walk.OUTBOX_DELETED):
            log.info("instance deleted uuid=%s", run.uuid)


def _count_clean(run: TaskRun, hosts: list[str]) -> None:
    def decide(instance: Instance, task: Task, now_us: int) -> Decision:
        return delete_walk.hosts_are_clean(instance, task, hosts, now_us, run.settings.ending_s_max)

    log.info("forced down counts as destroyed uuid=%s hosts=%s", run.uuid, ",".join(hosts))
    run.journal(decide)


def _pending(run: TaskRun) -> list[str]:
    body = run.now_task().body
    return [host for host in body.named_hosts if host not in body.destroyed]


def _pause_ms(run: TaskRun, attempt: int) -> int:
    settings = run.settings
    return min(settings.retry_ms_max, settings.retry_ms_min << min(attempt, 10))


def _send(run: TaskRun, task: Task, host: str) -> bool:
    """True when the agent knows a higher generation; one that did not answer is asked again later."""
    order = run.env.commands.order(run.instance, task, host)
    run.commanded.add(host)
    try:
        run.env.commands.send(
            host, DESTROY, DestroyRequest(order=order), timeout_ms=run.left_ms(run.settings.command_ms_max)
        )
    except CommandRefused as error:
        log.warning("destroy refused uuid=%s host=%s error=%s", run.uuid, host, error)
        return error.details.get("reason") == STALE_GENERATION
    except BusError as error:
        log.info("destroy not sent uuid=%s host=%s error=%s", run.uuid, host, type(error).__name__)
    return False


DELETE_STEPS = (Destroy(), Finish())
