"""A second look at parked tasks, by time: a host may have come back, or been forced down, without anybody saying so.

What wakes a parked task at once (its host attaches, a delete, news that the host is forced down) can be missed: the
conductor that heard it may have died, the look that it caused may have failed. The sweep makes sure by time.
"""

import logging
from collections.abc import Callable, Iterable

import gevent

from zcompute.conductor.tasks.run import TaskEnv, TaskRun

log = logging.getLogger(__name__)


class ParkedSweep:
    """``runs`` are all tasks of the owned partitions, ``wake`` begins one of them again. Every ``parked_look_s`` the
    next ``parked_looks_max`` parked tasks are looked at, going round by uuid."""

    def __init__(self, env: TaskEnv, runs: Callable[[], Iterable[TaskRun]], wake: Callable[[TaskRun], None]) -> None:
        self._env = env
        self._runs = runs
        self._wake = wake
        self._after = ""
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin."""
        self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _loop(self) -> None:
        while True:
            gevent.sleep(self._env.settings.parked_look_s)
            try:
                self.sweep()
            except Exception as error:  # noqa: BLE001  # the database may be away: the next round tries again
                log.info("parked tasks not looked at error=%s: %s", type(error).__name__, error)

    def sweep(self) -> int:
        """One round; returns how many tasks were woken. Raises StoreError."""
        page = self._next_page()
        silent = {run.uuid: _silent_hosts(run) for run in page}
        away = {host for hosts in silent.values() for host in hosts if not self._env.commands.has_way(host)}
        forced = self._forced_down(sorted(away))
        woken = [run for run in page if _can_go_on(silent[run.uuid], away, forced)]
        for run in woken:
            log.info("parked task looked at again uuid=%s kind=%s", run.uuid, run.now_task().kind)
            self._wake(run)
        return len(woken)

    def _next_page(self) -> list[TaskRun]:
        limit = self._env.settings.parked_looks_max
        parked = sorted((run for run in self._runs() if run.parked), key=lambda run: run.uuid)
        page = [run for run in parked if run.uuid > self._after][:limit]
        self._after = page[-1].uuid if len(page) == limit else ""
        return page

    def _forced_down(self, hosts: list[str]) -> set[str]:
        return self._env.forced_down(hosts) if hosts else set()


def _can_go_on(silent: set[str], away: set[str], forced: set[str]) -> bool:
    return not silent or bool(silent - away) or bool(silent & forced)


def _silent_hosts(run: TaskRun) -> set[str]:
    """The hosts whose answer, or end, the task waits for; empty: it waits for nobody and can go on."""
    body = run.now_task().body
    return {host for host in body.named_hosts if host not in body.destroyed}
