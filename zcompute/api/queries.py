"""Query strings: what is asked of a list, checked, with Nova's codes and words where it has some."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from zcompute.api.auth import Caller
from zcompute.api.creation import boolean
from zcompute.api.errors import BadRequest, Forbidden
from zcompute.api.settings import LIMITS
from zcompute.api.sorting import sort_of
from zcompute.api.uuids import canonical_uuid
from zcompute.objects.messages.instances import InstanceQuery
from zcompute.objects.name_pattern import like_of
from zcompute.objects.server_status import STATUS_DELETED, STATUSES

Query = list[tuple[str, str]]

FILTER_CHARS_MAX = 255
STATUSES_MAX = 16
VALUES_MAX = 100  # of one filter
POWER_STATE_MAX = 9

# What projects may filter by; anything else of theirs is ignored, as Nova does.
_OF_PROJECTS = frozenset(
    {
        "all_tenants", "changes-before", "changes-since", "flavor", "image", "ip", "ip6", "name", "not-tags",
        "not-tags-any", "reservation_id", "status", "tags", "tags-any",
    }
)  # fmt: skip

# Filters of Nova that change what is listed and are not served: ignoring them would list what was not asked for.
_NOT_SERVED = frozenset(
    {
        "access_ip_v4", "access_ip_v6", "auto_disk_config", "availability_zone", "config_drive", "created_at",
        "description", "display_description", "hostname", "ip", "ip6", "kernel_id", "key_name", "launch_index",
        "launched_at", "locked", "locked_by", "progress", "ramdisk_id", "root_device_name",
        "terminated_at",
    }
)  # fmt: skip

# Nova's: tables beside the instance's, by which nobody may filter.
_JOINED = frozenset(
    {
        "block_device_mapping", "extra", "info_cache", "metadata", "pci_devices", "security_groups", "services",
        "system_metadata",
    }
)  # fmt: skip


@dataclass(frozen=True)
class ServerList:
    """A list of servers wanted. ``nothing``: no server can match, nobody need be asked. ``with_count``: and how many
    there are on all pages."""

    query: InstanceQuery
    marker: str | None
    nothing: bool = False
    with_count: bool = False


def first_values(query: Query) -> dict[str, str]:
    """The first value of each name (Nova's way with repeated ones)."""
    values: dict[str, str] = {}
    for name, value in query:
        values.setdefault(name, value)
    return values


def server_list(query: Query, caller: Caller, limit_max: int) -> ServerList:
    """What GET /servers asks. Raises BadRequest and Forbidden naming the parameter."""
    values = _allowed(first_values(query), caller)
    project_id = _project_of(values, caller)
    asked = [value.upper() for name, value in query if name == "status" and value]
    if len(asked) > STATUSES_MAX:
        raise _invalid("status", f"Expected at most {STATUSES_MAX} of them.")
    statuses = sorted(set(asked).intersection(STATUSES))
    since_us, before_us = _time_of(values, "changes-since"), _time_of(values, "changes-before")
    if since_us is not None and before_us is not None and since_us > before_us:
        raise BadRequest("The value of changes-since must be less than or equal to changes-before.")
    deleted = _deleted(values, statuses, caller, by_change=since_us is not None or before_us is not None)
    many = {
        name: _many(query, name) if name in values else [] for name in ("uuid", "vm_state", "task_state")
    }  # of administrators
    limit = limit_of(values, min(limit_max, LIMITS.page_rows_max))
    host, node = _text_of(values, "host"), _text_of(values, "node")
    wanted = InstanceQuery(
        project_id=project_id,
        limit=0 if values.get("limit") == "0" else limit,
        sort=sort_of(query, is_admin=caller.is_admin),
        statuses=statuses,
        vm_states=many["vm_state"],
        task_states=many["task_state"],
        power_state=_power_state(values),
        uuids=many["uuid"],
        name_like=_name_like(values),
        host=host or node,
        user_id=_text_of(values, "user_id"),
        flavorid=_text_of(values, "flavor"),
        image_ref=_text_of(values, "image"),
        reservation_id=_text_of(values, "reservation_id"),
        changes_since_us=since_us,
        changes_before_us=before_us,
        deleted=deleted,
        soft_deleted=_soft_deleted(values, deleted),
    )
    nothing = (
        bool(asked and not statuses)
        or bool(host and node and host != node)  # a host is its own node
        or bool(values.get("tags") or values.get("tags-any"))  # no server of this release has tags
    )
    counted = boolean(values.get("with_count", ""), "with_count")
    return ServerList(query=wanted, marker=values.get("marker") or None, nothing=nothing, with_count=counted)


def limit_of(values: Mapping[str, str], limit_max: int) -> int:
    """``limit``; 0 and none mean the largest page. Raises BadRequest."""
    text = values.get("limit")
    if text is None:
        return limit_max
    return min(whole_number(text, "limit") or limit_max, limit_max)


def whole_number(text: str, field: str) -> int:
    """A parameter that is a whole number from 0 up. Raises BadRequest."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise _invalid(field, f"Value: {text[:40]}. Expected a whole number of 0 or more.")
    return int(text)


def time_us(text: str) -> int | None:
    """An ISO 8601 time as UTC microseconds; None for what is none. Without a zone it is UTC, as in Nova."""
    if len(text) > 40:
        return None
    try:
        # A plus in a query string is a blank unless it was quoted.
        found = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text.strip())
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        seconds = found.timestamp()
    except (ValueError, OverflowError):
        return None
    return int(seconds) * 1_000_000 + found.microsecond if seconds >= 0 else 0


def _allowed(values: dict[str, str], caller: Caller) -> dict[str, str]:
    """What counts of the parameters. Raises BadRequest for one that counts and is not served."""
    kept = {"limit", "marker", "with_count"}
    if not caller.is_admin:
        values = {name: value for name, value in values.items() if name in _OF_PROJECTS or name in kept}
    for field in values:
        if field in _NOT_SERVED:
            raise _invalid(field, "It is not supported by this release.")
        if field in _JOINED or field.startswith("_"):
            raise BadRequest(f"Invalid filter field: {field[:40]}.")
    return values


def _project_of(values: Mapping[str, str], caller: Caller) -> str | None:
    """Whose servers: the caller's project's; for administrators who say all_tenants all, or one project's."""
    all_tenants = boolean(values["all_tenants"] or "1", "all_tenants") if "all_tenants" in values else False
    if not all_tenants:
        return caller.project_id
    if not caller.is_admin:
        raise Forbidden("Policy doesn't allow os_compute_api:servers:index:get_all_tenants to be performed.")
    return _text_of(values, "project_id") or _text_of(values, "tenant_id")


def _deleted(values: Mapping[str, str], statuses: Iterable[str], caller: Caller, *, by_change: bool) -> bool | None:
    """Whether deleted servers are listed: None for others too. Raises Forbidden."""
    if list(statuses) == [STATUS_DELETED]:
        if not caller.is_admin:
            raise Forbidden("Only administrators may list deleted instances")
        return True
    if "deleted" in values:
        return values["deleted"].strip().lower() in ("1", "t", "true", "on", "y", "yes")  # Nova: anything else is no
    return None if by_change else False


def _soft_deleted(values: Mapping[str, str], deleted: bool | None) -> bool:
    """Whether servers that wait to be reclaimed are listed, too. As Nova: where nothing is said of deleted ones they
    are left out, even of a list by their status; administrators say ``deleted`` or ``soft_deleted``."""
    if "soft_deleted" not in values:
        return deleted is not False
    return boolean(values["soft_deleted"] or "1", "soft_deleted")


def _time_of(values: Mapping[str, str], field: str) -> int | None:
    text = values.get(field)
    if text is None:
        return None
    found = time_us(text)
    if found is None:
        raise _invalid(field, f"Value: {text[:40]}. '{text[:40]}' is not a 'date-time'")
    return found


def _power_state(values: Mapping[str, str]) -> int | None:
    text = values.get("power_state")
    if not text:
        return None
    number = whole_number(text, "power_state")
    if number > POWER_STATE_MAX:
        raise _invalid("power_state", f"Value: {text[:40]}. Expected at most {POWER_STATE_MAX}.")
    return number


def _name_like(values: Mapping[str, str]) -> str | None:
    text = _text_of(values, "name")
    if text is None:
        return None
    try:
        return like_of(text)
    except ValueError as error:
        raise _invalid("name", f"Value: {text[:40]}. '{text[:40]}' is not a 'regex' that is served: {error}") from None


def _many(query: Query, field: str) -> list[str]:
    found = [_text(value, field) for name, value in query if name == field and value]
    if len(found) > VALUES_MAX:
        raise _invalid(field, f"Expected at most {VALUES_MAX} of them.")
    return [canonical_uuid(value) or value for value in found] if field == "uuid" else found


def _text_of(values: Mapping[str, str], field: str) -> str | None:
    """A filter's text; None where it is not given or empty."""
    return _text(values.get(field, ""), field) or None


def _text(value: str, field: str) -> str:
    if len(value) > FILTER_CHARS_MAX:
        raise _invalid(field, f"Expected at most {FILTER_CHARS_MAX} characters.")
    return value


def _invalid(field: str, why: str) -> BadRequest:
    return BadRequest(f"Invalid input for query parameters {field}. {why}")
