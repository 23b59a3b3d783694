"""Reports of agents: decoded, decided in the ledger, answered in bulk when their batches have committed."""

import logging
from functools import partial
from typing import Any

import msgspec

from zcompute.bus import Ack, Link, Report
from zcompute.bus.errors import Busy, NotOwner, UnsupportedVersion
from zcompute.conductor.cell.acks import Acks
from zcompute.conductor.cell.arrivals import Arrivals
from zcompute.conductor.cell.hosts import Hosts
from zcompute.conductor.cell.observations import GHOST, judge_observation, judge_step_result
from zcompute.conductor.cell.relay import Relay
from zcompute.conductor.cell.vouching import Vouching
from zcompute.conductor.change import Change, Keys, Ticket
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


class Heard(msgspec.Struct, frozen=True, eq=False):
    """A report of a host under the epoch of its agent. ``link`` and ``report`` are to be answered: the agent's own, or
    those of the relay; ``seq`` is the agent's in any case, ``partition`` the instance's."""

    link: Link
    report: Report
    body: Observation | StepResult
    epoch: int
    seq: int
    partition: int


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
        self._arrivals: Arrivals[Heard] = Arrivals(env.ledger, env.router, env.service_id, self._submit, self._not_ours)
        relay.answer = self._reply
        self._acks = Acks(commit_ms=env.ledger.commit_ms)
        self._stopped = False

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
        take = self._vouching.received if is_fellow(link.peer, self._cell) else self._of_agent
        for report in reports:
            take(link, report)

    def _of_agent(self, link: Link, report: Report) -> None:
        body = self._read(link, report, report.payload)
        if body is None:
            return
        epoch = self._attachments.epoch(link, body.host)
        if epoch is None:
            self._refuse_unattached(link, report, body.host)
        elif self._ours(partition := partition_of(report.key)):
            self._submit(Heard(link, report, body, epoch, report.seq, partition))
        else:
            self._hand_on(link, report, body, epoch)

    def _ours(self, partition: int) -> bool:
        return self._ledger.owns(partition) or self._arrivals.expected(partition)

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
        else:
            partition = partition_of(report.key)
            self._submit(Heard(link, report, body, relayed.agent_epoch, relayed.seq, partition))

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

    def _submit(self, heard: Heard, unread: Unread | None = None) -> None:
        link, report, body = heard.link, heard.report, heard.body
        uuid, partition = body.instance_uuid, heard.partition
        lane = self._ledger.lane_of(partition)
        if not lane and self._arrivals.expected(partition):
            self._arrivals.wait(partition, heard)
            return
        if lane and not link.admit_report(lane):
            self._answer(link, report, VERDICT_BUSY, lane=lane, retry_after_ms=LANE_RETRY_MS)
            return
        try:
            if isinstance(body, Observation):
                ticket = self._ledger.submit(
                    partition, [(INSTANCES, (uuid,))], partial(self._observe, body, heard.epoch, heard.seq)
                )
            else:
                known = self._engine.task_keys(uuid) if unread is None else [unread]
                keys: Keys = [(INSTANCES, (uuid,)), (TASKS, (body.task_id,)), *known]
                ticket = self._ledger.submit(partition, keys, partial(self._end_step, body))
        except (NotOwner, Busy) as error:
            self._settle(link, lane)
            self._put_off(link, report, lane, error)
        else:
            ticket.on_done(partial(self._done, heard, lane))

    def _settle(self, link: Link, lane: int) -> None:
        if lane:
            link.settle_report(lane)

    def _put_off(self, link: Link, report: Report, lane: int, error: NotOwner | Busy) -> None:
        """Nothing was decided, or nobody knows: it is to come again, here or at the owner that the map names."""
        if isinstance(error, NotOwner):
            self._answer(link, report, VERDICT_NOT_OWNER, version=self._ledger.map.version)
        else:
            self._answer(link, report, VERDICT_BUSY, str(error), lane=lane, retry_after_ms=error.retry_after_ms)

    # -- decide functions: no I/O, no yield -------------------------------------------------------------------------

    def _observe(self, body: Observation, epoch: int, seq: int, change: Change) -> Judged:
        instance = change.get(INSTANCES, (body.instance_uuid,))
        named = self._engine.named_hosts(body.instance_uuid)
        judged = judge_observation(instance, body, epoch, seq, named)
        if judged.decision is not None and judged.decision.instance is not None:
            observed = judged.decision.instance  # the judge's own copy
            observed.updated_at_us = change.now_us
            change.put(INSTANCES, observed, OBSERVED)
            if body.folded > 0:
                change.notify(events_folded(observed, body.folded, change.packed))
        return judged.verdict, judged.detail, None

    def _end_step(self, body: StepResult, change: Change) -> Judged | Unread:
        former = Snapshot(change.get(INSTANCES, (body.instance_uuid,)), change.get(TASKS, (body.task_id,)))
        judged = judge_step_result(former.instance, former.task, body, change.now_us, self._settings.ending_s_max)
        if judged.decision is None:
            return judged.verdict, judged.detail, None
        if former.task is not None and not change.loaded(*action_key(former.task)):
            return action_key(former.task)
        return judged.verdict, judged.detail, apply(change, former, judged.decision)

    # -- verdicts ---------------------------------------------------------------------------------------------------

    def _done(self, heard: Heard, lane: int, ticket: Ticket) -> None:
        link, report = heard.link, heard.report
        if lane:
            link.settle_report(lane)
        error = ticket.error
        if error is None:
            self._verdict(heard, lane, ticket)
        elif isinstance(error, NotOwner | Busy):
            self._put_off(link, report, lane, error)
        else:
            log.error("report not decided key=%s error=%s: %s", report.key, type(error).__name__, error)
            self._answer(link, report, VERDICT_NOT_YET, str(error), lane=lane)

    def _verdict(self, heard: Heard, lane: int, ticket: Ticket) -> None:
        link, report = heard.link, heard.report
        if len(ticket.result) == 2:  # a task that the engine has not read yet, soon after a gain
            self._submit(heard, ticket.result)
            return
        verdict, detail, snapshot = ticket.result
        if verdict in (VERDICT_NOT_YOURS, VERDICT_INVALID):
            log.warning(
                "security: report refused from=%s key=%s verdict=%s detail=%s",
                link.name, report.key, verdict, detail,
            )  # fmt: skip
        self._reply(link, Ack(report.key, report.seq, verdict, detail, lane))
        if detail == GHOST and not self._stopped:
            self._engine.ghosts.suspect(heard.body.host, heard.body.instance_uuid)
        if snapshot is not None:
            self._engine.applied(snapshot)

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
