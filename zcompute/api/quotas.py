"""/os-quota-sets and /limits: what a project may have and has, by the word of its owner at the root."""

import logging
from typing import Any, cast

from zcompute.api import context
from zcompute.api.errors import BadRequest, Forbidden
from zcompute.api.quota_views import (
    QUOTA_SET_BODY,
    QuotaSetBody,
    absolute_limits,
    quota_detail,
    quota_set,
    wanted_limits,
)
from zcompute.api.region import Region
from zcompute.api.schemas import decode
from zcompute.bus.errors import InvalidRequest
from zcompute.config import ApiConfig
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.quotas import QuotaDefaultReply, QuotaReply, QuotaRequest, QuotaSetRequest
from zcompute.objects.methods import QUOTA_DEFAULT, QUOTA_GET, QUOTA_SET
from zcompute.objects.quota import RESOURCES, Limits

log = logging.getLogger(__name__)

PROJECT_CHARS_MAX = 255
SHOW, UPDATE, DELETE, DETAIL, DEFAULTS, LIMITS_OF_OTHERS = (
    "os_compute_api:os-quota-sets:show",
    "os_compute_api:os-quota-sets:update",
    "os_compute_api:os-quota-sets:delete",
    "os_compute_api:os-quota-sets:detail",
    "os_compute_api:os-quota-sets:defaults",
    "os_compute_api:os-used-limits",
)


class _Quotas:
    """What the resources share."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def _require(self, req: Any, project_id: str, policy: str, *, own: bool = True) -> None:
        """Administrators may all, others what is of their own project, where ``own``. Raises Forbidden, BadRequest."""
        caller = context.caller_of(req)
        if not caller.is_admin and not (own and caller.project_id == project_id):
            raise Forbidden(f"Policy doesn't allow {policy} to be performed.")
        if len(project_id) > PROJECT_CHARS_MAX:
            raise BadRequest(f"Project ID {project_id[:40]} is not a valid project.")
        if any(name == "user_id" for name, _ in context.query_of(req)):
            raise BadRequest("Invalid input for query parameters user_id. Quotas of users are not supported.")

    def _of(self, req: Any, project_id: str) -> QuotaReply:
        request = QuotaRequest(project_id=project_id)
        left_ms = context.deadline_of(req).left_ms
        return cast(QuotaReply, self._region.ask_owner(project_id, QUOTA_GET, request, left_ms))

    def _set(self, req: Any, request: QuotaSetRequest) -> QuotaReply:
        left_ms = context.deadline_of(req).left_ms
        try:
            return cast(QuotaReply, self._region.ask_owner(request.project_id, QUOTA_SET, request, left_ms))
        except InvalidRequest as error:
            raise BadRequest(str(error)) from None


class QuotaSet(_Quotas):
    """/os-quota-sets/PROJECT"""

    def __init__(self, region: Region, config: ApiConfig) -> None:
        super().__init__(region)
        self._config = config

    def on_get(self, req: Any, resp: Any, project_id: str) -> None:
        """The limits in force."""
        self._require(req, project_id, SHOW)
        reply = self._of(req, project_id)
        context.answer(resp, {"quota_set": {"id": project_id, **quota_set(reply)}})

    def on_put(self, req: Any, resp: Any, project_id: str) -> None:
        """Set some of them; a limit below what is used needs ``force``."""
        self._require(req, project_id, UPDATE, own=False)
        body: QuotaSetBody = decode(QUOTA_SET_BODY, context.read_body(req, self._config.body_bytes_max))
        limits, force = wanted_limits(body)
        reply = self._set(req, QuotaSetRequest(project_id=project_id, limits=limits, force=force))
        log.info("quota set project=%s", project_id)
        context.answer(resp, {"quota_set": quota_set(reply)})

    def on_delete(self, req: Any, resp: Any, project_id: str) -> None:
        """Give all back to the default."""
        self._require(req, project_id, DELETE, own=False)
        self._set(req, QuotaSetRequest(project_id=project_id, limits=Limits(), unset=list(RESOURCES), force=True))
        log.info("quota given back project=%s", project_id)
        resp.status = "202 Accepted"


class QuotaSetDefaults(_Quotas):
    """/os-quota-sets/PROJECT/defaults"""

    def on_get(self, req: Any, resp: Any, project_id: str) -> None:
        """The limits of a project that has none of its own."""
        self._require(req, project_id, DEFAULTS)
        left_ms = context.deadline_of(req).left_ms
        reply = cast(QuotaDefaultReply, self._region.ask(ROOT_CELL, QUOTA_DEFAULT, Empty(), left_ms))
        context.answer(resp, {"quota_set": {"id": project_id, **quota_set(reply)}})


class QuotaSetDetail(_Quotas):
    """/os-quota-sets/PROJECT/detail"""

    def on_get(self, req: Any, resp: Any, project_id: str) -> None:
        """The limits, and what is used of each."""
        self._require(req, project_id, DETAIL)
        reply = self._of(req, project_id)
        context.answer(resp, {"quota_set": {"id": project_id, **quota_detail(reply)}})


class LimitsItem(_Quotas):
    """/limits: of the caller's project, or for administrators of ``tenant_id``."""

    def on_get(self, req: Any, resp: Any) -> None:
        """Absolute limits with what is used; there are no rate limits."""
        named = [value for name, value in context.query_of(req) if name == "tenant_id"]
        project_id = named[0] if named else context.caller_of(req).project_id
        self._require(req, project_id, LIMITS_OF_OTHERS)
        reply = self._of(req, project_id)
        context.answer(resp, {"limits": {"rate": [], "absolute": absolute_limits(reply)}})
