"""Interface ``group`` at the root: the definitions of server groups, and who their members are."""

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.change import Change
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.errors import WrongPartition
from zcompute.conductor.root.grouping import Seen, create_group, delete_group, group_not_found
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.tables import MAPPINGS, SERVER_GROUPS, Key
from zcompute.db.view import View
from zcompute.objects.build_request import InstanceMapping
from zcompute.objects.group import POLICIES, ServerGroup
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.groups import (
    GroupCreateRequest,
    GroupListReply,
    GroupListRequest,
    GroupRequest,
    GroupView,
)
from zcompute.objects.methods import GROUP_CREATE, GROUP_DELETE, GROUP_GET, GROUP_LIST
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import UNLIMITED, GroupLimits

log = logging.getLogger(__name__)

R = TypeVar("R")


class Groups:
    """Definitions are written by the owner of the project; any conductor answers reads."""

    def __init__(self, env: ConductorEnv, settings: RootSettings) -> None:
        self._env = env
        self._settings = settings
        self._groups_max = env.config.quota.server_groups
        self.members_max = env.config.quota.server_group_members

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For the API."""
        return [
            (GROUP_CREATE, self.create),
            (GROUP_GET, self.get),
            (GROUP_LIST, self.list_groups),
            (GROUP_DELETE, self.delete),
        ]

    def seen(self, uuid: str) -> Seen:
        """The group and its members as the primary has them: its row first, then those. As many members as may be, and
        one more. Raises StoreError."""
        if not uuid:
            return Seen()
        group = self._env.store.fetch(SERVER_GROUPS, [(uuid,)]).get((uuid,))
        if group is None:
            return Seen()
        rows_max = self._settings.group_members_page
        limit = rows_max if self.members_max == UNLIMITED else min(rows_max, self.members_max + 1)
        members = self._env.store.scan(MAPPINGS, where={"group_uuid": uuid}, limit=limit)
        return Seen(group.revision, frozenset(mapping.uuid for mapping in members))

    def limits(self, project_id: str | None = None) -> GroupLimits:
        """What is allowed, and how many groups the project has by the primary's word. Raises StoreError."""
        used = 0 if project_id is None else self._count(project_id)
        return GroupLimits(groups=self._groups_max, members=self.members_max, used=used)

    def _count(self, project_id: str) -> int:
        limit = self._settings.groups_read_max if self._groups_max == UNLIMITED else self._groups_max + 1
        return len(self._env.store.scan(SERVER_GROUPS, where={"project_id": project_id}, limit=limit))

    def create(self, request: GroupCreateRequest, context: Any) -> GroupView:
        """At the project's owner. A repeat finds the group of the first time. Raises InvalidRequest, QuotaExceeded,
        NotOwner."""
        if request.policy not in POLICIES:
            raise InvalidRequest(f"expected one of {', '.join(POLICIES)}, found {request.policy[:40]}", field="policy")
        present = 0 if self._groups_max == UNLIMITED else self._count(request.project_id)
        group = self._decide(
            request.project_id,
            request.uuid,
            lambda change: create_group(change, request, present, self._groups_max),
            context,
        )
        log.info("server group created group=%s policy=%s", group.uuid, group.policy)
        return GroupView(group=group, members=[])

    def delete(self, request: GroupRequest, context: Any) -> Empty:
        """At the project's owner. Members stay where they are. Raises InvalidRequest without a project,
        ServerGroupNotFound, NotOwner."""
        project_id = request.project_id
        if project_id is None:
            raise InvalidRequest("expected the group's project, found none", field="project_id")
        self._decide(project_id, request.uuid, lambda change: delete_group(change, request.uuid, project_id), context)
        log.info("server group deleted group=%s", request.uuid)
        return Empty()

    def get(self, request: GroupRequest, context: Any) -> GroupView:
        """Raises ServerGroupNotFound."""

        def read(view: View) -> list[GroupView]:
            group = view.fetch(SERVER_GROUPS, [(request.uuid,)]).get((request.uuid,))
            if group is None or request.project_id not in (None, group.project_id):
                raise group_not_found(request.uuid)
            return self._with_members(view, [group])

        return self._env.reads.read(context, read)[0]

    def list_groups(self, request: GroupListRequest, context: Any) -> GroupListReply:
        """A page, in the order of uuids. Raises InvalidRequest."""
        limit, offset = max(0, min(request.limit, self._settings.groups_list_max)), request.offset
        if not 0 <= offset <= self._settings.groups_read_max:
            raise InvalidRequest(f"expected 0 to {self._settings.groups_read_max}, found {offset}", field="offset")
        where = {} if request.project_id is None else {"project_id": request.project_id}

        def read(view: View) -> list[GroupView]:
            groups = view.scan(SERVER_GROUPS, where=where, limit=offset + limit)
            return self._with_members(view, groups[offset:])

        return GroupListReply(groups=self._env.reads.read(context, read))

    def _with_members(self, view: View, groups: list[ServerGroup]) -> list[GroupView]:
        """Raises InvalidRequest where they have more members than one answer has room for."""
        members: dict[str, list[str]] = defaultdict(list)
        where = {"group_uuid": [group.uuid for group in groups]}
        rows, rows_max = self._settings.group_members_page, self._settings.group_members_max
        page: list[InstanceMapping] = []
        after: Key | None = None
        found = 0
        while groups and (after is None or len(page) == rows):
            page = view.scan(MAPPINGS, where=where, limit=rows, after=after)
            found += len(page)
            if found > rows_max:
                raise InvalidRequest(
                    f"these {len(groups)} server groups have more than {rows_max} members: ask for fewer at once",
                    field="limit",
                )
            for mapping in page:
                members[mapping.group_uuid or ""].append(mapping.uuid)
            after = MAPPINGS.key_of(page[-1]) if page else ()
        return [GroupView(group=group, members=members[group.uuid]) for group in groups]

    def _decide(self, project_id: str, uuid: str, decide: Callable[[Change], R], context: Any) -> R:
        ticket = self._env.ledger.submit(partition_of(project_id), [(SERVER_GROUPS, (uuid,))], decide)
        remaining: int = context.remaining_ms()
        try:
            result: R = ticket.wait(max(1, min(self._settings.commit_ms_max, remaining)))
        except WrongPartition as error:  # another project's group
            raise group_not_found(uuid) from error
        return result
