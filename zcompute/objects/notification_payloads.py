"""Payloads of notifications, each with a version of its own, and which event carries which.

Names and fields follow Nova's versioned notifications where the two tell the same; times are UTC microseconds. Events
that no task of this release does yet have their payload here, so that consumers can be written.
"""

from dataclasses import dataclass
from typing import ClassVar

import msgspec

from zcompute.objects.base import VersionedObject
from zcompute.objects.flavor import Flavor
from zcompute.objects.host import Host
from zcompute.objects.instance import POWER_PAUSED, POWER_RUNNING, POWER_SHUTDOWN, Instance

START = "start"
END = "end"
ERROR = "error"

BINARY_COMPUTE = "nova-compute"

POWER_STATES = {POWER_RUNNING: "running", POWER_PAUSED: "paused", POWER_SHUTDOWN: "shutdown"}


class Payload(VersionedObject, omit_defaults=False):
    """Root of the payloads: every field is always there."""

    VERSION: ClassVar[tuple[int, int]] = (1, 0)


class FlavorPayload(Payload):
    """A flavor, as embedded in an instance."""

    flavorid: str
    name: str
    vcpus: int
    memory_mb: int
    root_gb: int
    ephemeral_gb: int = 0
    swap: int = 0
    extra_specs: dict[str, str] = msgspec.field(default_factory=dict)


class ExceptionPayload(Payload):
    """Why something failed."""

    exception_message: str
    code: int = 500


class InstancePayload(Payload):
    """A server as it is after the change."""

    uuid: str
    user_id: str
    tenant_id: str
    display_name: str
    reservation_id: str
    host: str | None
    availability_zone: str | None
    flavor: FlavorPayload
    image_uuid: str
    key_name: str | None
    metadata: dict[str, str]
    created_at_us: int
    updated_at_us: int
    launched_at_us: int | None
    deleted_at_us: int | None
    state: str
    task_state: str | None
    power_state: str
    progress: int


class InstanceActionPayload(InstancePayload):
    """A phase of an action; ``fault`` with the phase error."""

    fault: ExceptionPayload | None = None


class InstanceMovePayload(InstanceActionPayload):
    """A phase of an action that changes the server's host or size."""

    source_host: str | None = None
    dest_host: str | None = None
    new_flavor: FlavorPayload | None = None


class InstanceRebuildPayload(InstanceActionPayload):
    """A phase of a rebuild."""

    new_image_uuid: str = ""


class InstanceSnapshotPayload(InstanceActionPayload):
    """A phase of an image being made of a server; its end says nothing of how that ended: the image does."""

    snapshot_image_id: str = ""


class InstanceStateUpdatePayload(Payload):
    """What the states were before the change; None for a server that was not there."""

    old_state: str | None
    state: str
    old_task_state: str | None
    new_task_state: str | None
    old_power_state: str | None
    power_state: str


class InstanceUpdatePayload(InstancePayload):
    """A change of states or name. ``old_display_name`` is None where the name stays."""

    state_update: InstanceStateUpdatePayload | None = None
    old_display_name: str | None = None


class InstanceEventsFoldedPayload(InstancePayload):
    """``count`` power states that the server had were told to nobody: its host could not report them in time."""

    count: int = 0


class AuditPeriodPayload(Payload):
    """From when (inclusive) to when (exclusive) an audit looks."""

    audit_period_beginning_us: int
    audit_period_ending_us: int


class InstanceExistsPayload(InstancePayload):
    """A server existed in the period: what billing counts."""

    audit_period: AuditPeriodPayload | None = None


class ServiceStatusPayload(Payload):
    """A host's service: up, down, disabled, forced down."""

    host: str
    binary: str
    service_id: str
    state: str
    disabled: bool
    disabled_reason: str | None
    forced_down: bool
    availability_zone: str
    agent_epoch: int


@dataclass(frozen=True)
class EventKind:
    """Events of one name. ``phases`` empty: the name is the event type. ``emitted``: by this release."""

    name: str
    payload: type[Payload]
    phases: tuple[str, ...] = ()
    emitted: bool = False

    def event_types(self) -> list[str]:
        """The full names."""
        return [f"{self.name}.{phase}" for phase in self.phases] or [self.name]


def _actions(payload: type[Payload], *names: str, error: bool = False, emitted: bool = False) -> tuple[EventKind, ...]:
    phases = (START, END, ERROR) if error else (START, END)
    return tuple(EventKind(f"instance.{name}", payload, phases, emitted) for name in names)


