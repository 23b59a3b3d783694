"""Reports of agents: decoded, decided in the ledger, answered in bulk when their batches have committed."""

import logging
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec

from zcompute.bus import Ack, Link, Report
from zcompute.bus.errors import Busy, NotOwner, UnsupportedVersion
from zcompute.conductor.cell.acks import Acks
from zcompute.conductor.cell.arrivals import Arrivals
from zcompute.conductor.cell.hosts import Hosts
from zcompute.conductor.cell.observations import GHOST, judge_observation, judge_step_result
from zcompute.conductor.cell.relay import Relay
from zcompute.conductor.cell.vouching import Vouching
from zcompute.conductor.change import QUEUED, Change, Keys, Ticket
from zcompute.conductor.env import ConductorEnv
from zcompute.conductor.errors import not_owner
from zcompute.conductor.fellows import is_fellow
from zcompute.conductor.notices import events_folded
from zcompute.conductor.tasks.decision import Snapshot, apply
from zcompute.conductor.tasks.engine import TaskEngine
from zcompute.conductor.tasks.history import action_key
from zcompute.conductor.tasks.settings import TaskSettings
from zcompute.db.tables import INSTANCES, TASKS, Key, TableCodec
from zcompute.log import REPEATED
from zcompute.objects.partition import partition_of
from zcompute.objects.relay import RelayedReport
from zcompute.objects.report import (
    VERDICT_BUSY,
    VERDICT_INVALID,
    VERDICT_NOT_OWNER,
    VERDICT_NOT_YET,
    VERDICT_NOT_YOURS,
    Observation,
    ReportBody,
    StepResult,
)

log = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(ReportBody).decode

# All that an observation changes (judge_observation, _observe, and the ledger's revision).
OBSERVED = ("updated_at_us", "power_state", "progress", "agent_epoch", "observed_seq", "revision")

LANE_RETRY_MS = 200  # when a report that its lane had no room for may come again

Judged = tuple[str, str, Snapshot | None]  # verdict, detail, the rows when they changed
Unread = tuple[TableCodec[Any], Key]  # a row that the decision needs beside those that were read


class Heard(Ticket, kw_only=True, eq=False):
    """A report of a host under the epoch of its agent: the ticket of its decision. ``link`` and ``report`` are to be
    answered: the agent's own, or those of the relay; ``seq`` is the agent's in any case, ``partition`` the instance's,
    ``lane`` the one that it was admitted to."""

    link: Link
    report: Report
    body: Observation | StepResult
    epoch: int
    seq: int
    lane: int = 0


