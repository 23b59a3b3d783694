"""Quotas as clients write and read them: Nova's names and constants. Pure."""

import re
from typing import Any

import msgspec

from zcompute.api.errors import BadRequest
from zcompute.objects.messages.quotas import QuotaDefaultReply, QuotaReply
from zcompute.objects.quota import LIMIT_MAX, RESOURCES, UNLIMITED, Limits

# What nobody can set here, as a Nova without changed options shows it; metadata_items is kept to, and those of server
# groups are as the root is configured.
FIXED: dict[str, int] = {
    "fixed_ips": UNLIMITED,
    "floating_ips": UNLIMITED,
    "injected_file_content_bytes": 10240,
    "injected_file_path_bytes": 255,
    "injected_files": 5,
    "key_pairs": 100,
    "metadata_items": 128,
    "security_group_rules": UNLIMITED,
    "security_groups": UNLIMITED,
    "server_group_members": 10,
    "server_groups": 10,
}

_WHOLE = re.compile(r"^-?[0-9]{1,10}$")
_OTHER = frozenset({"force", "tenant_id"})


class QuotaSetBody(msgspec.Struct, forbid_unknown_fields=True):
    """The whole body of PUT /os-quota-sets/ID."""

    quota_set: dict[str, int | str | bool]


QUOTA_SET_BODY = msgspec.json.Decoder(QuotaSetBody)


def quota_set(reply: QuotaReply | QuotaDefaultReply) -> dict[str, Any]:
    """All limits, without the project's id."""
    groups = {"server_groups": reply.groups.groups, "server_group_members": reply.groups.members}
    return dict(sorted({**FIXED, **groups, **dict(reply.limits.by_name())}.items()))


def quota_detail(reply: QuotaReply) -> dict[str, Any]:
    """All limits with what is used of them; nothing is ever reserved here: a server counts or does not."""
    used = {name: reply.used.of(name) for name in RESOURCES} | {"server_groups": reply.groups.used}
    return {
        name: {"in_use": used.get(name, 0), "limit": limit, "reserved": 0} for name, limit in quota_set(reply).items()
    }


def absolute_limits(reply: QuotaReply) -> dict[str, int]:
    """For GET /limits."""
    by_name, used = dict(reply.limits.by_name()), reply.used
    return {
        "maxImageMeta": FIXED["metadata_items"],
        "maxPersonality": FIXED["injected_files"],
        "maxPersonalitySize": FIXED["injected_file_content_bytes"],
        "maxSecurityGroupRules": FIXED["security_group_rules"],
        "maxSecurityGroups": FIXED["security_groups"],
        "maxServerGroupMembers": reply.groups.members,
        "maxServerGroups": reply.groups.groups,
        "maxServerMeta": FIXED["metadata_items"],
        "maxTotalCores": by_name["cores"],
        "maxTotalFloatingIps": FIXED["floating_ips"],
        "maxTotalInstances": by_name["instances"],
        "maxTotalKeypairs": FIXED["key_pairs"],
        "maxTotalRAMSize": by_name["ram"],
        "totalCoresUsed": used.cores,
        "totalFloatingIpsUsed": 0,
        "totalInstancesUsed": used.instances,
        "totalRAMUsed": used.ram_mb,
        "totalSecurityGroupsUsed": 0,
        "totalServerGroupsUsed": reply.groups.used,
    }


def wanted_limits(body: QuotaSetBody) -> tuple[Limits, bool]:
    """The limits to be set, and whether by force. Raises BadRequest naming the field."""
    force = _boolean(body.quota_set.get("force", False))
    found: dict[str, int] = {}
    for name, value in body.quota_set.items():
        if name in _OTHER:
            continue
        if name in FIXED:
            raise BadRequest(f"Invalid input for field/attribute {name}. It is not supported by this release.")
        if name not in RESOURCES:
            raise BadRequest(f"Additional properties are not allowed ('{name[:40]}' was unexpected)")
        found[name] = _limit(name, value)
    limits = Limits(instances=found.get("instances"), cores=found.get("cores"), ram_mb=found.get("ram"))
    return limits, force


def _limit(name: str, value: int | str | bool) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not _WHOLE.match(text):
        raise BadRequest(f"Invalid input for field/attribute {name}. Value: {text[:40]}. Expected a whole number.")
    limit = int(text)
    if not UNLIMITED <= limit <= LIMIT_MAX:
        raise BadRequest(f"Invalid input for field/attribute {name}. Value: {limit}. Expected -1 to {LIMIT_MAX}.")
    return limit


def _boolean(value: int | str | bool) -> bool:
    text = str(value).strip().lower()
    if text in ("true", "1", "t", "yes", "y", "on"):
        return True
    if text in ("false", "0", "f", "no", "n", "off"):
        return False
    raise BadRequest(f"Invalid input for field/attribute force. Value: {text[:40]}. Expected a boolean.")
