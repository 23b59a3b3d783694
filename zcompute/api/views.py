"""Servers as Nova 2.1 shows them.

What many servers share (flavors, images, hosts, days) is rendered once and kept; what is written as bytes here goes
into the answer as it is (docs/decisions/0020 has the figures).
"""

import hashlib
import time
from collections.abc import Iterable
from functools import lru_cache

import msgspec
from msgspec import UNSET, UnsetType

from zcompute.api.links import bookmark
from zcompute.api.merge import Listed
from zcompute.objects.instance import Fault, Instance
from zcompute.objects.server_status import status_of

DAY_S = 86_400
DAYS_KEPT = 4_096
HOSTS_KEPT = 16_384
REFERENCES_KEPT = 1_024
BASES_KEPT = 64

_TWO = tuple(f"{number:02d}" for number in range(60))
_encode = msgspec.json.Encoder().encode
_WITH_PROGRESS = frozenset({"ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE", "MIGRATING"})
_WITH_FAULT = frozenset({"ERROR", "DELETED"})


class FaultView(msgspec.Struct, gc=False):
    """Why a server is in ERROR; ``details`` are for administrators, and for codes other than 500."""

    code: int
    created: str
    message: str
    details: str | UnsetType = UNSET


class Named(msgspec.Struct, gc=False):
    """Something with nothing but a name."""

    name: str


class ServerView(msgspec.Struct, kw_only=True, gc=False):
    """A whole server, a tree. What is UNSET is left out."""

    id: str
    name: str
    status: str
    tenant_id: str
    user_id: str
    metadata: dict[str, str]
    host_id: str = msgspec.field(name="hostId")
    image: msgspec.Raw | str
    flavor: msgspec.Raw
    created: str
    updated: str
    addresses: dict[str, list[str]] = msgspec.field(default_factory=dict)
    access_ipv4: str = msgspec.field(name="accessIPv4", default="")
    access_ipv6: str = msgspec.field(name="accessIPv6", default="")
    links: msgspec.Raw
    disk_config: str = msgspec.field(name="OS-DCF:diskConfig", default="MANUAL")
    progress: int | UnsetType = UNSET
    fault: FaultView | UnsetType = UNSET
    availability_zone: str = msgspec.field(name="OS-EXT-AZ:availability_zone")
    admin_pass: str | UnsetType = msgspec.field(name="adminPass", default=UNSET)
    config_drive: str
    key_name: str | None
    launched_at: str | None = msgspec.field(name="OS-SRV-USG:launched_at")
    terminated_at: str | None = msgspec.field(name="OS-SRV-USG:terminated_at")
    security_groups: list[Named] | UnsetType = UNSET
    host: str | UnsetType | None = msgspec.field(name="OS-EXT-SRV-ATTR:host", default=UNSET)
    instance_name: str | UnsetType = msgspec.field(name="OS-EXT-SRV-ATTR:instance_name", default=UNSET)
    hypervisor_hostname: str | UnsetType | None = msgspec.field(
        name="OS-EXT-SRV-ATTR:hypervisor_hostname", default=UNSET
    )
    task_state: str | None = msgspec.field(name="OS-EXT-STS:task_state")
    vm_state: str = msgspec.field(name="OS-EXT-STS:vm_state")
    power_state: int = msgspec.field(name="OS-EXT-STS:power_state")
    volumes_attached: list[str] = msgspec.field(name="os-extended-volumes:volumes_attached", default_factory=list)


def server_summaries(servers: Iterable[Listed], base_url: str) -> msgspec.Raw:
    """For GET /servers: id, name and links of each."""
    base = _text_of(base_url)
    found = []
    for each in servers:
        uuid = each.uuid.encode()
        found.append(b'{"id":"%b","name":%b,"links":%b}' % (uuid, _encode(each.name), _links(base, uuid)))
    return msgspec.Raw(b"[" + b",".join(found) + b"]")