class Reports:
    """The receiver of report frames. ``received`` never blocks: answers leave when tickets are done.

    A link has so much room in each lane (``Limits.lane_credit``); what is beyond is answered ``busy`` at once, whoever
    sends too much for a lane that is slow, so no report of another lane ever waits behind it.

    An agent's report of an instance that is another conductor's goes there by the ``relay``; one that a fellow
    conductor hands on is decided here or refused, never handed on again.
    """

    def __init__(
        self, env: ConductorEnv, engine: TaskEngine, hosts: Hosts, relay: Relay, settings: TaskSettings
    ) -> None:
        self._ledger = env.ledger
        self._cell = env.cell
        self._engine = engine
        self._attachments = hosts.attachments
        self._relay = relay
        self._vouching = Vouching(env, hosts, self._believed, self._answer)
        self._settings = settings
        self._arrivals: Arrivals[Heard] = Arrivals(
            env.ledger, env.router, env.service_id, self._arrived, self._not_ours
        )
        relay.answer = self._reply
        self._acks = Acks(commit_ms=env.ledger.commit_ms)
        self._stopped = False
        # Bound once: a method that is looked up is a new object, and these are kept by thousands of tickets.
        self._observing, self._ending_step, self._settling = self._observe, self._end_step, self._settle

    def start(self) -> None:
        """The ledger is ready."""
        self._arrivals.start()

    def stop(self) -> None:
        """No verdict leaves any more: what was not answered is reported again, to whoever owns it then."""
        self._stopped = True
        self._vouching.stop()
        self._arrivals.stop()
        self._acks.stop()

    def received(self, link: Link, reports: list[Report]) -> None:
        """A frame of reports of one agent, or of a fellow conductor that hands them on."""
        if is_fellow(link.peer, self._cell):
            for report in reports:
                self._vouching.received(link, report)
            return
        now_s = time.monotonic()
        for report in reports:
            self._of_agent(link, report, now_s)

    def _of_agent(self, link: Link, report: Report, now_s: float) -> None:
        body = self._read(link, report, report.payload)
        if body is None:
            return
        epoch = self._attachments.epoch(link, body.host)
        if epoch is None:
            self._refuse_unattached(link, report, body.host)
            return
        heard = self._heard(link, report, body, epoch, report.seq, now_s)
        if not self._submit(heard):
            self._hand_on(link, report, body, epoch)

    def _heard(
        self, link: Link, report: Report, body: Observation | StepResult, epoch: int, seq: int, now_s: float
    ) -> Heard:
        uuid = body.instance_uuid
        keys: Keys = ((INSTANCES, (uuid,)),)
        decide: Callable[[Change], Any] = self._observing
        if isinstance(body, StepResult):
            keys = ((INSTANCES, (uuid,)), (TASKS, (body.task_id,)), *self._engine.task_keys(uuid))
            decide = self._ending_step
        return Heard(
            partition_of(uuid), keys, decide, QUEUED, now_s,
            callback=self._settling, link=link, report=report, body=body, epoch=epoch, seq=seq,
        )  # fmt: skip

    def _not_ours(self, heard: Heard, partition: int) -> None:
        self._put_off(heard.link, heard.report, 0, not_owner(partition, self._ledger.map.version))

    def _hand_on(self, link: Link, report: Report, body: Observation | StepResult, epoch: int) -> None:
        try:
            self._relay.report(link, report, body, epoch)
        except UnsupportedVersion as error:
            self._answer(link, report, VERDICT_NOT_YET, str(error))
        except (NotOwner, Busy) as error:
            self._put_off(link, report, 0, error)

    def _believed(self, link: Link, report: Report, relayed: RelayedReport) -> None:
        """A fellow conductor vouches for this host and epoch; whose instance it is, is judged here."""
        body = self._read(link, report, relayed.payload)
        if body is None:
            return
        if body.host != relayed.host:
            self._refuse(link, report, f"the report is of host {body.host}, the relay vouches for {relayed.host}")
            return
        heard = self._heard(link, report, body, relayed.agent_epoch, relayed.seq, time.monotonic())
        if not self._submit(heard):
            self._not_ours(heard, heard.partition)

    def _read(self, link: Link, report: Report, payload: bytes) -> Observation | StepResult | None:
        """What is reported; None for what cannot be it, which is answered."""
        try:
            body: Observation | StepResult = _decode(payload)
        except msgspec.DecodeError as error:
            self._refuse(link, report, f"cannot be read: {error}")
            return None
        if body.instance_uuid != report.key:
            self._refuse(link, report, "the key is not the instance's uuid")
            return None
        return body

    def _refuse(self, link: Link, report: Report, detail: str) -> None:
        log.warning("report refused from=%s key=%s detail=%s", link.name, report.key, detail)
        self._answer(link, report, VERDICT_INVALID, detail)

    def _refuse_unattached(self, link: Link, report: Report, host: str) -> None:
        """Harmless for a host of the sender's key: the bus resends over a new link before the agent has attached."""
        if link.peer is None or host not in link.peer.hosts:
            self._refuse(link, report, f"host {host} is not attached to this link")
            return
        log.info("report before its host is attached from=%s host=%s", link.name, host, extra=REPEATED)
        self._answer(link, report, VERDICT_INVALID, f"host {host} is not attached to this link")

    def _arrived(self, heard: Heard) -> None:
        """Its partition is ours now; or was, and is another's again."""
        heard.asked_at_s = time.monotonic()
        if not self._submit(heard):
            self._not_ours(heard, heard.partition)

    def _submit(self, heard: Heard) -> bool:
        """Have it decided, now or when its partition arrives; False when that is another conductor's."""
        link, partition = heard.link, heard.partition
        lane = self._ledger.lane_of(partition)
        if not lane:
            if not self._arrivals.expected(partition):
                return False
            self._arrivals.wait(partition, heard)
            return True
        if not link.admit_report(lane):
            self._answer(link, heard.report, VERDICT_BUSY, lane=lane, retry_after_ms=LANE_RETRY_MS)
            return True
        heard.lane = lane
        try:
            self._ledger.take(heard)
        except (NotOwner, Busy) as error:
            link.settle_report(lane)
            self._put_off(link, heard.report, lane, error)
        return True

    def _put_off(self, link: Link, report: Report, lane: int, error: NotOwner | Busy) -> None:
        """Nothing was decided, or nobody knows: it is to come again, here or at the owner that the map names."""
        if isinstance(error, NotOwner):
            self._answer(link, report, VERDICT_NOT_OWNER, version=self._ledger.map.version)
        else:
            self._answer(link, report, VERDICT_BUSY, str(error), lane=lane, retry_after_ms=error.retry_after_ms)

    # -- decide functions: no I/O, no yield -------------------------------------------------------------------------

    def _observe(self, change: Change) -> Judged:
        heard = change.ticket
        body = heard.body
        instance = change.get(*heard.keys[0])
        named = self._engine.named_hosts(body.instance_uuid)
        judged = judge_observation(instance, body, heard.epoch, heard.seq, named)
        if judged.decision is not None and judged.decision.instance is not None:
            observed = judged.decision.instance  # the judge's own copy
            observed.updated_at_us = change.now_us
            change.put(INSTANCES, observed, OBSERVED)
            if body.folded > 0:
                change.notify(events_folded(observed, body.folded, change.packed))
        return judged.verdict, judged.detail, None

    def _end_step(self, change: Change) -> Judged | Unread:
        body = change.ticket.body
        former = Snapshot(change.get(INSTANCES, (body.instance_uuid,)), change.get(TASKS, (body.task_id,)))
        judged = judge_step_result(former.instance, former.task, body, change.now_us, self._settings.ending_s_max)
        if judged.decision is None:
            return judged.verdict, judged.detail, None
        if former.task is not None and not change.loaded(*action_key(former.task)):
            return action_key(former.task)
        return judged.verdict, judged.detail, apply(change, former, judged.decision)

    # -- verdicts ---------------------------------------------------------------------------------------------------

    def _settle(self, ticket: Ticket) -> None:
        """A report is decided and committed, or was not: its answer."""
        heard = cast(Heard, ticket)
        link, report, lane = heard.link, heard.report, heard.lane
        link.settle_report(lane)
        error = heard.error
        if error is None:
            self._verdict(heard)
        elif isinstance(error, NotOwner | Busy):
            self._put_off(link, report, lane, error)
        else:
            log.error("report not decided key=%s error=%s: %s", report.key, type(error).__name__, error)
            self._answer(link, report, VERDICT_NOT_YET, str(error), lane=lane)

    def _verdict(self, heard: Heard) -> None:
        link, report = heard.link, heard.report
        if len(heard.result) == 2:  # a task that the engine has not read yet, soon after a gain
            self._decide_with(heard, heard.result)
            return
        verdict, detail, snapshot = heard.result
        if verdict in (VERDICT_NOT_YOURS, VERDICT_INVALID):
            log.warning(
                "security: report refused from=%s key=%s verdict=%s detail=%s",
                link.name, report.key, verdict, detail,
            )  # fmt: skip
        self._acks.add(link, Ack(report.key, report.seq, verdict, detail, heard.lane))
        if detail == GHOST and not self._stopped:
            self._engine.ghosts.suspect(heard.body.host, heard.body.instance_uuid)
        if snapshot is not None:
            self._engine.applied(snapshot)

    def _decide_with(self, heard: Heard, unread: Unread) -> None:
        """Decide it again, with one more row."""
        again = self._heard(heard.link, heard.report, heard.body, heard.epoch, heard.seq, time.monotonic())
        again.keys = (*again.keys[:2], unread)
        if not self._submit(again):
            self._not_ours(again, again.partition)

    def _answer(
        self,
        link: Link,
        report: Report,
        verdict: str,
        detail: str = "",
        *,
        lane: int = 0,
        retry_after_ms: int = 0,
        version: int = 0,
    ) -> None:
        ack = Ack(report.key, report.seq, verdict, detail, lane, retry_after_ms, version)
        self._acks.add(link, ack, hurry=True)

    def _reply(self, link: Link, ack: Ack) -> None:
        self._acks.add(link, ack)
