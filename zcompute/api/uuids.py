"""Uuids as clients write them."""

from uuid import UUID


def canonical_uuid(text: str) -> str | None:
    """A uuid in canonical lower case; None for what is none."""
    if len(text) not in (32, 36):
        return None
    try:
        return str(UUID(text))
    except ValueError:
        return None
