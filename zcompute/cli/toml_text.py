"""Writing TOML: what the configuration, the keys and the state directory need (the standard library only reads it)."""

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def value_text(value: Any) -> str:
    """One value: string, bool, int, float, list or (inline) table. Raises TypeError for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {value_text(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"expected a TOML value, found {type(value).__name__}")


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else value_text(key)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def dumps(document: Mapping[str, Any], prefix: str = "") -> str:
    """A document: plain values first, then tables and arrays of tables. None values are left out."""
    lines: list[str] = []
    tables: list[str] = []
    for key, value in document.items():
        name = f"{prefix}{_key(key)}"
        if value is None:
            continue
        if isinstance(value, Mapping):
            tables.append(f"\n[{name}]\n{dumps(value, name + '.')}")
        elif _is_tables(value):
            tables.extend(f"\n[[{name}]]\n{dumps(item, name + '.')}" for item in value)
        else:
            lines.append(f"{_key(key)} = {value_text(value)}\n")
    return "".join(lines) + "".join(tables)
