"""Query strings: what is asked of a list, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from zcompute.api.auth import Caller
from zcompute.api.creation import boolean
from zcompute.api.errors import BadRequest, Forbidden
from zcompute.api.settings import LIMITS
from zcompute.objects.messages.instances import InstanceQuery

Query = list[tuple[str, str]]

FILTER_CHARS_MAX = 255
STATUSES_MAX = 16

# Nova's; those that no server of this release can have find nothing, as in Nova.
KNOWN_STATUSES = frozenset({"ACTIVE", "BUILD", "ERROR"})

_NO_DELETED = "Deleted servers are not listed by this release."

# Filters of Nova that change what is listed and are not served: ignoring them would list what was not asked for.
_NOT_SERVED = frozenset(
    {
        "access_ip_v4", "access_ip_v6", "auto_disk_config", "availability_zone", "changes-since", "changes-before",
        "config_drive", "created_at", "description", "display_description", "flavor", "hostname", "image", "ip", "ip6",
        "kernel_id", "key_name", "launch_index", "launched_at", "locked", "locked_by", "node", "not-tags",
        "not-tags-any", "power_state", "progress", "ramdisk_id", "reservation_id", "root_device_name", "tags",
        "tags-any", "task_state", "terminated_at", "user_id", "uuid", "vm_state",
    }
)  # fmt: skip


@dataclass(frozen=True)
class ServerList:
    """A list of servers wanted. ``nothing``: no server can match, nobody need be asked."""

    query: InstanceQuery
    marker: str | None
    nothing: bool = False


def first_values(query: Query) -> dict[str, str]:
    """The first value of each name (Nova's way with repeated ones)."""
    values: dict[str, str] = {}
    for name, value in query:
        values.setdefault(name, value)
    return values


def server_list(query: Query, caller: Caller, limit_max: int) -> ServerList:
    """What GET /servers asks. Raises BadRequest and Forbidden naming the parameter."""
    values = first_values(query)
    _check_served(values)
    all_tenants = boolean(values["all_tenants"] or "1", "all_tenants") if "all_tenants" in values else False
    if all_tenants and not caller.is_admin:
        raise Forbidden("Policy doesn't allow os_compute_api:servers:index:get_all_tenants to be performed.")
    project_id: str | None = None if all_tenants else caller.project_id
    wanted_project = values.get("project_id") or values.get("tenant_id")
    if wanted_project and caller.is_admin and all_tenants:
        project_id = _text(wanted_project, "project_id")
    statuses = [value.upper() for name, value in query if name == "status" and value]
    if len(statuses) > STATUSES_MAX:
        raise BadRequest(f"Invalid input for query parameter status. Expected at most {STATUSES_MAX} of them.")
    if "DELETED" in statuses:
        if not caller.is_admin:
            raise Forbidden("Only administrators may list deleted instances")
        raise BadRequest("Invalid input for query parameter status. " + _NO_DELETED)
    known = sorted(KNOWN_STATUSES.intersection(statuses))
    name, host = values.get("name"), values.get("host")
    return ServerList(
        query=InstanceQuery(
            project_id=project_id,
            limit=limit_of(values, min(limit_max, LIMITS.page_rows_max)),
            statuses=known,
            name=_text(name, "name") if name else None,
            host=_text(host, "host") if host and caller.is_admin else None,
        ),
        marker=values.get("marker") or None,
        nothing=bool(statuses) and not known,
    )


def limit_of(values: Mapping[str, str], limit_max: int) -> int:
    """``limit``; 0 and none mean the largest page. Raises BadRequest."""
    text = values.get("limit")
    if text is None:
        return limit_max
    return min(whole_number(text, "limit") or limit_max, limit_max)


def whole_number(text: str, field: str) -> int:
    """A parameter that is a whole number from 0 up. Raises BadRequest."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadRequest(f"Invalid input for query parameter {field}. Value: {text[:40]}. Expected a whole number.")
    return int(text)


def canonical_uuid(text: str) -> str | None:
    """A uuid in canonical lower case; None for what is none."""
    if len(text) not in (32, 36):
        return None
    try:
        return str(UUID(text))
    except ValueError:
        return None


def _check_served(values: Mapping[str, str]) -> None:
    for field in values:
        if field in _NOT_SERVED:
            raise BadRequest(f"Invalid input for query parameter {field}. It is not supported by this release.")
    if boolean(values.get("deleted", ""), "deleted"):
        raise BadRequest("Invalid input for query parameter deleted. " + _NO_DELETED)
    for field, only in (("sort_key", "created_at"), ("sort_dir", "desc")):
        if values.get(field, only) != only:
            raise BadRequest(f"Invalid input for query parameter {field}. Only {only} is supported by this release.")


def _text(value: str, field: str) -> str:
    if len(value) > FILTER_CHARS_MAX:
        raise BadRequest(f"Invalid input for query parameter {field}. Expected at most {FILTER_CHARS_MAX} characters.")
    return value
