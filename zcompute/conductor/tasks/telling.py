"""A command to one host: sent until its agent has recorded it, the result waited for as a report."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from zcompute.bus.errors import BusError, InvalidRequest, UnknownMethod, UnsupportedVersion
from zcompute.conductor.tasks.decision import Decision, raise_generation
from zcompute.conductor.tasks.run import TaskRun
from zcompute.failpoints import failpoint
from zcompute.objects.command import Order
from zcompute.objects.errors import CommandRefused
from zcompute.objects.instance import Instance
from zcompute.objects.interface import Method
from zcompute.objects.task import Task

log = logging.getLogger(__name__)

STALE_GENERATION = "stale_generation"

Make = Callable[[Order, Instance, Task], msgspec.Struct]
Decide = Callable[[Instance, Task, int], Decision]
Refuse = Callable[[Instance, Task, str, int], Decision]


@dataclass(frozen=True)
class Telling:
    """What to tell. ``grants``: the order makes the host the instance's reporter. ``lost`` is decided when the host is
    forced down, ``refused`` when its agent is of a release that does not know the method, or what it is asked for;
    ``untold`` (if at all) when the host was told nothing for certain, and is forced down, or not linked for
    ``link_wait_ms``. ``beside`` is done each time that the task has changed, or the command is sent again."""

    method: Method
    make: Make
    lost: Decide
    refused: Refuse
    grants: bool = False
    untold: Refuse | None = None
    link_wait_ms: int = 0
    beside: Callable[[TaskRun], None] | None = None


def tell(run: TaskRun, host: str, telling: Telling) -> None:
    """Until the task has moved on. It is sent again after a while and when the host's agent is back: the agent
    recognises a repeat. A host that is forced down and was told without an answer is lost even while it is linked.
    Raises the bus' errors, DeadlinePassed, TaskLost."""
    task = run.now_task()
    give_up_at = time.monotonic() + telling.link_wait_ms / 1000
    told_at = math.inf
    while run.is_at(task):
        run.changed.clear()
        silent = time.monotonic() - told_at >= run.settings.resend_ms / 1000
        lost = silent and run.env.commands.is_forced_down(host)
        if not lost and run.env.commands.reaches(host, telling.method):
            if telling.beside is not None:
                telling.beside(run)
            try:
                if _send(run, task, host, telling):
                    told_at = min(told_at, time.monotonic())
                    run.wait(run.settings.resend_ms)
                continue
            except BusError:
                if host not in run.env.forced_down([host]):
                    raise
        untold = telling.untold if host not in run.commanded and not run.parked else None
        if lost or host in run.env.forced_down([host]):
            log.warning("host is forced down uuid=%s host=%s kind=%s step=%s", run.uuid, host, task.kind, task.step)
            _give_up(run, untold, f"host {host} is forced down", telling.lost)
            return
        if untold is not None and time.monotonic() >= give_up_at:
            log.warning("host is not linked uuid=%s host=%s kind=%s step=%s", run.uuid, host, task.kind, task.step)
            _give_up(run, untold, f"host {host} is not linked", telling.lost)
            return
        run.wait(min(run.settings.resend_ms, telling.link_wait_ms or run.settings.resend_ms))


def _give_up(run: TaskRun, untold: Refuse | None, reason: str, lost: Decide) -> None:
    if untold is None:
        run.journal(lost)
    else:
        run.journal(lambda instance, task, now_us: untold(instance, task, reason, now_us))


def _send(run: TaskRun, task: Task, host: str, telling: Telling) -> bool:
    """True: recorded by the agent, or over. False: the generation was raised, send again. Raises BusError."""
    instance = run.instance
    grant = instance.generation if telling.grants else 0
    order = run.env.commands.order(instance, task, host, reporter_generation=grant)
    run.commanded.add(host)
    request = telling.make(order, instance, task)
    try:
        failpoint("telling.before_send")
        run.env.commands.send(host, telling.method, request, timeout_ms=run.left_ms(run.settings.command_ms_max))
        failpoint("telling.after_send")
    except CommandRefused as error:
        if error.details.get("reason") != STALE_GENERATION:
            raise
        log.warning("generation was stale uuid=%s host=%s generation=%s", run.uuid, host, order.generation)
        run.journal(raise_generation)
        return False
    except (UnsupportedVersion, UnknownMethod):
        reason = f"the agent of host {host} is of an older release: it knows no {telling.method.name}"
        _refused(run, telling, reason)
    except InvalidRequest as error:  # nothing was recorded: a verb, or a value, of a later release than the agent's
        _refused(run, telling, f"the agent of host {host} refuses it: {error}")
    except BusError:
        if not run.is_at(task):
            return True
        raise
    return True


def _refused(run: TaskRun, telling: Telling, reason: str) -> None:
    run.journal(lambda instance, task, now_us: telling.refused(instance, task, reason, now_us))
