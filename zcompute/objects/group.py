"""Server groups: what a project asks of where its servers are with regard to one another."""

import msgspec

from zcompute.objects.base import VersionedObject

AFFINITY = "affinity"
ANTI_AFFINITY = "anti-affinity"
SOFT_AFFINITY = "soft-affinity"
SOFT_ANTI_AFFINITY = "soft-anti-affinity"
POLICIES = (ANTI_AFFINITY, AFFINITY, SOFT_ANTI_AFFINITY, SOFT_AFFINITY)
SOFT = frozenset({SOFT_AFFINITY, SOFT_ANTI_AFFINITY})
"""Policies that are followed where there is a choice."""
TOGETHER = frozenset({AFFINITY, SOFT_AFFINITY})
"""Policies that want the members on one host, and so in one cell."""


class GroupRule(VersionedObject):
    """What a server carries of its group: all that placing it needs, so that no cell has to ask the root.

    ``max_server_per_host`` is for anti-affinity: how many members one host may have.
    """

    uuid: str
    policy: str
    max_server_per_host: int = 1


class ServerGroup(VersionedObject):
    """The definition, in the root cell by its project. Members are the servers whose mapping names the group.

    ``cell`` is where the members of a group with affinity are: that of the first one; None before there is any, and
    for the other policies.
    """

    uuid: str
    project_id: str
    user_id: str
    name: str
    policy: str
    max_server_per_host: int = 1
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    cell: str | None = None
    created_at_us: int = 0
    revision: int = 1

    @property
    def rule(self) -> GroupRule:
        """For a server's spec."""
        return GroupRule(uuid=self.uuid, policy=self.policy, max_server_per_host=self.max_server_per_host)


class GroupPlacement(VersionedObject):
    """A member's reserved place, kept by the owner of the group's partition in the member's cell, keyed as the claim
    of the same attempt: in force while the claim of this name is."""

    group_uuid: str
    instance_uuid: str
    task_id: str
    attempt: int
    host: str
    created_at_us: int = 0

    @property
    def name(self) -> str:
        """As the instance's row names the claim: "task/attempt"."""
        return f"{self.task_id}/{self.attempt}"


class GroupStanding(VersionedObject):
    """All placements of one group: derived from their rows, never stored."""

    group_uuid: str
    placements: list[GroupPlacement] = msgspec.field(default_factory=list)
    revision: int = 1
