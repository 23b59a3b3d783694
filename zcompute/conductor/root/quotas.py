"""Interface ``quota`` at the root: limits of projects and of all others, and what is used of them."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from msgspec.structs import replace

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.change import Change
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.root.charging import Key, limits_of, total_key, total_of
from zcompute.conductor.root.groups import Groups
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.tables import QUOTA_CLASSES, QUOTAS
from zcompute.measure import Measure
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.quotas import (
    QuotaDefaultReply,
    QuotaDefaultSetRequest,
    QuotaReply,
    QuotaRequest,
    QuotaSetRequest,
    QuotaUsageReply,
    QuotaUsageRequest,
)
from zcompute.objects.methods import QUOTA_DEFAULT, QUOTA_GET, QUOTA_SET, QUOTA_SET_DEFAULT, QUOTA_USAGE
from zcompute.objects.partition import GLOBAL_KEY, partition_of
from zcompute.objects.quota import DEFAULT_CLASS, LIMIT_MAX, RESOURCES, UNLIMITED, Amount, Limits, Quota, QuotaClass

log = logging.getLogger(__name__)

R = TypeVar("R")

FIELD_OF = {"instances": "instances", "cores": "cores", "ram": "ram_mb"}


def checked(limits: Limits, unset: Iterable[str]) -> dict[str, int | None]:
    """The fields to be changed. Raises InvalidRequest for a limit below -1 or over LIMIT_MAX, or a strange name."""
    changes: dict[str, int | None] = {}
    for name in unset:
        if name not in FIELD_OF:
            raise InvalidRequest(f"expected one of {', '.join(RESOURCES)}, found {name[:40]}", field="unset")
        changes[FIELD_OF[name]] = None
    for name, field in FIELD_OF.items():
        limit = getattr(limits, field)
        if limit is None:
            continue
        if not UNLIMITED <= limit <= LIMIT_MAX:
            raise InvalidRequest(f"{name}: expected -1 (no limit) to {LIMIT_MAX}, found {limit}", field=name)
        changes[field] = limit
    return changes


def require_room(limits: Limits, used: Amount) -> None:
    """In Nova's words. Raises InvalidRequest for a limit below what is used."""
    for name, limit in limits.by_name():
        if limit != UNLIMITED and limit < used.of(name):
            raise InvalidRequest(
                f"Quota limit {limit} for {name} must be greater than or equal to already used and reserved "
                f"{used.of(name)}.",
                field=name,
            )


def set_quota(change: Change, request: QuotaSetRequest, changes: dict[str, int | None], default: Limits) -> QuotaReply:
    """Change a project's own limits; a row that says nothing any more goes. Raises InvalidRequest."""
    project_id = request.project_id
    former = change.get(QUOTAS, (project_id,))
    quota = replace(former or Quota(project_id=project_id), **changes)
    used = total_of(change, project_id).used
    if not request.force:
        named = Limits(**{field: limit for field, limit in changes.items() if limit is not None})
        require_room(named, used)
    if quota.limits != Limits():
        change.put(QUOTAS, quota)
    elif former is not None:
        change.delete(QUOTAS, (project_id,))
    return QuotaReply(limits=quota.limits.over(default), own=quota.limits, used=used)


