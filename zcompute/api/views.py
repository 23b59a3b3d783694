"""Servers as Nova 2.1 shows them."""

import hashlib
import time

import msgspec
from msgspec import UNSET, UnsetType

from zcompute.api.links import Link, bookmark, resource_links
from zcompute.api.merge import Listed
from zcompute.objects.instance import (
    VM_ACTIVE,
    VM_BUILDING,
    VM_DELETED,
    VM_ERROR,
    Fault,
    Instance,
)

STATUSES = {VM_BUILDING: "BUILD", VM_ACTIVE: "ACTIVE", VM_ERROR: "ERROR", VM_DELETED: "DELETED"}
_WITH_PROGRESS = frozenset({"ACTIVE", "BUILD"})
_WITH_FAULT = frozenset({"ERROR", "DELETED"})


class Reference(msgspec.Struct, gc=False):
    """An image or flavor in a server."""

    id: str
    links: list[Link]


class FaultView(msgspec.Struct, gc=False):
    """Why a server is in ERROR; ``details`` are for administrators, and for codes other than 500."""

    code: int
    created: str
    message: str
    details: str | UnsetType = UNSET


class Named(msgspec.Struct, gc=False):
    """Something with nothing but a name."""

    name: str


class ServerSummary(msgspec.Struct, gc=False):
    """A server in a list without details."""

    id: str
    name: str
    links: list[Link]


class ServerView(msgspec.Struct, kw_only=True, gc=False):
    """A whole server. What is UNSET is left out."""

    id: str
    name: str
    status: str
    tenant_id: str
    user_id: str
    metadata: dict[str, str]
    host_id: str = msgspec.field(name="hostId")
    image: Reference | str
    flavor: Reference
    created: str
    updated: str
    addresses: dict[str, list[str]] = msgspec.field(default_factory=dict)
    access_ipv4: str = msgspec.field(name="accessIPv4", default="")
    access_ipv6: str = msgspec.field(name="accessIPv6", default="")
    links: list[Link]
    disk_config: str = msgspec.field(name="OS-DCF:diskConfig", default="MANUAL")
    progress: int | UnsetType = UNSET
    fault: FaultView | UnsetType = UNSET
    availability_zone: str = msgspec.field(name="OS-EXT-AZ:availability_zone")
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


def server_summary(instance: Listed, base_url: str) -> ServerSummary:
    """For GET /servers."""
    return ServerSummary(instance.uuid, instance.name, resource_links(base_url, "servers", instance.uuid))


def server_view(instance: Instance, base_url: str, *, is_admin: bool) -> ServerView:
    """For GET /servers/detail and /servers/ID."""
    status = STATUSES.get(instance.vm_state, "UNKNOWN")
    spec = instance.spec
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
        created=iso_time(instance.created_at_us),
        updated=iso_time(instance.updated_at_us or instance.created_at_us),
        links=resource_links(base_url, "servers", instance.uuid),
        availability_zone=spec.availability_zone or "",
        config_drive="True" if spec.config_drive else "",
        key_name=spec.key_name,
        launched_at=_usage_time(instance.launched_at_us),
        terminated_at=_usage_time(instance.deleted_at_us),
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
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_us // 1_000_000))


def _usage_time(time_us: int | None) -> str | None:
    """As OS-SRV-USG has it: with microseconds, without a zone."""
    if time_us is None:
        return None
    seconds, rest_us = divmod(time_us, 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest_us:06d}"


def _host_id(instance: Instance) -> str:
    """Tells a project which of its servers share a host, and not which host it is."""
    if not instance.host:
        return ""
    return hashlib.sha224((instance.project_id + instance.host).encode()).hexdigest()


def _image(image_ref: str, base_url: str) -> Reference | str:
    return _reference(base_url, "images", image_ref) if image_ref else ""


def _reference(base_url: str, kind: str, identifier: str) -> Reference:
    return Reference(identifier, [bookmark(base_url, kind, identifier)])


def _fault(fault: Fault, is_admin: bool) -> FaultView:
    view = FaultView(fault.code, iso_time(fault.created_at_us), fault.message)
    if fault.details and (is_admin or fault.code != 500):
        view.details = fault.details
    return view
