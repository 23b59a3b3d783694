"""Objects in the form that an older release reads, by rules declared with the object.

Two adjacent releases work together: the newer one sends an older peer what that very peer reads. An object's minor
version that only adds fields needs no rule, since unknown fields are ignored; one that an older reader would misread
declares, under its number in ``LOWER``, how to take its fields to the minor before. What cannot be said to an older
reader at all is refused, never sent to be misunderstood.

Peers tell each other their objects' versions in the hello (``attributes()``); an object that is not named is at 1.0.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import msgspec

from zcompute.objects.base import KINDS, Fields, Rule, VersionedObject
from zcompute.objects.errors import CannotLower

FIRST = (1, 0)
ATTRIBUTE = "objects"
OBJECTS_MAX = 256
PACKAGE = __package__ + "."

Versions = Mapping[str, tuple[int, int]]


# -- rules ------------------------------------------------------------------------------------------------------------


def without(*names: str) -> Rule:
    """An older reader must not see these fields."""

    def rule(fields: Fields) -> None:
        for name in names:
            fields.pop(name, None)

    return rule


def unless_set(*names: str) -> Rule:
    """These fields change what is meant: an older reader gets the object only where they have their defaults."""

    def rule(fields: Fields) -> None:
        found = [name for name in names if name in fields]
        if found:
            raise CannotLower(f"{', '.join(found)} cannot be said to an older peer: upgrade it, or do without")

    return rule


def instead(name: str, values: Mapping[Any, Any]) -> Rule:
    """Values that an older reader does not know, and what it is told instead of each."""

    def rule(fields: Fields) -> None:
        if fields.get(name) in values:
            fields[name] = values[fields[name]]

    return rule


def all_of(*rules: Rule) -> Rule:
    """One after the other."""

    def rule(fields: Fields) -> None:
        for one in rules:
            one(fields)

    return rule


# -- what a peer reads ------------------------------------------------------------------------------------------------


def object_kinds() -> Sequence[type[VersionedObject]]:
    """Every object of this package that the process has loaded."""
    return _kinds_of(len(KINDS))


@lru_cache(maxsize=1)
def _kinds_of(_loaded: int) -> tuple[type[VersionedObject], ...]:
    """Looked up at every hello and welcome, and gathered anew only when more are loaded."""
    return tuple(kind for kind in KINDS if kind.__module__.startswith(PACKAGE))


def attributes() -> dict[str, Any]:
    """What a hello says of the objects that this release reads: those that have left 1.0."""
    left = {kind.__name__: list(kind.VERSION) for kind in object_kinds() if kind.VERSION != FIRST}
    return {ATTRIBUTE: left} if left else {}


def versions_in(told: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The versions in a hello's attributes; what has another shape counts as not said."""
    named = told.get(ATTRIBUTE)
    if not isinstance(named, dict) or len(named) > OBJECTS_MAX:
        return {}
    return {
        str(name): (version[0], version[1])
        for name, version in named.items()
        if isinstance(version, list) and len(version) == 2 and all(type(number) is int for number in version)
    }


def lowering_for(told: Mapping[str, Any]) -> "Lowering | None":
    """The lowering for a peer whose hello had these attributes; None when it reads everything as it is here."""
    known = versions_in(told)
    behind = {kind.__name__ for kind in object_kinds() if known.get(kind.__name__, FIRST) < kind.VERSION}
    return Lowering(known, frozenset(behind)) if behind else None


class Lowering:
    """Makes messages and objects readable for one peer. ``behind`` are the objects of which it knows older versions."""

    def __init__(self, known: Versions, behind: frozenset[str]) -> None:
        self._known = known
        self._behind = behind

    def __call__(self, value: Any) -> Any:
        """The value itself when it holds nothing that the peer reads differently, else plain maps in its place.

        Raises CannotLower when the peer's version cannot say it.
        """
        if isinstance(value, msgspec.Struct):
            return self._struct(value) if self._behind & reached(type(value)) else value
        if isinstance(value, list | tuple):
            return [self(one) for one in value]
        if isinstance(value, dict):
            return {key: self(one) for key, one in value.items()}
        return value

    def _struct(self, value: msgspec.Struct) -> Fields:
        fields = {name: self(one) for name, one in set_fields(value)}
        kind = type(value)
        if isinstance(value, VersionedObject) and kind.__name__ in self._behind:
            lower_fields(kind.__name__, value.LOWER, fields, value.VERSION, self._known.get(kind.__name__, FIRST))
        return fields


def lower_fields(
    name: str, rules: Mapping[int, Rule], fields: Fields, version: tuple[int, int], known: tuple[int, int]
) -> None:
    """Take fields from one version to an older one, minor by minor. Raises CannotLower."""
    if known[0] != version[0]:
        raise CannotLower(
            f"{name} is of version {version[0]}.{version[1]} here, the peer reads {known[0]}.{known[1]}: upgrade it"
        )
    for minor in range(version[1], known[1], -1):
        rule = rules.get(minor)
        if rule is not None:
            rule(fields)


def set_fields(value: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    """The fields as they are encoded: by their wire names, without those that are left out, the tag included."""
    config = value.__struct_config__
    if config.tag is not None and config.tag_field is not None:
        yield config.tag_field, config.tag
    for field in msgspec.structs.fields(value):
        found = getattr(value, field.name)
        if not (config.omit_defaults and not field.required and found == _default(field)):
            yield field.encode_name, found


def _default(field: msgspec.structs.FieldInfo) -> Any:
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


@cache
def reached(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Names of the objects that a message may hold, itself included."""
    found: dict[type, None] = {kind: None}
    waiting: list[type[msgspec.Struct]] = [kind]
    while waiting:
        for field in msgspec.structs.fields(waiting.pop()):
            for inner in _structs_in(msgspec.inspect.type_info(field.type)):
                if inner not in found:
                    found[inner] = None
                    waiting.append(inner)
    return frozenset(one.__name__ for one in found if issubclass(one, VersionedObject))


def _structs_in(info: msgspec.inspect.Type) -> Iterator[type[msgspec.Struct]]:
    if isinstance(info, msgspec.inspect.StructType):
        yield info.cls
    elif isinstance(info, msgspec.inspect.UnionType):
        for one in info.types:
            yield from _structs_in(one)
    elif isinstance(info, msgspec.inspect.DictType):
        yield from _structs_in(info.value_type)
    elif isinstance(info, msgspec.inspect.Metadata):
        yield from _structs_in(info.type)
    elif isinstance(info, msgspec.inspect.CollectionType | msgspec.inspect.VarTupleType):
        yield from _structs_in(info.item_type)
    elif isinstance(info, msgspec.inspect.TupleType):
        for one in info.item_types:
            yield from _structs_in(one)
