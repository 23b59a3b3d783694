"""The steps of a delete. Their decisions are in delete_walk."""

import logging

import gevent

from zcompute.conductor.tasks import delete_walk
from zcompute.conductor.tasks.decision import Decision, count_as_clean, counts_as_clean, raise_generation
from zcompute.conductor.tasks.destroying import Told, pause_ms, send_destroy
from zcompute.conductor.tasks.run import TaskRun
from zcompute.objects.instance import Instance
from zcompute.objects.task import Task

log = logging.getLogger(__name__)


class Destroy:
    """Destroy at every host that may have it; each answers by a report. A forced-down host counts as done."""

    name = delete_walk.STEP_DESTROY
    commands_hosts = True
    ends = False

    def run(self, run: TaskRun) -> None:
        task = run.now_task()
        gevent.sleep(pause_ms(run, task.attempt) / 1000)
        told = Told()
        while run.is_at(task):
            run.changed.clear()
            pending = _pending(run)
            away = [host for host in pending if not told.answers(run, host)]
            forced = run.env.forced_down(away) if away else set()
            if forced:
                _count_clean(run, sorted(forced))
                continue
            linked = [host for host in pending if host not in away]
            if linked:
                stale = run.at_hosts(linked, lambda host: send_destroy(run, task, host))
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
    """In two commits: see count_as_clean."""
    marked = [host for host in hosts if counts_as_clean(run.now_task(), host)]
    if not marked:
        run.journal(lambda _, task, __: Decision(task=count_as_clean(task, hosts)))
        return

    def decide(instance: Instance, task: Task, now_us: int) -> Decision:
        return delete_walk.hosts_are_clean(instance, task, marked, now_us, run.settings.ending_s_max)

    log.info("forced down counts as destroyed uuid=%s hosts=%s", run.uuid, ",".join(marked))
    run.journal(decide)


def _pending(run: TaskRun) -> list[str]:
    body = run.now_task().body
    return [host for host in body.named_hosts if host not in body.destroyed]


DELETE_STEPS = (Destroy(), Finish())
