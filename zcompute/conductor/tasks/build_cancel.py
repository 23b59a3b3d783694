"""The step of a build that an operator has aborted behind its command: its host destroys what it may have begun."""

import logging

import gevent

from zcompute.conductor.tasks import build_walk
from zcompute.conductor.tasks.decision import raise_generation
from zcompute.conductor.tasks.destroying import Told, pause_ms, send_destroy
from zcompute.conductor.tasks.run import TaskRun

log = logging.getLogger(__name__)


class Cancel:
    """Destroy at the one host that was told to build; its word comes as a report.

    A host that is forced down is waited for no longer: the build ends in ERROR as host and claim stay its own, so that
    a delete asks there when it is back.
    """

    name = build_walk.STEP_CANCEL
    commands_hosts = True
    ends = False

    def run(self, run: TaskRun) -> None:
        task = run.now_task()
        host = task.body.host or ""
        gevent.sleep(pause_ms(run, task.attempt) / 1000)
        told = Told()
        while run.is_at(task):
            run.changed.clear()
            if told.answers(run, host):
                if send_destroy(run, task, host):
                    run.journal(raise_generation)
                    continue
            elif host in run.env.forced_down([host]):
                log.warning("host is forced down uuid=%s host=%s", run.uuid, host)
                run.journal(build_walk.host_lost)
                return
            run.wait(run.settings.resend_ms)
