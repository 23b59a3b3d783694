"""What POST /servers asks for, checked and turned into a request to the root: pure."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping

import msgspec

from zcompute.api.auth import Caller
from zcompute.api.errors import BadRequest, Forbidden
from zcompute.api.schemas import BlockDevice, CreateServer, CreateServerBody, Network
from zcompute.api.uuids import canonical_uuid
from zcompute.objects.instance import ServerSpec
from zcompute.objects.messages.region import ServersCreateRequest

COUNT_MAX = 100  # servers of one request: one commit at the root holds them all
METADATA_ITEMS_MAX = 128
NETWORKS_MAX = 64
ADMIN_PASS_CHARS = 12
IDEMPOTENCY_KEY_CHARS_MAX = 255

_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})
_FALSE = frozenset({"0", "f", "false", "off", "n", "no"})
_PRINTABLE = re.compile(r"^[\x20-\x7e]+$")
_PASS_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

_canonical = msgspec.json.Encoder(order="deterministic").encode
_DEFAULTS = msgspec.structs.asdict(ServerSpec())


def create_request(body: CreateServerBody, caller: Caller, operation_id: str) -> ServersCreateRequest:
    """The request to the root. Raises BadRequest or Forbidden naming the field."""
    server = body.server
    group_uuid = _group_of(body.scheduler_hints or body.hints_by_alias)
    check_name(server.name)
    min_count, max_count = _counts(server)
    spec = _spec(server)
    return ServersCreateRequest(
        operation_id=operation_id,
        digest=_digest(server, spec, max_count, group_uuid),
        project_id=caller.project_id,
        user_id=caller.user_id,
        name=server.name,
        flavorid=last_part(str(server.flavor_ref)),
        spec=spec,
        min_count=min_count,
        max_count=max_count,
        group_uuid=group_uuid,
    )


def operation_id_of(key: str, project_id: str) -> str:
    """The operation id of an Idempotency-Key: the same for the same project and key. Raises BadRequest."""
    if not 1 <= len(key) <= IDEMPOTENCY_KEY_CHARS_MAX or not _PRINTABLE.match(key):
        raise BadRequest(
            f"Invalid input for header Idempotency-Key. Expected 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII "
            f"characters, found {len(key)}."
        )
    return "k-" + hashlib.sha256(f"{project_id}\n{key}".encode()).hexdigest()


def admin_pass(caller: Caller, operation_id: str) -> str:
    """The server's password: the same for a repeat of the operation by the same caller, unknown to anybody else."""
    digest = hmac.digest(caller.secret, b"adminPass " + operation_id.encode(), "sha256")
    number = int.from_bytes(digest, "big")
    chars = []
    for _ in range(ADMIN_PASS_CHARS):
        number, index = divmod(number, len(_PASS_ALPHABET))
        chars.append(_PASS_ALPHABET[index])
    return "".join(chars)


def last_part(reference: str) -> str:
    """The id of a reference, which may be a URL (as in Nova's first days)."""
    return reference.rstrip("/").rsplit("/", 1)[-1] if reference.startswith(("http://", "https://")) else reference


def boolean(value: bool | str, field: str) -> bool:
    """A boolean, also as the strings that Nova takes. Raises BadRequest."""
    if isinstance(value, bool):
        return value
    text = value.strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE or not text:
        return False
    raise _invalid(field, f"Value: {value[:40]}. Expected a boolean.")


def hostname(name: str) -> str:
    """A server's host name from its name, as Nova makes it; "" when nothing is left of it."""
    text = re.sub(r"[ _]", "-", name.lower())
    text = re.sub(r"[^a-z0-9.-]+", "", text)
    return text.strip(".-")[:63].rstrip(".-")


