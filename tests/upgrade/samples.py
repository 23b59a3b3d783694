"""Objects for the corpus: of each kind one with every field set, and one with the required ones only. No randomness."""

from typing import Any

import msgspec

DEPTH_MAX = 4


def full(kind: type[msgspec.Struct]) -> Any:
    """Every field holds something other than its default."""
    return _made(kind, bare=False, depth=0)


def bare(kind: type[msgspec.Struct]) -> Any:
    """Only what must be there."""
    return _made(kind, bare=True, depth=0)


def _made(kind: type[msgspec.Struct], *, bare: bool, depth: int) -> Any:
    fields = {
        field.name: _value(msgspec.inspect.type_info(field.type), field.name, bare=bare, depth=depth)
        for field in msgspec.structs.fields(kind)
        if field.required or not bare
    }
    return kind(**fields)


def _value(info: msgspec.inspect.Type, name: str, *, bare: bool, depth: int) -> Any:
    if isinstance(info, msgspec.inspect.Metadata):
        return _value(info.type, name, bare=bare, depth=depth)
    if isinstance(info, msgspec.inspect.UnionType):
        choices = [one for one in info.types if not isinstance(one, msgspec.inspect.NoneType)]
        return _value(choices[0], name, bare=bare, depth=depth)
    if isinstance(info, msgspec.inspect.StructType):
        return _made(info.cls, bare=bare or depth >= DEPTH_MAX, depth=depth + 1)
    if isinstance(info, msgspec.inspect.ListType):
        return [] if bare else [_value(info.item_type, name, bare=bare, depth=depth)]
    if isinstance(info, msgspec.inspect.TupleType):
        return tuple(_value(one, name, bare=bare, depth=depth) for one in info.item_types)
    if isinstance(info, msgspec.inspect.DictType):
        key = _value(info.key_type, name, bare=bare, depth=depth)
        return {} if bare else {key: _value(info.value_type, name, bare=bare, depth=depth)}
    return _simple(info, name)


def _simple(info: msgspec.inspect.Type, name: str) -> Any:
    number = 1 + sum(name.encode()) % 1000
    simple: dict[type, Any] = {
        msgspec.inspect.BoolType: True,
        msgspec.inspect.IntType: number,
        msgspec.inspect.FloatType: number + 0.5,
        msgspec.inspect.StrType: f"a {name} \u00e9",
        msgspec.inspect.BytesType: f"\x00 {name}".encode(),
        msgspec.inspect.AnyType: name,
    }
    return simple[type(info)]
