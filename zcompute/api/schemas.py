"""Request bodies: their shape, and what is said about those that do not have it.

Unknown fields are refused by name. Fields that Nova knows and this release cannot honour are refused too, by name:
accepting them in silence would be a promise that nobody keeps.
"""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from zcompute.api.errors import BadRequest

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Text255 = Annotated[str, Meta(max_length=255)]
Count = int | Annotated[str, Meta(pattern=r"^[0-9]{1,9}$")]


class Network(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One network wanted. At least one of uuid and port."""

    uuid: Text255 | None = None
    port: Text255 | None = None
    fixed_ip: Text255 | None = None


class SecurityGroup(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A security group by name."""

    name: Text255 = "default"


class BlockDevice(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of block_device_mapping_v2; only the image that is booted from, as clients send it, is served."""

    uuid: Text255 | None = None
    source_type: Text255 = ""
    destination_type: Text255 = "local"
    boot_index: int | str | None = None
    delete_on_termination: bool = True


class CreateServer(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The ``server`` of POST /servers."""

    name: Name
    flavor_ref: Name | int = msgspec.field(name="flavorRef")
    image_ref: Text255 = msgspec.field(name="imageRef", default="")
    admin_pass: Text255 | None = msgspec.field(name="adminPass", default=None)
    metadata: dict[Name, Text255] = msgspec.field(default_factory=dict)
    networks: list[Network] | Annotated[str, Meta(pattern="^(auto|none)$")] = "auto"
    availability_zone: Name | None = None
    key_name: Name | None = None
    user_data: Annotated[str, Meta(max_length=65535)] | None = None
    config_drive: bool | str = False
    min_count: Count = 1
    max_count: Count | None = None
    return_reservation_id: bool | str = False
    security_groups: list[SecurityGroup] = msgspec.field(default_factory=list)
    block_devices: list[BlockDevice] = msgspec.field(name="block_device_mapping_v2", default_factory=list)
    disk_config: Annotated[str, Meta(pattern="^MANUAL$")] = msgspec.field(name="OS-DCF:diskConfig", default="MANUAL")


class CreateServerBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The whole body of POST /servers."""

    server: CreateServer
    scheduler_hints: dict[str, msgspec.Raw] = msgspec.field(name="os:scheduler_hints", default_factory=dict)
    hints_by_alias: dict[str, msgspec.Raw] = msgspec.field(name="OS-SCH-HNT:scheduler_hints", default_factory=dict)


CREATE_SERVER = msgspec.json.Decoder(CreateServerBody)

# Fields of Nova's schema for which this release has nothing behind them.
NOT_SERVED = frozenset({"accessIPv4", "accessIPv6", "personality", "block_device_mapping", "tags"})

_AT = re.compile(r" - at `(key in )?\$\.?(.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)
_FIELD_CHARS_MAX = 100


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Read a body. Raises BadRequest that names the field, or the byte at which the JSON ends to be one."""
    if not body:
        raise BadRequest("Malformed request body: expected a JSON object, found an empty body.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(describe(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"Malformed request body: {error}") from None


def describe(validation: str) -> str:
    """msgspec's message in Nova's words, with the field named."""
    at = _AT.search(validation)
    path = at.group(2) if at else ""
    text = validation[: at.start()] if at else validation
    if unknown := _UNKNOWN.match(text):
        field = unknown.group(1)[:_FIELD_CHARS_MAX]
        if field in NOT_SERVED:
            return f"Invalid input for field/attribute {field}. It is not supported by this release."
        inside = f"Invalid input for field/attribute {path}. " if path else ""
        return f"{inside}Additional properties are not allowed ('{field}' was unexpected)"
    if missing := _MISSING.match(text):
        inside = f"Invalid input for field/attribute {path}. " if path else ""
        return f"{inside}'{missing.group(1)}' is a required property"
    return f"Invalid input for field/attribute {path or 'body'}. {text}"
