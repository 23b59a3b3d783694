"""Random objects of every kind in zcompute.objects, within what the fields can hold."""

import inspect
from functools import cache
from types import ModuleType
from typing import Any

import msgspec
from hypothesis import strategies as st

from zcompute.objects import (
    build_request,
    cell,
    command,
    flavor,
    history,
    host,
    instance,
    notification,
    notification_payloads,
    partition,
    report,
    task,
)
from zcompute.objects.base import VersionedObject
from zcompute.objects.messages import cluster, hosts, instances, region, upkeep

MODULES: tuple[ModuleType, ...] = (
    build_request,
    cell,
    command,
    flavor,
    history,
    host,
    instance,
    notification,
    notification_payloads,
    partition,
    report,
    task,
    cluster,
    hosts,
    instances,
    region,
    upkeep,
)
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1  # a BIGINT


def structs() -> list[type[msgspec.Struct]]:
    """Every Struct that the modules define, by name."""
    found = {
        kind
        for module in MODULES
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    }
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__name__}")


def stored() -> list[type[VersionedObject]]:
    """Those with a version of their own."""
    return [kind for kind in structs() if issubclass(kind, VersionedObject)]


@cache
def objects(kind: type[msgspec.Struct], depth: int = 3) -> st.SearchStrategy[Any]:
    """Random objects of one kind; every field is drawn, or, where it has a default, sometimes left out."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in msgspec.structs.fields(kind):
        values = _values(msgspec.inspect.type_info(field.type), depth)
        (required if field.required else optional)[field.name] = values
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: kind(**fields))


def _values(info: msgspec.inspect.Type, depth: int) -> st.SearchStrategy[Any]:
    kinds: dict[type, st.SearchStrategy[Any]] = {
        msgspec.inspect.NoneType: st.none(),
        msgspec.inspect.BoolType: st.booleans(),
        msgspec.inspect.IntType: st.integers(INTEGER_MIN, INTEGER_MAX),
        msgspec.inspect.FloatType: st.floats(allow_nan=False),
        msgspec.inspect.StrType: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        msgspec.inspect.BytesType: st.binary(max_size=20),
    }
    simple = kinds.get(type(info))
    if simple is not None:
        return simple
    if isinstance(info, msgspec.inspect.UnionType):
        return st.one_of([_values(choice, depth) for choice in info.types])
    size = 3 if depth else 0
    if isinstance(info, msgspec.inspect.ListType):
        return st.lists(_values(info.item_type, depth - 1), max_size=size) if depth else st.builds(list)
    if isinstance(info, msgspec.inspect.DictType):
        values = _values(info.value_type, depth - 1) if depth else st.none()
        return st.dictionaries(_values(info.key_type, depth), values, max_size=size)
    if isinstance(info, msgspec.inspect.StructType):
        return objects(info.cls, depth - 1)
    raise TypeError(f"no strategy for {info}")
