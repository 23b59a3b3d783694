"""The role of a cell's conductor: puts its parts together, and hands them what gained partitions bring."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import gevent

from zcompute.conductor.cell.actions import Actions
from zcompute.conductor.cell.auto_confirm import AutoConfirm
from zcompute.conductor.cell.auto_offload import AutoOffload
from zcompute.conductor.cell.census import Census
from zcompute.conductor.cell.claim_service import Claims
from zcompute.conductor.cell.crossing import Crossing
from zcompute.conductor.cell.fencing import Fencing
from zcompute.conductor.cell.grants import Grants
from zcompute.conductor.cell.history_purge import history_purge
from zcompute.conductor.cell.host_enabling import HostEnabling
from zcompute.conductor.cell.host_states import HostStates
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.hosts import Hosts
from zcompute.conductor.cell.instances import Instances
from zcompute.conductor.cell.placement_service import Placements
from zcompute.conductor.cell.quarantine import Quarantine
from zcompute.conductor.cell.reads import Reads
from zcompute.conductor.cell.reclaim import Reclaim
from zcompute.conductor.cell.registration import Registration
from zcompute.conductor.cell.relay import Relay
from zcompute.conductor.cell.reports import Reports
from zcompute.conductor.cell.resizing import Raising
from zcompute.conductor.cell.root_outbox import RootOutbox
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.cell.standings import Standings
from zcompute.conductor.cell.tasks import Tasks
from zcompute.conductor.commands import Commands
from zcompute.conductor.enrolment.service import Enrolments
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.errors import ConductorError
from zcompute.conductor.fellows import Fellows
from zcompute.conductor.notices import tell_of_rows
from zcompute.conductor.notifiers.service import Notifications
from zcompute.conductor.schedulers import Schedulers
from zcompute.conductor.tasks.engine import TaskEngine
from zcompute.conductor.tasks.run import TaskEnv
from zcompute.conductor.tasks.settings import TaskSettings
from zcompute.conductor.upkeep.service import Upkeep
from zcompute.conductor.ways import Ways
from zcompute.db.errors import StoreError
from zcompute.db.tables import HOSTS, INSTANCES, ROOT_OUTBOX, TASKS, TableCodec
from zcompute.log import REPEATED
from zcompute.measure import Measure, Spread
from zcompute.objects.base import VersionedObject
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.errors import ObjectError
from zcompute.objects.interface import Method
from zcompute.objects.task import Task

log = logging.getLogger(__name__)

T = TypeVar("T", bound=VersionedObject)


class CellRole:
    """One incarnation's cell role (zcompute.conductor.env.Role)."""

    def __init__(
        self,
        env: ConductorEnv,
        *,
        settings: CellSettings | None = None,
        task_settings: TaskSettings | None = None,
    ) -> None:
        if env.root_router is None:
            raise ConductorError(f"cell {env.cell} needs a router to the root cell, found none")
        self._env = env
        self._settings = settings or CellSettings(outbox_rows_max=env.config.conductor.root_outbox_rows_max)
        task_settings = task_settings or TaskSettings(
            build_deadline_s=env.config.conductor.build_deadline_s,
            delete_deadline_s=env.config.conductor.delete_deadline_s,
            permit_post_copy=env.config.conductor.live_migration_permit_post_copy,
            shelved_offload_time_s=env.config.conductor.shelved_offload_time_s,
        )
        self._table = HostTable()
        self._fellows = Fellows(env.endpoint, env.cell)
        self._ways = Ways(self._fellows)
        self._commands = Commands(env.ledger, self._ways)
        self._relay = Relay(env, self._fellows, self._commands)
        self._outbox = RootOutbox(env, env.root_router, self._settings)
        self.engine = TaskEngine(
            TaskEnv(
                cell=env.cell,
                ledger=env.ledger,
                router=env.router,
                commands=self._commands,
                schedulers=Schedulers(env.endpoint, env.cell),
                forced_down=self._forced_down,
                owed=self._outbox.owed,
                settings=task_settings,
            )
        )
        fencing = Fencing(env.config.fencing, env.cell, env.service_id)
        self._quarantine = Quarantine(env, self._table, self._commands, self.engine.ghosts)
        self._hosts = Hosts(
            env,
            self._table,
            self._commands,
            self._relay,
            self._fellows,
            self._settings,
            fencing,
            self._quarantine.check,
        )
        self._enabling = HostEnabling(env, self._table, self._settings)
        self._grants = Grants(env, self._relay, self._fellows, self._settings)
        self._claims = Claims(env, self._table, self._settings)
        self._placements = Placements(env, self._settings)
        self._states = HostStates(env.endpoint, env.ledger, self._table)
        self._reports = Reports(env, self.engine, self._hosts, self._relay, task_settings)
        reclaim_s = env.config.conductor.reclaim_interval_s
        self._instances = Instances(
            env, self.engine, self._outbox, self._settings, task_settings, reclaims=reclaim_s > 0
        )
        self._reclaim = Reclaim(env.ledger, env.store, reclaim_s, self._settings, self._instances.reclaim)
        raising = Raising(env, env.root_router, self._outbox.owed, self._settings)
        self._actions = Actions(
            env, self.engine, self._settings, task_settings, self._forced_down, raising, self._outbox.check_room
        )
        self._crossing = Crossing(env, self.engine, self._settings, task_settings, self._forced_down)
        self._auto_confirm = AutoConfirm(
            env.ledger, env.store, env.config.conductor.resize_confirm_window_s, self._settings, self._actions.confirm
        )
        self._auto_offload = AutoOffload(
            env.ledger, env.store, task_settings.shelved_offload_time_s, self._settings, self._actions.offload
        )
        self._tasks = Tasks(env, self.engine, self._settings, task_settings)
        self._reads = Reads(env, self._settings)
        self._census = Census(env, self._settings)
        self._standings = Standings(env)
        self._registration = Registration(env, env.root_router, self._table, self._settings)
        self._notifications = Notifications(env, env.config.notifications)
        self._history = history_purge(env)
        self._upkeep = Upkeep(env)
        self._enrolments = Enrolments(env)
        self._stopped = False

    def handlers(self) -> list[tuple[Method, Handler]]:
        """Interfaces host, relay, claim, group, instance, task and service."""
        return [
            *self._hosts.handlers(),
            *self._enabling.handlers(),
            *self._grants.handlers(),
            *self._relay.handlers(),
            *self._claims.handlers(),
            *self._placements.handlers(),
            *self._instances.handlers(),
            *self._actions.handlers(),
            *self._crossing.handlers(),
            *self._tasks.handlers(),
            *self._quarantine.handlers(),
            *self._reads.handlers(),
            *self._census.handlers(),
            *self._standings.handlers(),
            *self._notifications.handlers(),
            *self._upkeep.handlers(),
            *self._enrolments.handlers(),
        ]

    def start(self) -> None:
        """Begin, with the partitions that are owned already and those that come."""
        env = self._env
        self._commands.on_attach(self.engine.host_attached)
        self._commands.on_forced_down(self.engine.host_forced_down)
        self._reports.start()
        env.endpoint.on_reports(self._reports.received)
        self._fellows.start()
        self._ways.start()
        self._relay.start()
        self._states.start()
        self._hosts.start()
        self._quarantine.start()
        self._claims.start()
        self._placements.start()
        self.engine.start()
        self._registration.start()
        env.ledger.on_decided(tell_of_rows)
        self._notifications.start()
        self._enrolments.start()
        self._history.start()
        self._reclaim.start()
        self._auto_confirm.start()
        self._auto_offload.start()
        env.ledger.on_gain(self._gained)
        env.ledger.on_lose(self._lost)
        gevent.spawn(self._gained, env.ledger.owned())

    def stop(self) -> None:
        """End every greenlet and let no verdict out any more."""
        self._stopped = True
        self._reports.stop()
        self._relay.stop()
        self._ways.stop()
        self.engine.stop()
        self._outbox.stop()
        self._history.stop()
        self._reclaim.stop()
        self._auto_offload.stop()
        self._auto_confirm.stop()
        self._notifications.stop()
        self._enrolments.stop()
        self._registration.stop()
        self._claims.stop()
        self._placements.stop()
        self._quarantine.stop()
        self._hosts.stop()

    def measures(self) -> Iterable[Measure | Spread]:
        """For the metrics."""
        return [
            *self._notifications.measures(),
            *self._outbox.measures(self._env.ledger.now_us()),
            *self.engine.measures(),
        ]

    # -- ownership --------------------------------------------------------------------------------------------------

    def _gained(self, partitions: list[int]) -> None:
        """Hosts first: schedulers and claims need them; then the tasks, then what the root is owed."""
        if not partitions:
            return
        gained_at = time.monotonic()
        self._notifications.gained(partitions)
        self._table.hold(self._owned(partitions))
        self._each_page(HOSTS, partitions, self._hosts.gained)
        self._states.gained(self._owned(partitions))
        tasks = self._each_page(TASKS, partitions, partial(self._adopt, gained_at))
        owed = self._each_page(ROOT_OUTBOX, partitions, self._owe)
        log.info("partitions gained count=%s hosts=%s tasks=%s owed=%s", len(partitions), len(self._table), tasks, owed)

    def _lost(self, partitions: list[int]) -> None:
        gone = [partition for partition in partitions if not self._env.ledger.owns(partition)]
        self.engine.lose(gone)
        self._outbox.lost(gone)
        self._notifications.lost(gone)
        self._states.lost(gone)
        self._hosts.lost(gone)
        log.info("partitions lost count=%s", len(gone))

    def _owned(self, partitions: Sequence[int]) -> list[int]:
        return list(self._env.ledger.owner_epochs(partitions))

    def _each_page(self, table: TableCodec[T], partitions: Sequence[int], take: Callable[[list[T]], None]) -> int:
        """Read all rows of these partitions, page by page; a database that is away is waited for while they are owned.

        Rows that cannot be read keep back no other partition's.
        """
        count = failures = 0
        after = None
        rows = self._settings.scan_rows
        while not self._stopped and (owned := self._owned(partitions)):
            try:
                page = self._env.store.scan(table, partitions=owned, limit=rows, after=after)
                take(page)
            except StoreError as error:
                failures += 1
                log.info("rows not read table=%s failures=%s error=%s", table.name, failures, error, extra=REPEATED)
                gevent.sleep(self._settings.scan_retry_ms / 1000)
                continue
            except ObjectError as error:
                if len(owned) == 1:
                    log.error("rows cannot be read table=%s partition=%s error=%s", table.name, owned[0], error)
                    break
                middle = len(owned) // 2
                return sum(self._each_page(table, half, take) for half in (owned[:middle], owned[middle:]))
            count += len(page)
            if len(page) < rows:
                break
            after = table.key_of(page[-1])
        return count

    def _adopt(self, gained_at: float, tasks: list[Task]) -> None:
        """Their instances are read after them: one that has no longer this task is found out at the first commit."""
        if tasks:
            rows = self._env.store.fetch(INSTANCES, [(task.instance_uuid,) for task in tasks])
            self.engine.gained([(rows.get((task.instance_uuid,)), task) for task in tasks], gained_at)

    def _owe(self, entries: list[OutboxEntry]) -> None:
        for entry in entries:
            self._outbox.owed(entry)

    def _forced_down(self, hosts: Sequence[str]) -> set[str]:
        """Which of these an operator (or a fence) has forced down: read at the primary. Raises StoreError."""
        rows = self._env.store.fetch(HOSTS, [(host,) for host in hosts])
        return {host.name for host in rows.values() if host.forced_down}
