"""Writing TOML: what the configuration, the keys and the state directory need (the standard library only reads it)."""

from collections.abc import Mapping
from typing import Any

import tomli_w


def value_text(value: Any) -> str:
    """One value as it stands behind its key. Raises TypeError for what TOML has not."""
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def dumps(document: Mapping[str, Any]) -> str:
    """A document; None values, which TOML has not, are left out. Raises TypeError for anything else that it has not."""
    return tomli_w.dumps(_without_none(document))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
