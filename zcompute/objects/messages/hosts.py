"""Requests and replies about hosts: agents, claims, schedulers."""

import msgspec

from zcompute.objects.flavor import Amounts
from zcompute.objects.host import Host, HostInventory


class HostBeginRequest(msgspec.Struct, kw_only=True):
    """A new agent takes up its host, at the owner of the host's partition.

    ``in_doubt``: its state directory does not hold all that a former agent of the host has learnt.
    """

    inventory: HostInventory
    service_id: str
    in_doubt: bool = False


class HostBeginReply(msgspec.Struct, kw_only=True):
    """The committed epoch of the host, one above any former one.

    ``owner_epochs``, to an agent in doubt: those of all partitions, read at the primary after the commit, so none that
    a former agent can have heard of is higher. Empty otherwise, and for a host that never had an agent.
    """

    agent_epoch: int
    owner_epochs: list[int] = msgspec.field(default_factory=list)


class HostGrantsRequest(msgspec.Struct, kw_only=True):
    """Which instances of these partitions does the host report? Asked of their owner, page by page, behind ``after``
    (a uuid)."""

    host: str
    partitions: list[int]
    after: str = ""


class Grant(msgspec.Struct, kw_only=True):
    """The owner's word that the host reports this instance under ``reporter_generation``; ``generation`` is that of the
    newest command."""

    instance_uuid: str
    generation: int
    reporter_generation: int


class HostGrantsReply(msgspec.Struct, kw_only=True):
    """A page, in the order of uuids. ``owner_epochs``: for which of the partitions it holds, by partition, and since
    when they are the answering owner's. ``after``: how far it goes; empty when nothing is behind it."""

    grants: list[Grant]
    owner_epochs: dict[int, int]
    after: str = ""


class HostAttachRequest(msgspec.Struct, kw_only=True):
    """The epochs under which this link reports; checked against the primary once a link."""

    epochs: dict[str, int]


class HostBeat(msgspec.Struct, kw_only=True):
    """The agent's work loop is alive, for these hosts. The receiver hands on what it is not the owner of."""

    hosts: list[str]


class HostForceDownRequest(msgspec.Struct, kw_only=True):
    """An operator's word that a host is down for certain (or, with False, that it may work again). With ``dry_run``
    nothing is changed. ``fence``: only once the owner's fence command has made sure of it."""

    host: str
    forced_down: bool = True
    dry_run: bool = False
    fence: bool = False


class HostForceDownReply(msgspec.Struct, kw_only=True):
    """The host's row, after the commit. ``changed`` False: it was so already; of a dry run: whether it would change."""

    host: Host
    changed: bool


class HostEnableRequest(msgspec.Struct, kw_only=True):
    """Whether the host takes new servers; ``reason`` of one that does not. With ``dry_run`` nothing is changed."""

    host: str
    enabled: bool
    reason: str | None = None
    dry_run: bool = False


class HostEnableReply(msgspec.Struct, kw_only=True):
    """As HostForceDownReply."""

    host: Host
    changed: bool


class LeftBehindRequest(msgspec.Struct, kw_only=True):
    """From a host's owner to an instance's: the host, which is in quarantine, has a domain of it."""

    host: str
    instance_uuid: str


class ClaimRequest(msgspec.Struct, kw_only=True):
    instance_uuid: str
    task_id: str
    attempt: int
    host: str
    amounts: Amounts


class ClaimReply(msgspec.Struct, kw_only=True):
    """granted, or refused with the reason (in Nova's words: "insufficient memory_mb: ...")."""

    granted: bool
    reason: str = ""


class ReleaseRequest(msgspec.Struct, kw_only=True):
    """Release a claim by name; a claim that is not there counts as released."""

    instance_uuid: str
    task_id: str
    attempt: int
    host: str


class SelectRequest(msgspec.Struct, kw_only=True):
    """Which hosts for ``count`` instances of this size, with up to ``alternates`` more each. ``only_hosts``: none but
    these, where there are any."""

    instance_uuids: list[str]
    amounts: Amounts
    alternates: int = 2
    availability_zone: str | None = None
    ignore_hosts: list[str] = msgspec.field(default_factory=list)
    only_hosts: list[str] = msgspec.field(default_factory=list)


class SelectReply(msgspec.Struct, kw_only=True):
    """Per instance, in order: the host and its alternates, best first. Empty for an instance without a valid host.

    ``reasons`` counts the hosts that each filter turned away, for the fault message.
    """

    hosts: list[list[str]]
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
