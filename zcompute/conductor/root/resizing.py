"""What a resize counts at the root: raised before it begins, settled by its cell when it has ended.

A cell orders its words of one server by the row's count of decisions. A raise names the count that it was asked at; the
resize begins, or is given up, with a later decision, so whatever settles it has a higher count, and the late word of an
earlier one has not: it changes nothing.
"""

import logging
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from zcompute.bus.errors import Busy
from zcompute.conductor.change import Change
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.errors import WrongPartition
from zcompute.conductor.root.charging import Key, allowed_count, charge, limits_of, total_of
from zcompute.conductor.root.intake import instance_not_found, server_keys
from zcompute.conductor.root.quotas import Quotas
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.tables import MAPPINGS, QUOTAS, USAGES
from zcompute.failpoints import failpoint
from zcompute.objects.build_request import Usage
from zcompute.objects.errors import QuotaExceeded
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.quotas import ServerAmount
from zcompute.objects.methods import QUOTA_RAISE, QUOTA_SETTLE
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Amount, Limits

log = logging.getLogger(__name__)


def _is_mapped(change: Change, amount: ServerAmount) -> bool:
    """Whether the cell speaks of a server that it has."""
    mapping = change.get(MAPPINGS, (amount.uuid,))
    return (
        mapping is not None
        and (mapping.cell, mapping.generation) == (amount.cell, amount.generation)
        and mapping.project_id == amount.project_id
    )


def raise_usage(change: Change, amount: ServerAmount, default: Limits) -> bool:
    """Charge the larger of what is charged and ``amount``, if the limits leave room. False for a repeat.

    Raises QuotaExceeded, InstanceNotFound (not in that cell), Busy (the cell knows the server as newer by now).
    """
    former = change.get(USAGES, (amount.uuid,))
    if not _is_mapped(change, amount) or former is None:
        raise instance_not_found(amount.uuid)
    if former.decided > amount.decided:
        raise Busy(f"decision {former.decided} of server {amount.uuid} is known, found {amount.decided}",
                   retry_after_ms=0)  # fmt: skip
    more = Amount(cores=max(0, amount.cores - former.cores), ram_mb=max(0, amount.ram_mb - former.ram_mb))
    if more == Amount() and former.decided == amount.decided:
        return False
    if more != Amount():
        used = total_of(change, amount.project_id).used
        allowed_count(limits_of(change, amount.project_id, default), used, more, 1, 1)
    raised = replace(
        former,
        cores=former.cores + more.cores,
        ram_mb=former.ram_mb + more.ram_mb,
        decided=amount.decided,
        raised_at_us=change.now_us,
    )
    charge(change, [raised])
    return True


def settle_usage(change: Change, amount: ServerAmount) -> bool:
    """Charge ``amount`` from now on. False for an older word than the last, and for a server that is gone."""
    former = change.get(USAGES, (amount.uuid,))
    if former is None or not _is_mapped(change, amount) or former.decided >= amount.decided:
        return False
    settled = Usage(
        uuid=amount.uuid,
        project_id=amount.project_id,
        cores=amount.cores,
        ram_mb=amount.ram_mb,
        decided=amount.decided,
    )
    charge(change, [settled])
    return True


class Resizing:
    """The handlers, at the project's owner."""

    def __init__(
        self,
        env: ConductorEnv,
        quotas: Quotas,
        settings: RootSettings,
        require_cell: Callable[[Any, str], None],
    ) -> None:
        self._ledger = env.ledger
        self._quotas = quotas
        self._settings = settings
        self._require_cell = require_cell

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For cells."""
        return [(QUOTA_RAISE, self.raise_), (QUOTA_SETTLE, self.settle)]

    def raise_(self, request: ServerAmount, context: Any) -> Empty:
        """Raises QuotaExceeded, InstanceNotFound, Busy, Forbidden, NotOwner."""
        self._require_cell(context, request.cell)
        default = self._quotas.default()
        failpoint("quota.before_raise")
        try:
            raised = self._decide(request, lambda change: raise_usage(change, request, default), context)
        except QuotaExceeded:
            self._quotas.refused += 1
            raise
        failpoint("quota.after_raise")
        if raised:
            log.info("usage raised uuid=%s cores=%s ram_mb=%s", request.uuid, request.cores, request.ram_mb)
        return Empty()

    def settle(self, request: ServerAmount, context: Any) -> Empty:
        """Acknowledged whether or not there was something to change. Raises Forbidden, NotOwner, Busy."""
        self._require_cell(context, request.cell)
        if self._decide(request, lambda change: settle_usage(change, request), context):
            log.info("usage settled uuid=%s cores=%s ram_mb=%s", request.uuid, request.cores, request.ram_mb)
        return Empty()

    def _decide(self, request: ServerAmount, decide: Callable[[Change], bool], context: Any) -> bool:
        keys: list[Key] = [*server_keys(request.uuid, request.project_id), (QUOTAS, (request.project_id,))]
        timeout_ms = max(1, min(self._settings.commit_ms_max, context.remaining_ms()))
        try:
            return self._ledger.commit(partition_of(request.project_id), keys, decide, timeout_ms=timeout_ms)
        except WrongPartition as error:  # a server of another project
            raise instance_not_found(request.uuid) from error
