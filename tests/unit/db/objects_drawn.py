"""Hypothesis strategies for every stored object, drawn from its type hints."""

import typing
from typing import Any

import msgspec
from hypothesis import strategies as st

from zcompute.objects.base import VersionedObject
from zcompute.objects.flavor import Amounts

IDENT = st.text(st.characters(min_codepoint=1, max_codepoint=126), min_size=1, max_size=12)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PARTITION_IDS = st.integers(0, 255)
INTEGERS = st.integers(-(2**31), 2**31 - 1)

# The columns that hold UTF-8 text; all other strings are identifiers.
IDENT_NAMES = ("Host", "CellInfo", "QuotaClass")  # whose name is one
TEXTS = {"name", "reason", "availability_zone", "disabled_reason", "locked_reason", "description", "message"}


def drawn(kind: type[VersionedObject]) -> st.SearchStrategy[Any]:
    """Objects of a kind; every field is drawn, optional ones may be None."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: _of(hints[field.name], field.name, kind) for field in msgspec.structs.fields(kind)}
    return st.builds(kind, **fields)


def _of(hint: Any, name: str, owner: type) -> st.SearchStrategy[Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is str:
        return TEXT if (name in TEXTS and owner.__name__ not in IDENT_NAMES) or _packed(owner) else IDENT
    if hint is int:
        return PARTITION_IDS if name == "partition_id" else INTEGERS
    if hint is bytes:
        return st.binary(max_size=20)
    if hint is bool:
        return st.booleans()
    if origin is list:
        return st.lists(_of(args[0], name, owner), max_size=3)
    if origin is dict:
        return st.dictionaries(TEXT, TEXT if args[1] is str else _of(args[1], name, owner), max_size=3)
    if args:
        return st.one_of([st.none() if arg is type(None) else _of(arg, name, owner) for arg in args])
    if hint is Amounts:
        return st.builds(Amounts, vcpus=INTEGERS, memory_mb=INTEGERS, disk_gb=INTEGERS)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return drawn(hint)
    raise TypeError(f"no strategy for {owner.__name__}.{name}: {hint}")


def _packed(owner: type) -> bool:
    """Objects stored inside a packed column: any text fits there."""
    return owner.__name__ in ("ServerSpec", "Fault", "TaskBody", "ConductorInfo", "ClaimName")
