"""sort_key and sort_dir of a list of servers, as Nova takes them."""

from zcompute.api.errors import BadRequest, Forbidden
from zcompute.objects.messages.instances import SortBy
from zcompute.objects.server_list import SORT_KEYS, SORT_KEYS_MAX

DIRECTIONS = ("asc", "desc")
NAMED_MAX = 32

# Nova drops these without a word.
_IGNORED = frozenset(
    {
        "block_device_mapping", "extra", "info_cache", "metadata", "pci_devices", "security_groups", "services",
        "system_metadata",
    }
)  # fmt: skip
_OF_ADMINISTRATORS = frozenset({"host", "node"})


def sort_of(query: list[tuple[str, str]], *, is_admin: bool) -> list[SortBy]:
    """The order asked for, empty for Nova's own. A direction stands for the key at its place; where there are fewer of
    them the first one stands for the rest. Raises BadRequest and Forbidden."""
    keys = [value for name, value in query if name == "sort_key"]
    given = [value for name, value in query if name == "sort_dir"]
    if len(keys) > NAMED_MAX or len(given) > NAMED_MAX:
        raise BadRequest(f"Invalid input for query parameters sort_key. Expected at most {SORT_KEYS_MAX} of them.")
    if not keys and not given:
        return []
    for direction in given:
        if direction not in DIRECTIONS:
            raise BadRequest("Invalid input received: Unknown sort direction, must be 'desc' or 'asc'")
    wanted = keys or ["created_at"]
    if len(given) > len(wanted):
        raise BadRequest("Invalid input received: Sort direction size exceeds sort key size")
    first = given[0] if given else "desc"
    directions = given + [first] * (len(wanted) - len(given))
    found = [
        SortBy(key=key, descending=direction == "desc")
        for key, direction in zip(wanted, directions, strict=True)
        if key not in _IGNORED
    ]
    for by in found:
        _check(by.key, is_admin=is_admin)
    if len(found) > SORT_KEYS_MAX:
        raise BadRequest(f"Invalid input for query parameters sort_key. Expected at most {SORT_KEYS_MAX} of them.")
    return found


def _check(key: str, *, is_admin: bool) -> None:
    if key in _OF_ADMINISTRATORS and not is_admin:
        raise Forbidden(f"Only administrators can sort servers by {key}")
    if key not in SORT_KEYS:
        served = ", ".join(f"'{known}'" for known in SORT_KEYS)
        raise BadRequest(
            f"Invalid input for query parameters sort_key. Value: {key[:40]}. '{key[:40]}' is not one of [{served}]"
        )
