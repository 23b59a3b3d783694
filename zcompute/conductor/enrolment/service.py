"""Tokens and enrolled keys at a cell's conductors: decided at the owner of ``global``, followed by all of them.

The root's tokens are for conductors of cells, a cell's for its computes and schedulers: nobody is let in where it has
nothing to say.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent

from zcompute.bus import KeyEntry
from zcompute.bus.errors import Busy, Forbidden, InvalidRequest
from zcompute.conductor.change import Change, Keys
from zcompute.conductor.enrolment.decisions import (
    COUNTER_ID,
    ENROLLING,
    NAME,
    TOKEN_NAME,
    Z85_KEY,
    check_create,
    create_enrolment,
    enrol,
    entries_of,
    put_enrolments,
    refused,
    revoke_enrolment,
)
from zcompute.conductor.enrolment.settings import EnrolmentLimits
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.fellows import is_fellow
from zcompute.db.errors import StoreError
from zcompute.db.tables import CELLS, ENROLMENTS
from zcompute.failpoints import failpoint
from zcompute.log import REPEATED
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.enrolment import Enrolment
from zcompute.objects.errors import CellNotFound, EnrolmentRefused, ObjectError
from zcompute.objects.interface import Method
from zcompute.objects.messages.topology import (
    AcceptedKey,
    EnrolmentCreateRequest,
    EnrolmentListReply,
    EnrolmentListRequest,
    EnrolmentReply,
    EnrolmentRevokeRequest,
    EnrolReply,
    EnrolRequest,
)
from zcompute.objects.methods import ENROLMENT_CREATE, ENROLMENT_ENROL, ENROLMENT_LIST, ENROLMENT_REVOKE
from zcompute.objects.partition import GLOBAL_KEY, PartitionMap, partition_of

log = logging.getLogger(__name__)

CALLS_EVERY_CELL = ("api", "operator")
ENROLMENTS_SOURCE, FELLOWS_SOURCE = "enrolments", "fellows"


class Enrolments:
    """The handlers of interface ``enrolment``, and what they mean for the keyring of this conductor."""

    def __init__(self, env: ConductorEnv, limits: EnrolmentLimits | None = None) -> None:
        self._env = env
        self._limits = limits or EnrolmentLimits()
        self._roles = ("conductor",) if env.cell == ROOT_CELL else ("compute", "scheduler")
        self._seen = -1
        self._ends_at_us: int | None = None
        self._greenlet: gevent.Greenlet | None = None

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For operators, and for those who hold a token."""
        return [
            (ENROLMENT_CREATE, self.create),
            (ENROLMENT_LIST, self.list_enrolments),
            (ENROLMENT_REVOKE, self.revoke),
            (ENROLMENT_ENROL, self.enrol),
        ]

    def start(self) -> None:
        """Follow the rows, and the map for the keys of the cell's other conductors."""
        if self._env.endpoint.keyring is None:
            return
        self._env.ledger.on_map(self._take_fellows)
        self._take_fellows(self._env.ledger.map)
        self._greenlet = gevent.spawn(self._poll)

    def stop(self) -> None:
        """End; the keyring stays as it is until the next life looks."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    # -- handlers ---------------------------------------------------------------------------------------------------

    def create(self, request: EnrolmentCreateRequest, context: Any) -> EnrolmentReply:
        """Raises InvalidRequest, CellNotFound, EnrolmentRefused, Busy, Forbidden, NotOwner."""
        self._require_operator(context)
        check_create(request, self._limits)
        of_cells = self._env.cell == ROOT_CELL
        if request.role not in self._roles or (request.cell == self._env.cell) == of_cells:
            whose = "other cells" if of_cells else "its own"
            raise InvalidRequest(
                f"cell {self._env.cell} enrols {' and '.join(self._roles)} of {whose}, "
                f"found a {request.role} of {request.cell}",
                field="role",
            )
        if self._env.forwarding.needed(GLOBAL_KEY, context):
            forwarded: EnrolmentReply = self._env.forwarding.call(GLOBAL_KEY, ENROLMENT_CREATE, request, context)
            return forwarded
        if sum(1 for _ in self._rows()) >= self._limits.rows_max:
            raise Busy(f"rows_max={self._limits.rows_max} tokens are kept: revoke some", retry_after_ms=60_000)
        keys: Keys = [(CELLS, (request.cell,))] if of_cells else []

        def decide(change: Change) -> EnrolmentReply:
            if of_cells:
                cell = change.get(CELLS, (request.cell,))
                if cell is None or cell.deleted_at_us:
                    raise CellNotFound(f"cell {request.cell} is not known: create it first", cell=request.cell)
            return create_enrolment(change, request, context.peer.service_id)

        return self._commit(request.id, decide, "create", context, keys, dry_run=request.dry_run)

    def list_enrolments(self, request: EnrolmentListRequest, context: Any) -> EnrolmentListReply:
        """Raises InvalidRequest, Forbidden."""
        self._require_operator(context)
        if not 1 <= request.limit <= self._limits.page_rows:
            raise InvalidRequest(f"expected 1 to {self._limits.page_rows} rows, found {request.limit}", field="limit")
        found = self._env.store.scan(ENROLMENTS, limit=request.limit, after=(request.after,))
        return EnrolmentListReply(enrolments=found)

    def revoke(self, request: EnrolmentRevokeRequest, context: Any) -> EnrolmentReply:
        """Raises EnrolmentRefused for an unknown id, Forbidden, NotOwner."""
        self._require_operator(context)
        if self._env.forwarding.needed(GLOBAL_KEY, context):
            forwarded: EnrolmentReply = self._env.forwarding.call(GLOBAL_KEY, ENROLMENT_REVOKE, request, context)
            return forwarded
        return self._commit(
            request.id, lambda change: revoke_enrolment(change, request.id), "revoke", context, dry_run=request.dry_run
        )

    def enrol(self, request: EnrolRequest, context: Any) -> EnrolReply:
        """From whoever has proved a token's secret by the handshake. Raises EnrolmentRefused, Forbidden, NotOwner."""
        peer = context.peer
        if peer.role == ENROLLING:
            if peer.key_name != TOKEN_NAME + request.id:
                raise Forbidden(f"key {peer.key_name} is not that of token {request.id}")
        elif not is_fellow(peer, self._env.cell):
            raise Forbidden(f"a {peer.role} of cell {peer.cell} enrols nobody here")
        try:
            self._check_names(request)
            if self._env.forwarding.needed(GLOBAL_KEY, context):
                forwarded: EnrolReply = self._env.forwarding.call(GLOBAL_KEY, ENROLMENT_ENROL, request, context)
                self.refresh()
                return forwarded
            done = self._commit(request.id, lambda change: enrol(change, request.id, request), "enrol", context)
        except EnrolmentRefused as error:
            reason = str(error.details.get("reason", ""))
            self._env.endpoint.refusals.count("enrolment", f"{peer.role}/{peer.service_id}@{peer.cell}", reason)
            raise
        row = done.enrolment
        own_map = self._env.ledger.map
        return EnrolReply(
            role=row.role,
            cell=row.cell,
            hosts=list(row.hosts),
            conductors=[own_map.conductors[name] for name in sorted(own_map.conductors)],
            accepted=self._callers() if row.role == "conductor" else [],
        )

    # -- the keyring ------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what is let in now. Raises StoreError."""
        keyring = self._env.endpoint.keyring
        if keyring is None:
            return
        counter = self._env.store.fetch(ENROLMENTS, [(COUNTER_ID,)]).get((COUNTER_ID,))
        version = 0 if counter is None else counter.uses_max
        now_us = self._env.ledger.now_us()
        if version == self._seen and (self._ends_at_us is None or now_us < self._ends_at_us):
            return
        entries, self._ends_at_us = entries_of(self._rows(), now_us, self._limits.explained_s * 1_000_000)
        keyring.take_beside(ENROLMENTS_SOURCE, entries)
        self._seen = version
        log.info("enrolments read version=%s keys=%s", version, len(entries))

    def _rows(self) -> Iterator[Enrolment]:
        after: tuple[Any, ...] | None = None
        while True:
            page = self._env.store.scan(ENROLMENTS, limit=self._limits.page_rows, after=after)
            yield from page
            if len(page) < self._limits.page_rows:
                return
            after = ENROLMENTS.key_of(page[-1])

    def _poll(self) -> None:
        while True:
            try:
                self.refresh()
            except (StoreError, ObjectError) as error:
                log.info("enrolments not read, the former ones count error=%s", error, extra=REPEATED)
            gevent.sleep(self._limits.poll_ms / 1000)

    def _take_fellows(self, new_map: PartitionMap) -> None:
        """Whoever is entered in the cell's own database as one of its conductors may speak as one: it can write there.

        Their keys are let in without being in any keyring; a key that is revoked there stays out.
        """
        keyring = self._env.endpoint.keyring
        if keyring is not None:
            told = [info for _, info in sorted(new_map.conductors.items()) if Z85_KEY.fullmatch(info.public_key)]
            entries = [KeyEntry(info.service_id, info.public_key, "conductor", self._env.cell) for info in told]
            keyring.take_beside(FELLOWS_SOURCE, entries)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _callers(self) -> list[AcceptedKey]:
        keyring = self._env.endpoint.keyring
        entries = keyring.entries() if keyring is not None else []
        return [
            AcceptedKey(name=entry.name, public_key=entry.public_key, role=entry.role, cell=entry.cell)
            for entry in entries
            if entry.role in CALLS_EVERY_CELL
        ]

    def _check_names(self, request: EnrolRequest) -> None:
        """Raises EnrolmentRefused for a name or a key that is another's."""
        if not NAME.fullmatch(request.service_id) or not Z85_KEY.fullmatch(request.public_key):
            raise refused("foreign", "expected a service's name and a public key of 40 characters of z85")
        keyring = self._env.endpoint.keyring
        if keyring is None:
            return
        if keyring.is_revoked(request.public_key):
            raise refused("revoked", "the public key was revoked: make a new one")
        named, holder = keyring.by_name(request.service_id), keyring.by_public_key(request.public_key)
        if named is not None and request.public_key not in named.public_keys:
            raise refused("foreign", f"a key is named {request.service_id} already: choose another id, or revoke it")
        if holder is not None and holder.name != request.service_id:
            raise refused("foreign", "the public key is another's already: make a new one")

    def _commit(
        self,
        enrolment_id: str,
        decide: Callable[[Change], EnrolmentReply],
        what: str,
        context: Any,
        more: Keys = (),
        *,
        dry_run: bool = False,
    ) -> EnrolmentReply:
        def decided(change: Change) -> EnrolmentReply:
            reply = decide(change)
            if reply.changed and not dry_run:
                put_enrolments(change, [reply.enrolment])
            return reply

        keys: Keys = [(ENROLMENTS, (enrolment_id,)), (ENROLMENTS, (COUNTER_ID,)), *more]
        timeout_ms = max(1, min(self._limits.commit_ms_max, context.remaining_ms()))
        reply: EnrolmentReply = self._env.ledger.commit(partition_of(GLOBAL_KEY), keys, decided, timeout_ms=timeout_ms)
        if reply.changed and not dry_run:
            failpoint(f"enrolment.{what}.committed")
            row = reply.enrolment
            log.warning(
                "audit: enrolment %s id=%s role=%s cell=%s hosts=%s uses=%s/%s by=%s", what, row.id, row.role, row.cell,
                ",".join(row.hosts[:5]), len(row.enrolled), row.uses_max, context.peer.service_id,
            )  # fmt: skip
            self.refresh()
        return reply

    def _require_operator(self, context: Any) -> None:
        peer = context.peer
        if (peer.role, peer.cell) != ("operator", ROOT_CELL) and not is_fellow(peer, self._env.cell):
            raise Forbidden(f"a {peer.role} of cell {peer.cell} does not manage tokens")