def _group_of(hints: Mapping[str, msgspec.Raw]) -> str:
    """The server group of the hints, "" without any. Raises BadRequest."""
    for name in hints:
        if name != "group":
            raise _invalid("os:scheduler_hints", f"{name[:40]!r} is not supported by this release.")
    if "group" not in hints:
        return ""
    given = msgspec.json.decode(hints["group"])
    group_uuid = canonical_uuid(given) if isinstance(given, str) else None
    if group_uuid is None:
        raise _invalid("group", f"Value: {str(given)[:80]}. {str(given)[:80]!r} is not a 'uuid'")
    return group_uuid


def _digest(server: CreateServer, spec: ServerSpec, max_count: int, group_uuid: str) -> str:
    """Tells two requests apart however their JSON is written. What has its default is left out, so that a field that
    another release adds does not make a repeat look like another request."""
    asked = {key: value for key, value in msgspec.structs.asdict(spec).items() if value != _DEFAULTS[key]}
    groups = [group.name for group in server.security_groups]
    if group_uuid:
        asked["group"] = group_uuid
    parts = (server.name, str(server.flavor_ref), int(server.min_count), max_count, asked, server.admin_pass, groups)
    return hashlib.sha256(_canonical(parts)).hexdigest()


def _spec(server: CreateServer) -> ServerSpec:
    if len(server.metadata) > METADATA_ITEMS_MAX:
        raise Forbidden(f"metadata: Maximum number of metadata items exceeds {METADATA_ITEMS_MAX}")
    image_ref = last_part(server.image_ref)
    _check_block_devices(server.block_devices, image_ref)
    zone = server.availability_zone
    if zone is not None and ":" in zone:
        raise _invalid("availability_zone", "Naming a host or node in it is not supported by this release.")
    return ServerSpec(
        image_ref=image_ref,
        metadata=dict(server.metadata),
        networks=_networks(server.networks),
        availability_zone=zone,
        key_name=server.key_name,
        user_data=_user_data(server.user_data),
        config_drive=boolean(server.config_drive, "config_drive"),
        hostname=hostname(server.name),
    )


def check_name(name: str) -> None:
    if name != name.strip() or not name.isprintable():
        raise _invalid("name", "Expected printable characters, without white space at either end.")


def _counts(server: CreateServer) -> tuple[int, int]:
    min_count = int(server.min_count)
    max_count = int(server.max_count) if server.max_count is not None else min_count
    for field, count in (("min_count", min_count), ("max_count", max_count)):
        if not 1 <= count <= COUNT_MAX:
            raise _invalid(field, f"Value: {count}. Expected 1 to {COUNT_MAX}.")
    if min_count > max_count:
        raise BadRequest("min_count must be <= max_count")
    return min_count, max_count


def _networks(networks: list[Network] | str) -> list[dict[str, str]] | str:
    if isinstance(networks, str):
        return networks
    if len(networks) > NETWORKS_MAX:
        raise _invalid("networks", f"Expected at most {NETWORKS_MAX}, found {len(networks)}.")
    wanted = []
    for index, network in enumerate(networks):
        entry = {key: value for key, value in msgspec.structs.asdict(network).items() if value}
        if "uuid" not in entry and "port" not in entry:
            raise _invalid(f"networks[{index}]", "'uuid' or 'port' is a required property")
        wanted.append(entry)
    return wanted if wanted else "auto"


def _user_data(user_data: str | None) -> str | None:
    if user_data:
        try:
            base64.b64decode("".join(user_data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise _invalid("user_data", "Expected base64.") from None
    return user_data


def _check_block_devices(devices: list[BlockDevice], image_ref: str) -> None:
    for device in devices:
        boots_the_image = (
            device.source_type == "image"
            and device.destination_type == "local"
            and str(device.boot_index) == "0"
            and device.uuid == image_ref
            and device.delete_on_termination
        )
        if not boots_the_image or len(devices) > 1:
            raise _invalid(
                "block_device_mapping_v2", "Only the local disk of imageRef's image is supported by this release."
            )


def _invalid(field: str, text: str) -> BadRequest:
    return BadRequest(f"Invalid input for field/attribute {field}. {text}")