class Quotas:
    """The handlers, and the default limits: read from the primary, kept for ``quota_cache_ms``."""

    def __init__(self, env: ConductorEnv, settings: RootSettings, groups: Groups) -> None:
        self._env = env
        self._groups = groups
        self._settings = settings
        config = env.config.quota
        self._configured = Limits(instances=config.instances, cores=config.cores, ram_mb=config.ram_mb)
        self._own = Limits()
        self._read_at: float | None = None
        self.refused = 0  # creates that a quota has refused

    def handlers(self) -> list[tuple[Method, Handler]]:
        """All but what the reconciler serves."""
        return [
            (QUOTA_GET, self.get),
            (QUOTA_SET, self.set),
            (QUOTA_DEFAULT, self.default_get),
            (QUOTA_SET_DEFAULT, self.default_set),
            (QUOTA_USAGE, self.usage),
        ]

    def measures(self) -> Iterable[Measure]:
        """For the metrics."""
        yield Measure("quota_refused", "requests for servers that a project's quota has refused", self.refused, True)

    def default(self) -> Limits:
        """The limits of a project that has none of its own. Raises StoreError."""
        now = time.monotonic()
        if self._read_at is None or now - self._read_at >= self._settings.quota_cache_ms / 1000:
            row = self._env.store.fetch(QUOTA_CLASSES, [(DEFAULT_CLASS,)]).get((DEFAULT_CLASS,))
            self._own = Limits() if row is None else row.limits
            self._read_at = now
        return self._own.over(self._configured)

    def get(self, request: QuotaRequest, context: Any) -> QuotaReply:
        """At the project's owner, or handed on to it. Raises NotOwner, Busy."""
        project_id, default = request.project_id, self.default()
        groups = self._groups.limits(project_id)

        def decide(change: Change) -> QuotaReply:
            quota = change.get(QUOTAS, (project_id,))
            own = Limits() if quota is None else quota.limits
            return QuotaReply(
                limits=limits_of(change, project_id, default),
                own=own,
                used=total_of(change, project_id).used,
                groups=groups,
            )

        reply: QuotaReply = self._at_owner(project_id, QUOTA_GET, request, context, _keys(project_id), decide)
        return reply

    def set(self, request: QuotaSetRequest, context: Any) -> QuotaReply:
        """At the project's owner, or handed on to it. Raises InvalidRequest, NotOwner, Busy."""
        if not 1 <= len(request.project_id) <= 255:
            raise InvalidRequest("expected a project's id of 1 to 255 characters", field="project_id")
        changes, default = checked(request.limits, request.unset), self.default()
        groups = self._groups.limits(request.project_id)
        reply: QuotaReply = self._at_owner(
            request.project_id,
            QUOTA_SET,
            request,
            context,
            _keys(request.project_id),
            lambda change: replace(set_quota(change, request, changes, default), groups=groups),
        )
        log.info("quota set project=%s own=%s force=%s", request.project_id, reply.own, request.force)
        return reply

    def default_get(self, request: Empty, context: Any) -> QuotaDefaultReply:
        """At any conductor; what was set elsewhere is seen within ``quota_cache_ms``."""
        return QuotaDefaultReply(limits=self.default(), own=self._own, groups=self._groups.limits())

    def default_set(self, request: QuotaDefaultSetRequest, context: Any) -> QuotaDefaultReply:
        """At the owner of the global tables, or handed on to it. Raises InvalidRequest, NotOwner, Busy."""
        changes = checked(request.limits, request.unset)

        def decide(change: Change) -> QuotaDefaultReply:
            former = change.get(QUOTA_CLASSES, (DEFAULT_CLASS,))
            row = replace(former or QuotaClass(), **changes)
            change.put(QUOTA_CLASSES, row)
            return QuotaDefaultReply(limits=row.limits.over(self._configured), own=row.limits)

        keys: list[Key] = [(QUOTA_CLASSES, (DEFAULT_CLASS,))]
        reply: QuotaDefaultReply = self._at_owner(GLOBAL_KEY, QUOTA_SET_DEFAULT, request, context, keys, decide)
        self._read_at = None
        log.info("default quota set own=%s", reply.own)
        return reply

    def usage(self, request: QuotaUsageRequest, context: Any) -> QuotaUsageReply:
        """A page of all projects with servers, summed at the primary. Raises InvalidRequest."""
        if not 1 <= request.limit <= self._settings.list_rows_max:
            raise InvalidRequest(f"expected 1 to {self._settings.list_rows_max}, found {request.limit}", field="limit")
        return QuotaUsageReply(usages=self._env.store.project_usages(request.after, request.limit))

    def _at_owner(
        self, key: str, method: Method, request: Any, context: Any, rows: list[Key], decide: Callable[[Change], R]
    ) -> Any:
        if self._env.forwarding.needed(key, context):
            return self._env.forwarding.call(key, method, request, context)
        timeout_ms = max(1, min(self._settings.commit_ms_max, context.remaining_ms()))
        return self._env.ledger.commit(partition_of(key), rows, decide, timeout_ms=timeout_ms)


def _keys(project_id: str) -> list[Key]:
    return [(QUOTAS, (project_id,)), total_key(project_id)]
