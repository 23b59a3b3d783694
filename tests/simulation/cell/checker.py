"""What must hold, whatever fails: checked at every commit, acknowledgement and command, and once all is at rest."""

import logging
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from tests.simulation.cell.database import Rows
from tests.simulation.cell.groups import against_policy, placed
from tests.simulation.cell.hypervisor import Hypervisors
from tests.simulation.cell.loop import BEGIN_S
from tests.simulation.cell.rest import AtRest
from zcompute.bus import Ack, Report
from zcompute.conductor.tasks.build_walk import STEP_SPAWN
from zcompute.conductor.tasks.moves.plans import STEP_BUILD
from zcompute.db.batch import Batch, Delete
from zcompute.db.tables import CLAIMS, HOSTS, INSTANCE_ACTIONS, INSTANCES, NOTIFICATIONS, TASKS
from zcompute.objects.command import Order
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.quota import Amount
from zcompute.objects.report import (
    VERDICT_ALREADY_THERE,
    VERDICT_APPLIED,
    Observation,
    ReportBody,
    StepResult,
)
from zcompute.objects.task import TaskBody

_decode = msgspec.msgpack.Decoder(ReportBody).decode
log = logging.getLogger(__name__)

VIOLATIONS_MAX = 20
NOTE_INSTANCE, NOTE_TYPE = map(NOTIFICATIONS.columns.index, ("instance_uuid", "event_type"))
TASK_INSTANCE = TASKS.columns.index("instance_uuid")
INSTANCE_CLAIM, INSTANCE_HOST, INSTANCE_STATE = map(INSTANCES.columns.index, ("claim", "host", "vm_state"))
# Rows are compared as they are stored, where objects would cost more than the comparison.
CLAIM_HOST = CLAIMS.columns.index("host")
CLAIMED = slice(CLAIMS.columns.index("vcpus"), CLAIMS.columns.index("disk_gb") + 1)
USED = slice(HOSTS.columns.index("used_vcpus"), HOSTS.columns.index("used_disk_gb") + 1)


