"""Bodies of POST /servers/ID/action: one key, the action's name in Nova's API, and what it takes. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from zcompute.api.auth import Caller
from zcompute.api.creation import METADATA_ITEMS_MAX, admin_pass, boolean, check_name, last_part
from zcompute.api.errors import BadRequest, Forbidden
from zcompute.api.schemas import Name, Text255, decode
from zcompute.objects import actions
from zcompute.objects.command import StepArguments

ACCEPTED = "202 Accepted"
SHELVED = "-shelved"  # as Nova names a shelved server's image
IMAGE_METADATA_ITEMS_MAX = METADATA_ITEMS_MAX - 4  # beside those that every snapshot has


@dataclass(frozen=True)
class Asked:
    """What a body asks for: ``action`` is a key of zcompute.objects.actions. ``answer``: the response's body, None for
    none (then ``status`` is the response's); ``shown_with``: the response is the server, with this password;
    ``deletes``: it is a delete, at once; ``flavorid``: its arguments want that flavor; ``image_name``: it makes
    an image of this name, which has a row of its own first; ``image_suffix``: its name is the server's, and this behind
    it."""

    action: str
    arguments: StepArguments = field(default_factory=StepArguments)
    vm_state: str = ""
    reason: str | None = None
    name: str | None = None
    metadata: dict[str, str] | None = None
    answer: dict[str, Any] | None = None
    shown_with: str | None = None
    deletes: bool = False
    status: str = ACCEPTED
    flavorid: str = ""
    image_name: str = ""
    image_suffix: str = ""


@dataclass(frozen=True)
class Key:
    """One key that a body may have: how its value is read, and what it asks for: one of ``of``. ``takes`` says in
    words what the value may be."""

    value: msgspec.json.Decoder[Any]
    asked: Callable[[Any, Caller, str], Asked]
    of: tuple[actions.Action, ...]
    takes: str = "null"


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An object without fields: some clients send it in place of null."""


class Reboot(msgspec.Struct, forbid_unknown_fields=True):
    """``reboot``"""

    type: Annotated[str, Meta(pattern="^(SOFT|Soft|soft|HARD|Hard|hard)$")]


class Rescue(msgspec.Struct, forbid_unknown_fields=True):
    """``rescue``; without a password one is made, without an image it is the server's own."""

    admin_pass: Annotated[str, Meta(min_length=1, max_length=255)] | None = msgspec.field(
        name="adminPass", default=None
    )
    image_ref: Text255 = msgspec.field(name="rescue_image_ref", default="")


class Rebuild(msgspec.Struct, forbid_unknown_fields=True):
    """``rebuild``"""

    image_ref: Name = msgspec.field(name="imageRef")
    name: Name | None = None
    admin_pass: Annotated[str, Meta(min_length=1, max_length=255)] | None = msgspec.field(
        name="adminPass", default=None
    )
    metadata: dict[Name, Text255] | None = None
    preserve_ephemeral: bool = False
    disk_config: Annotated[str, Meta(pattern="^MANUAL$")] = msgspec.field(name="OS-DCF:diskConfig", default="MANUAL")


class CreateImage(msgspec.Struct, forbid_unknown_fields=True):
    """``createImage``"""

    name: Name
    metadata: dict[Name, Text255] = msgspec.field(default_factory=dict)


class ResetState(msgspec.Struct, forbid_unknown_fields=True):
    """``os-resetState``"""

    state: Annotated[str, Meta(pattern="^(active|error)$")]


class Resize(msgspec.Struct, forbid_unknown_fields=True):
    """``resize``"""

    flavor_ref: Name | int = msgspec.field(name="flavorRef")
    disk_config: Annotated[str, Meta(pattern="^MANUAL$")] = msgspec.field(name="OS-DCF:diskConfig", default="MANUAL")


class MigrateLive(msgspec.Struct, forbid_unknown_fields=True):
    """``os-migrateLive``; host null: the scheduler chooses. Without shared storage block_migration says so."""

    host: Name | None
    block_migration: bool | str
    disk_over_commit: bool | str


class Evacuate(msgspec.Struct, forbid_unknown_fields=True):
    """``evacuate``; without a host the scheduler chooses."""

    shared_storage: bool | str = msgspec.field(name="onSharedStorage")
    host: Name | None = None
    admin_pass: Annotated[str, Meta(min_length=1, max_length=255)] | None = msgspec.field(
        name="adminPass", default=None
    )


def _plain(action: actions.Action, status: str = ACCEPTED) -> Key:
    """An action that takes nothing."""
    asked = Asked(action.key, status=status)
    return Key(msgspec.json.Decoder(Nothing | None), lambda *_: asked, (action,))


def _reboot(body: Reboot, _caller: Caller, _operation_id: str) -> Asked:
    return Asked((actions.REBOOT_HARD if body.type.upper() == "HARD" else actions.REBOOT).key)


def _rescue(body: Rescue | None, caller: Caller, operation_id: str) -> Asked:
    body = body or Rescue()
    password = body.admin_pass or admin_pass(caller, operation_id)
    arguments = StepArguments(password=password, image_ref=last_part(body.image_ref))
    return Asked(actions.RESCUE.key, arguments, answer={"adminPass": password})


def _rebuild(body: Rebuild, caller: Caller, operation_id: str) -> Asked:
    if body.preserve_ephemeral:
        raise BadRequest("Invalid input for field/attribute preserve_ephemeral. It is not supported by this release.")
    if body.name is not None:
        check_name(body.name)
    if body.metadata is not None and len(body.metadata) > METADATA_ITEMS_MAX:
        raise Forbidden(f"Quota exceeded: expected at most {METADATA_ITEMS_MAX} metadata items.")
    password = body.admin_pass or admin_pass(caller, operation_id)
    arguments = StepArguments(password=password, image_ref=last_part(body.image_ref))
    return Asked(actions.REBUILD.key, arguments, name=body.name, metadata=body.metadata, shown_with=password)


def _create_image(body: CreateImage, _caller: Caller, _operation_id: str) -> Asked:
    check_name(body.name)
    if len(body.metadata) > IMAGE_METADATA_ITEMS_MAX:
        raise Forbidden(f"Quota exceeded: expected at most {IMAGE_METADATA_ITEMS_MAX} metadata items.")
    return Asked(actions.SNAPSHOT.key, image_name=body.name, metadata=body.metadata)


def _shelve(_body: Nothing | None, _caller: Caller, _operation_id: str) -> Asked:
    return Asked(actions.SHELVE.key, image_suffix=SHELVED)


def _resize(body: Resize, _caller: Caller, _operation_id: str) -> Asked:
    return Asked(actions.RESIZE.key, flavorid=last_part(str(body.flavor_ref)))


def _migrate_live(body: MigrateLive, _caller: Caller, _operation_id: str) -> Asked:
    block = boolean(body.block_migration, "block_migration")
    if boolean(body.disk_over_commit, "disk_over_commit"):
        raise BadRequest("Invalid input for field/attribute disk_over_commit. It is not supported by this release.")
    return Asked(actions.LIVE_MIGRATE.key, StepArguments(peer_host=body.host or "", block=block))


def _evacuate(body: Evacuate, caller: Caller, operation_id: str) -> Asked:
    if boolean(body.shared_storage, "onSharedStorage"):
        raise BadRequest("Invalid input for field/attribute onSharedStorage. It is not supported by this release.")
    password = body.admin_pass or admin_pass(caller, operation_id)
    arguments = StepArguments(peer_host=body.host or "", password=password)
    return Asked(actions.EVACUATE.key, arguments, answer={"adminPass": password})


def _reset_state(body: ResetState, _caller: Caller, _operation_id: str) -> Asked:
    return Asked(actions.RESET_STATE.key, vm_state=body.state)


KEYS: dict[str, Key] = {
    "os-start": _plain(actions.START),
    "os-stop": _plain(actions.STOP),
    "reboot": Key(msgspec.json.Decoder(Reboot), _reboot, (actions.REBOOT, actions.REBOOT_HARD), "type: SOFT or HARD"),
    "pause": _plain(actions.PAUSE),
    "unpause": _plain(actions.UNPAUSE),
    "suspend": _plain(actions.SUSPEND),
    "resume": _plain(actions.RESUME),
    "rescue": Key(
        msgspec.json.Decoder(Rescue | None), _rescue, (actions.RESCUE,), "null, or adminPass?, rescue_image_ref?"
    ),
    "unrescue": _plain(actions.UNRESCUE),
    "rebuild": Key(
        msgspec.json.Decoder(Rebuild),
        _rebuild,
        (actions.REBUILD,),
        "imageRef, name?, adminPass?, metadata?, preserve_ephemeral?: false, OS-DCF:diskConfig?: MANUAL",
    ),
    "createImage": Key(msgspec.json.Decoder(CreateImage), _create_image, (actions.SNAPSHOT,), "name, metadata?"),
    "restore": _plain(actions.RESTORE),
    "forceDelete": Key(
        msgspec.json.Decoder(Nothing | None), lambda *_: Asked(actions.DELETE.key, deletes=True), (actions.DELETE,)
    ),
    "migrate": _plain(actions.MIGRATE),
    "resize": Key(msgspec.json.Decoder(Resize), _resize, (actions.RESIZE,), "flavorRef, OS-DCF:diskConfig?: MANUAL"),
    "os-migrateLive": Key(
        msgspec.json.Decoder(MigrateLive),
        _migrate_live,
        (actions.LIVE_MIGRATE,),
        "host (or null), block_migration, disk_over_commit: false",
    ),
    "confirmResize": _plain(actions.CONFIRM_RESIZE, status="204 No Content"),
    "revertResize": _plain(actions.REVERT_RESIZE),
    "evacuate": Key(
        msgspec.json.Decoder(Evacuate), _evacuate, (actions.EVACUATE,), "onSharedStorage: false, host?, adminPass?"
    ),
    "shelve": Key(msgspec.json.Decoder(Nothing | None), _shelve, (actions.SHELVE,)),
    "shelveOffload": _plain(actions.SHELVE_OFFLOAD),
    "unshelve": _plain(actions.UNSHELVE),
    "lock": _plain(actions.LOCK),
    "unlock": _plain(actions.UNLOCK),
    "os-resetState": Key(
        msgspec.json.Decoder(ResetState), _reset_state, (actions.RESET_STATE,), "state: active or error"
    ),
}

_BODY = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAME_CHARS_MAX = 80


def read(body: bytes, caller: Caller, operation_id: str) -> Asked:
    """What a whole body asks for. Raises BadRequest."""
    found: dict[str, msgspec.Raw] = decode(_BODY, body)
    if len(found) != 1:
        raise BadRequest(f"Malformed request body: expected one action, found {len(found)}: too many body keys."
                         if found else "Malformed request body: expected one action, found none.")  # fmt: skip
    ((name, value),) = found.items()
    key = KEYS.get(name)
    if key is None:
        raise BadRequest(f"There is no such action: {name[:_NAME_CHARS_MAX]}")
    return key.asked(decode(key.value, bytes(value)), caller, operation_id)