EVENT_KINDS: tuple[EventKind, ...] = (
    EventKind("instance.create", InstanceActionPayload, (START, END, ERROR), emitted=True),
    EventKind("instance.delete", InstanceActionPayload, (START, END), emitted=True),
    EventKind("instance.update", InstanceUpdatePayload, emitted=True),
    EventKind("instance.exists", InstanceExistsPayload, emitted=True),
    EventKind("instance.events_folded", InstanceEventsFoldedPayload, emitted=True),
    EventKind("service.create", ServiceStatusPayload, emitted=True),
    EventKind("service.update", ServiceStatusPayload, emitted=True),
    EventKind("service.delete", ServiceStatusPayload),
    *_actions(
        InstanceActionPayload, "power_on", "power_off", "pause", "unpause", "suspend", "rescue", "unrescue",
        "restore", "soft_delete", "shelve", "shelve_offload", "unshelve", emitted=True,
    ),
    *_actions(
        InstanceActionPayload, "shutdown",
        "trigger_crash_dump", "interface_attach", "interface_detach", "volume_attach", "volume_detach",
    ),
    *_actions(InstanceActionPayload, "reboot", "resume", error=True, emitted=True),
    *_actions(InstanceSnapshotPayload, "snapshot", emitted=True),
    *_actions(InstanceRebuildPayload, "rebuild", error=True, emitted=True),
    EventKind("instance.lock", InstanceActionPayload, emitted=True),
    EventKind("instance.unlock", InstanceActionPayload, emitted=True),
    *_actions(InstanceMovePayload, "resize_prep", "resize_finish"),
    *_actions(InstanceMovePayload, "resize_confirm", "resize_revert", emitted=True),
    *_actions(InstanceMovePayload, "resize", error=True, emitted=True),
    EventKind("instance.evacuate", InstanceMovePayload, emitted=True),
    *_actions(
        InstanceMovePayload, "live_migration_pre", "live_migration_post", "live_migration_rollback", emitted=True
    ),
    *_actions(
        InstanceMovePayload, "live_migration_post_dest", "live_migration_abort", "live_migration_rollback_dest"
    ),
    EventKind("instance.live_migration_force_complete", InstanceMovePayload, (START, END)),
)  # fmt: skip
"""A cold migration is told as a resize to the same flavor, as in Nova."""

EVENT_TYPES: dict[str, type[Payload]] = {name: kind.payload for kind in EVENT_KINDS for name in kind.event_types()}


def flavor_payload(flavor: Flavor) -> FlavorPayload:
    """A flavor, as it is embedded."""
    return FlavorPayload(
        flavorid=flavor.flavorid,
        name=flavor.name,
        vcpus=flavor.vcpus,
        memory_mb=flavor.memory_mb,
        root_gb=flavor.root_gb,
        ephemeral_gb=flavor.ephemeral_gb,
        swap=flavor.swap_mb,
        extra_specs=flavor.extra_specs,
    )


def power_name(power_state: int) -> str:
    """Nova's word for a power state."""
    return POWER_STATES.get(power_state, "pending")


def instance_fields(instance: Instance) -> dict[str, object]:
    """The fields that all payloads of a server share."""
    spec = instance.spec
    return {
        "uuid": instance.uuid,
        "user_id": instance.user_id,
        "tenant_id": instance.project_id,
        "display_name": instance.name,
        "reservation_id": spec.reservation_id,
        "host": instance.host,
        "availability_zone": spec.availability_zone,
        "flavor": flavor_payload(instance.flavor),
        "image_uuid": spec.image_ref,
        "key_name": spec.key_name,
        "metadata": spec.metadata,
        "created_at_us": instance.created_at_us,
        "updated_at_us": instance.updated_at_us,
        "launched_at_us": instance.launched_at_us,
        "deleted_at_us": instance.deleted_at_us,
        "state": instance.vm_state,
        "task_state": instance.task_state,
        "power_state": power_name(instance.power_state),
        "progress": instance.progress,
    }


def service_payload(host: Host) -> ServiceStatusPayload:
    """A host's service."""
    return ServiceStatusPayload(
        host=host.name,
        binary=BINARY_COMPUTE,
        service_id=host.service_id,
        state=host.state,
        disabled=host.disabled,
        disabled_reason=host.disabled_reason,
        forced_down=host.forced_down,
        availability_zone=host.availability_zone,
        agent_epoch=host.agent_epoch,
    )