class Checker(AtRest):
    """Collects violations, and a digest of all that happened, by which two runs of a seed are known to be the same."""

    def __init__(
        self, rows: Rows, hypervisors: Hypervisors, now_s: Callable[[], float], charged: Callable[[str], Amount]
    ) -> None:
        self.violations: list[str] = []
        self.digest = 0
        self.commits = self.acks = self.commands = 0
        self.seen: Counter[str] = Counter()  # what has come up, for the coverage of many seeds
        self._rows = rows
        self._hypervisors = hypervisors
        self._charged = charged
        self._now_s = now_s
        self._numbers: dict[int, int] = {}
        self._reported: dict[tuple[str, str, int], Observation | StepResult] = {}
        self._generations: dict[tuple[str, str], int] = {}
        self._stateless: set[str] = set()
        self._created: set[str] = set()
        self._deleted: set[str] = set()
        self._acted: dict[str, str] = {}
        self._notified: dict[int, int] = {}
        self._told: Counter[tuple[str, str]] = Counter()  # how often each event of each instance was told
        self._instances: dict[str, tuple[Any, Instance]] = {}  # as they were last looked at, with their rows
        rows.watch = self.committed
        rows.strayed = lambda text: self.violated("stale writer", text)
        hypervisors.made = self.made
        hypervisors.began = self.began

    def violated(self, rule: str, text: str) -> None:
        """A rule was broken."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(f"{self._now_s() - BEGIN_S:.4f} {rule}: {text}")

    def note(self, *what: object) -> None:
        """Something happened that a repeat must show at the same time."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", " ".join(map(str, what)))
        self.digest = zlib.crc32(f"{self._now_s():.6f} {what}".encode(), self.digest)

    # -- commits ------------------------------------------------------------------------------------------------

    def committed(self, batch: Batch, former: dict[str, dict[Any, Any]]) -> None:
        """A batch has just committed; ``former`` are the tables that it changed, as they were."""
        self.commits += 1
        self.note("commit", batch.lane_id, batch.number, batch.rows())
        lane = self._rows.lanes.get(batch.lane_id)
        if lane is None or not lane.alive:
            self.violated("stale writer", f"dead lane {batch.lane_id} committed batch {batch.number}")
        expected = self._numbers.get(batch.lane_id, 0) + 1
        if batch.number != expected:
            self.violated("repeated", f"lane {batch.lane_id} committed {batch.number}, expected {expected}")
        self._numbers[batch.lane_id] = batch.number
        for change in batch.changes:
            name = change.table.name
            width = len(change.table.key_columns)
            keys = change.keys if isinstance(change, Delete) else [row[:width] for row in change.rows]
            if name == INSTANCES.name:
                for key in keys:
                    self._instance_changed(former[name].get(key), self._rows.tables[name].get(key))
            elif name == HOSTS.name:
                for key in keys:
                    self._claims_add_up(key)
            elif name == NOTIFICATIONS.name:
                self._notified_in_order(change)

    def _instance(self, row: Any) -> Instance:
        """A row as an object; it is read once, however often it is looked at."""
        uuid = row[0]
        known = self._instances.get(uuid)
        if known is not None and known[0] is row:
            return known[1]
        instance: Instance = INSTANCES.from_row(row)
        self._instances[uuid] = (row, instance)
        return instance

    def _instance_changed(self, old_row: Any, new_row: Any) -> None:
        old = None if old_row is None else self._instance(old_row)
        if new_row is None:
            if old is not None and old.vm_state != VM_DELETED:
                self.violated("lost", f"instance {old.uuid} is gone")
            return
        new = self._instance(new_row)
        if placed(new) and (old is None or old.host != new.host):
            self._members_by_policy()
        observed = (new.generation, new.agent_epoch, new.observed_seq)
        if old is not None:
            self._never_back(old, new)
            if (old.generation, old.agent_epoch, old.observed_seq) == observed:
                shown = new.observed_seq and new.vm_state != VM_DELETED
                if shown and new.power_state != old.power_state:
                    self.violated("inverted", f"{new.uuid} power {new.power_state} behind {old.power_state}, observed")
                if msgspec.structs.replace(old, revision=new.revision, updated_at_us=new.updated_at_us) == new:
                    self.violated("repeated", f"{new.uuid} was written again with what it had, {observed}")
                return
        if new.observed_seq and new.host is not None:
            body = self._reported.get((new.host, new.uuid, new.observed_seq))
            told = isinstance(body, Observation) and (body.power_state == new.power_state or body.gone)
            if not told and new.host not in self._stateless:
                self.violated("invented", f"{new.uuid} shows power {new.power_state}, {new.host} reported {body}")

    def _members_by_policy(self) -> None:
        for text in against_policy(map(self._instance, self._rows.tables[INSTANCES.name].values())):
            self.violated("group", text)

    def _never_back(self, old: Instance, new: Instance) -> None:
        uuid = new.uuid
        if new.mapping_generation > old.mapping_generation:
            return
        was = (old.generation, old.agent_epoch, old.observed_seq)
        now = (new.generation, new.agent_epoch, new.observed_seq)
        if now < was:
            self.violated("inverted", f"{uuid} observed {now} behind {was}")
        if new.command_generation < old.command_generation or new.decided < old.decided:
            self.violated("inverted", f"{uuid} decided {new.decided} behind {old.decided}")
        if old.vm_state == VM_DELETED != new.vm_state:
            self.violated("inverted", f"{uuid} is {new.vm_state}, it was deleted")
        if new.revision <= old.revision:
            self.violated("inverted", f"{uuid} revision {new.revision} after {old.revision}")

    def _claims_add_up(self, key: tuple[Any, ...]) -> None:
        row = self._rows.tables[HOSTS.name].get(key)
        if row is None:
            return
        claims = [claim[CLAIMED] for claim in self._rows.tables[CLAIMS.name].values() if claim[CLAIM_HOST] == row[0]]
        claimed = tuple(map(sum, zip(*claims, strict=True))) or (0, 0, 0)
        if claimed != row[USED]:
            self.violated("claims", f"host {row[0]} uses {row[USED]}, its claims are {claimed}")

    def _notified_in_order(self, change: Any) -> None:
        if isinstance(change, Delete):
            return
        self._told.update((row[NOTE_INSTANCE], row[NOTE_TYPE]) for row in change.rows)
        for partition, n in sorted(row[: len(NOTIFICATIONS.key_columns)] for row in change.rows):
            last = self._notified.get(partition, 0)
            if n != last + 1:
                self.violated("notification", f"partition {partition} has {n} behind {last}")
            self._notified[partition] = n
            self.seen["notification"] += 1

    # -- reports and their verdicts -----------------------------------------------------------------------------

    def reported(self, host: str, reports: list[Report]) -> None:
        """An agent sends these."""
        for report in reports:
            known = self._reported.get((host, report.key, report.seq))
            body = _decode(report.payload)
            if known is not None and known != body:
                self.violated("invented", f"{host} reports {body} under the sequence of {known}")
            self._reported[host, report.key, report.seq] = body
            self.note("report", host, report.seq, type(body).__name__, report.key[-4:], body.power_state)

    def acknowledged(self, host: str, acks: list[Ack]) -> None:
        """An agent hears these verdicts: what is called applied must be committed."""
        for ack in acks:
            self.acks += 1
            self.note("ack", host, ack.seq, ack.verdict)
            self.seen[f"verdict {ack.verdict}"] += 1
            if ack.verdict not in (VERDICT_APPLIED, VERDICT_ALREADY_THERE):
                continue
            body = self._reported.get((host, ack.key, ack.seq))
            if body is None and host in self._stateless:
                continue
            row = self._rows.tables[INSTANCES.name].get((ack.key,))
            if body is None or row is None:
                self.violated("lost", f"{ack.verdict} for {ack.key} {ack.seq} of {host}: nothing is there")
                continue
            instance = self._instance(row)
            if isinstance(body, Observation):
                behind = instance.generation < body.generation or (
                    instance.generation == body.generation and instance.observed_seq < ack.seq
                )
                if behind and instance.vm_state != VM_DELETED:
                    self.violated("lost", f"{ack.key} {ack.seq} of {host} acknowledged, at {instance.observed_seq}")
            else:
                self._step_is_over(instance, body)

    def _step_is_over(self, instance: Instance, body: StepResult) -> None:
        row = self._rows.tables[TASKS.name].get((body.task_id,))
        task = None if row is None else TASKS.from_row(row)
        if task is None or instance.command_generation != body.generation:
            return
        if (task.step, task.attempt) == (body.step, body.attempt) and body.host not in task.body.destroyed:
            self.violated("lost", f"the result of {body.step} of {body.instance_uuid} acknowledged, not applied")

    def lost_state(self, host: str) -> None:
        """An agent's state directory is gone: its sequences and generations begin anew, under a new epoch."""
        self._stateless.add(host)
        for key in [key for key in self._reported if key[0] == host]:
            del self._reported[key]
        for place in [place for place in self._generations if place[0] == host]:
            del self._generations[place]

    def restarted(self, host: str, owed: set[Any], kept: set[Any]) -> None:
        """An agent lives again: what it owed when it was killed must be owed still."""
        if not owed <= kept:
            self.violated("lost", f"{host} forgot {len(owed - kept)} of {len(owed)} entries of its outbox")

    # -- commands -----------------------------------------------------------------------------------------------

    def obeyed(self, host: str, name: str, order: Order, epoch_known: int) -> None:
        """An agent has accepted a command. ``epoch_known``: the highest owner epoch of the partition it had heard."""
        self.commands += 1
        self.note("obeyed", host, name, order.instance_uuid, order.generation)
        self.seen[f"command {name}"] += 1
        if order.owner_epoch < epoch_known:
            self.violated("dead owner", f"{host} obeyed {name} of epoch {order.owner_epoch}, it knew {epoch_known}")
        key = (host, order.instance_uuid)
        newest = self._generations.get(key, 0)
        if order.generation < newest:
            self.violated("old command", f"{host} obeyed {name} of generation {order.generation} after {newest}")
        self._generations[key] = max(newest, order.generation)

    def began(self, host: str, name: str, order: Order) -> None:
        """A hypervisor begins to carry a command out; what a failed spawn clears away is no command."""
        newest = self._generations.get((host, order.instance_uuid), 0)
        clears = name == "destroy" and order.step in (STEP_SPAWN, STEP_BUILD)
        if order.generation < newest and not clears:
            self.violated("old command", f"{host} begins a {name} of generation {order.generation} after {newest}")

    def made(self, host: str, uuid: str) -> None:
        """A machine has come to be on a host, or runs again where its copy stood still."""
        self.note("made", host, uuid)
        where = self._hypervisors.live(uuid)
        if where != [host]:
            self.violated("two copies", f"{uuid} runs on {where}")
        row = self._rows.tables[INSTANCES.name].get((uuid,))
        if row is None or INSTANCES.from_row(row).vm_state == VM_DELETED:
            self.violated("resurrected", f"{uuid} was made on {host}, it is deleted")
        else:
            self._made_where_it_belongs(host, INSTANCES.from_row(row))

    def _made_where_it_belongs(self, host: str, instance: Instance) -> None:
        """Its row's host, or one of the task that it has."""
        row = None if instance.task_id is None else self._rows.tables[TASKS.name].get((instance.task_id,))
        body = TaskBody() if row is None else TASKS.from_row(row).body
        if host not in {instance.host, body.host, body.source, *body.named_hosts}:
            self.violated("astray", f"{instance.uuid} was made on {host}, it is on {instance.host}, on its way {body}")

    # -- clients ------------------------------------------------------------------------------------------------

    def created(self, uuid: str) -> None:
        """The root was told that the cell has this server."""
        self.note("created", uuid)
        self._created.add(uuid)
        if (uuid,) not in self._rows.tables[INSTANCES.name]:
            self.violated("lost", f"build of {uuid} acknowledged, there is no row")

    def deleted(self, uuid: str) -> None:
        """A client was told that this server will be deleted."""
        self.note("deleted", uuid)
        self._deleted.add(uuid)
        row = self._rows.tables[INSTANCES.name].get((uuid,))
        tasks = (task[TASK_INSTANCE] for task in self._rows.tables[TASKS.name].values())
        if row is not None and row[INSTANCE_STATE] != VM_DELETED and uuid not in tasks:
            self.violated("lost", f"delete of {uuid} acknowledged, it is {row[INSTANCE_STATE]} and has no task")

    def acted(self, uuid: str, operation_id: str) -> None:
        """A client was told that this will be done: it stands in the history, under way or over."""
        self.note("acted", uuid, operation_id)
        self.seen["acted"] += 1
        self._acted[operation_id] = uuid
        if (uuid, operation_id) not in self._rows.tables[INSTANCE_ACTIONS.name]:
            self.violated("lost", f"{operation_id} of {uuid} acknowledged, its history does not know it")

    def known_servers(self) -> set[str]:
        """Those that the cell has taken."""
        return self._created