def server_view(instance: Instance, base_url: str, *, is_admin: bool) -> ServerView:
    """For GET /servers/detail and /servers/ID."""
    status = status_of(instance.vm_state, instance.task_state)
    spec = instance.spec
    created_us, updated_us = instance.created_at_us, instance.updated_at_us
    created = iso_time(created_us)
    view = ServerView(
        id=instance.uuid,
        name=instance.name,
        status=status,
        tenant_id=instance.project_id,
        user_id=instance.user_id,
        metadata=spec.metadata,
        host_id=_host_id(instance),
        image=_image(spec.image_ref, base_url),
        flavor=_reference(base_url, "flavors", instance.flavor.flavorid),
        created=created,
        updated=iso_time(updated_us) if updated_us and updated_us != created_us else created,
        links=msgspec.Raw(_links(_text_of(base_url), instance.uuid.encode())),
        availability_zone=spec.availability_zone or "",
        config_drive="True" if spec.config_drive else "",
        key_name=spec.key_name,
        launched_at=usage_time(instance.launched_at_us),
        terminated_at=usage_time(instance.deleted_at_us),
        task_state=instance.task_state,
        vm_state=instance.vm_state,
        power_state=instance.power_state,
    )
    if status in _WITH_PROGRESS:
        view.progress = instance.progress
    if status in _WITH_FAULT and instance.fault is not None:
        view.fault = _fault(instance.fault, is_admin)
    if is_admin:
        view.host = instance.host
        view.hypervisor_hostname = instance.host
        view.instance_name = f"instance-{instance.uuid}"
    return view


def iso_time(time_us: int) -> str:
    """UTC microseconds as Nova's ISO time, to the second."""
    return f"{_to_second(time_us // 1_000_000)}Z"


def _to_second(time_s: int) -> str:
    days, rest_s = divmod(time_s, DAY_S)
    minutes, seconds = divmod(rest_s, 60)
    return f"{_day(days)}T{_TWO[minutes // 60]}:{_TWO[minutes % 60]}:{_TWO[seconds]}"


@lru_cache(DAYS_KEPT)
def _day(days: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(days * DAY_S))


def usage_time(time_us: int | None) -> str | None:
    """As OS-SRV-USG has it: with microseconds, without a zone."""
    if time_us is None:
        return None
    seconds, rest_us = divmod(time_us, 1_000_000)
    return f"{_to_second(seconds)}.{rest_us:06d}"


def _host_id(instance: Instance) -> str:
    """Tells a project which of its servers share a host, and not which host it is."""
    return _digest(instance.project_id + instance.host) if instance.host else ""


@lru_cache(HOSTS_KEPT)
def _digest(text: str) -> str:
    return hashlib.sha224(text.encode()).hexdigest()


def _image(image_ref: str, base_url: str) -> msgspec.Raw | str:
    return _reference(base_url, "images", image_ref) if image_ref else ""


@lru_cache(REFERENCES_KEPT)
def _reference(base_url: str, kind: str, identifier: str) -> msgspec.Raw:
    """An image or flavor in a server."""
    return msgspec.Raw(_encode({"id": identifier, "links": [bookmark(base_url, kind, identifier)]}))


@lru_cache(BASES_KEPT)
def _text_of(base_url: str) -> bytes:
    """As it stands within a JSON string: a client may have written anything into its Host header."""
    return _encode(base_url)[1:-1]


def _links(base: bytes, uuid: bytes) -> bytes:
    """Links of a server, as links.resource_links has them."""
    return (
        b'[{"rel":"self","href":"%b/v2.1/servers/%b"},{"rel":"bookmark","href":"%b/servers/%b"}]'
        % (base, uuid, base, uuid)
    )  # fmt: skip


def _fault(fault: Fault, is_admin: bool) -> FaultView:
    view = FaultView(fault.code, iso_time(fault.created_at_us), fault.message)
    if fault.details and (is_admin or fault.code != 500):
        view.details = fault.details
    return view
