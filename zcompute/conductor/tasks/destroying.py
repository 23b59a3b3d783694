"""Telling one host to destroy an instance, for the steps of whatever task."""

import logging
import time

from zcompute.bus.errors import BusError
from zcompute.conductor.tasks.run import TaskRun
from zcompute.conductor.tasks.telling import STALE_GENERATION
from zcompute.objects.command import DestroyRequest
from zcompute.objects.errors import CommandRefused
from zcompute.objects.methods import DESTROY
from zcompute.objects.task import Task

log = logging.getLogger(__name__)


class Told:
    """Since when hosts have been told to destroy. One that is forced down and silent is waited for no longer, even
    while it is linked: its process may hang. What it still has goes before it works again."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def answers(self, run: TaskRun, host: str) -> bool:
        """Whether the host is worth telling, which counts as told from then on."""
        commands = run.env.commands
        if not commands.has_way(host):
            return False
        now = time.monotonic()
        told_s = now - self._since.setdefault(host, now)
        return told_s < run.settings.resend_ms / 1000 or not commands.is_forced_down(host)


def send_destroy(run: TaskRun, task: Task, host: str) -> bool:
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


def pause_ms(run: TaskRun, attempt: int) -> int:
    """Before an attempt behind the first: the host has just failed."""
    settings = run.settings
    return 0 if attempt <= 1 else min(settings.retry_ms_max, settings.retry_ms_min << min(attempt, 10))
