"""What the code declares to the world outside its process, described so that two releases can be compared."""

import hashlib
import json
from typing import Any

import msgspec

from tests.unit.objects.strategies import stored
from zcompute.bus import envelope, errors, inside
from zcompute.bus.inside import BuiltInMethod
from zcompute.objects.base import VersionedObject
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.interface import Interface, Method
from zcompute.objects.methods import EVENTS, INTERFACES, RELAYED_REPORTS, REPORTS

Described = dict[str, dict[str, Any]]


def envelopes() -> dict[int, type[msgspec.Struct]]:
    """Every kind of envelope by its number."""
    return {
        kind.__struct_config__.tag: kind
        for kind in vars(envelope).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag is not None
    }


def bus_methods() -> list[BuiltInMethod]:
    """The methods of the bus' own interface."""
    return [value for value in vars(inside).values() if isinstance(value, BuiltInMethod)]


def payloads() -> dict[str, type[msgspec.Struct]]:
    """Every payload that crosses the wire, by what it is."""
    found: dict[str, type[msgspec.Struct]] = {}
    methods: list[Method | BuiltInMethod] = [*bus_methods()]
    for interface in INTERFACES:
        methods += interface.methods.values()
    for method in methods:
        found[f"request {method.interface}.{method.name}"] = method.request
        if method.reply is not None:
            found[f"reply {method.interface}.{method.name}"] = method.reply
    found |= {f"event {topic}": kind for topic, kind in EVENTS.items()}
    return found | {f"report {name}": kind for name, kind in (REPORTS | RELAYED_REPORTS).items()}


def objects() -> dict[str, type[VersionedObject]]:
    """Every object with a version of its own, by name."""
    return {kind.__name__: kind for kind in stored()}


# -- descriptions -----------------------------------------------------------------------------------------------------


def described() -> dict[str, Described]:
    """Everything that has a version: sort and name to that version and what it looks like."""
    return {
        "protocol": {"envelopes": _protocol()},
        "interfaces": {interface.name: _interface(interface) for interface in INTERFACES} | {"bus": _bus()},
        "objects": {
            name: {"version": _dotted(kind.VERSION), "is": _struct(kind, top=True)} for name, kind in objects().items()
        },
    }


def fingerprints() -> dict[str, dict[str, dict[str, str]]]:
    """Sort and name to the fingerprint of the version that it has now: a part of what fingerprints.json holds."""
    return {
        sort: {name: {entry["version"]: _fingerprint(entry["is"])} for name, entry in sorted(entries.items())}
        for sort, entries in described().items()
    }


def wire_names() -> list[str]:
    """The closed set of errors."""
    of_bus = {name for name, kind in errors._registry.items() if getattr(kind, "__module__", "") == errors.__name__}
    return sorted(of_bus | {kind.wire_name for kind in SERVICE_ERRORS})


def _fingerprint(description: Any) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def _protocol() -> dict[str, Any]:
    version = _dotted((envelope.PROTOCOL_MAJOR, envelope.PROTOCOL_MINOR))
    return {"version": version, "is": {str(tag): _struct(kind, top=True) for tag, kind in envelopes().items()}}


def _interface(interface: Interface) -> dict[str, Any]:
    methods = {name: _method(method) for name, method in interface.methods.items()}
    carried = {name: _struct(kind) for name, kind in interface.carries.items()}
    return {"version": _dotted(interface.version), "is": {"methods": methods, "carries": carried}}


def _bus() -> dict[str, Any]:
    methods = bus_methods()
    version = _dotted(max(method.version for method in methods))
    return {"version": version, "is": {"methods": {method.name: _method(method) for method in methods}}}


def _method(method: Any) -> dict[str, Any]:
    return {
        "since": _dotted(method.version),
        "roles": sorted(method.roles),
        "idempotent": method.idempotent,
        "request": _struct(method.request),
        "reply": _struct(method.reply) if method.reply is not None else None,
    }


def _struct(kind: type[msgspec.Struct], *, top: bool = False) -> Any:
    """An object inside something else is only named: it has a version of its own."""
    if issubclass(kind, VersionedObject) and not top:
        return f"object {kind.__name__} {kind.VERSION[0]}"
    config = kind.__struct_config__
    fields = [
        [field.encode_name, _default(field), _type(msgspec.inspect.type_info(field.type))]
        for field in msgspec.structs.fields(kind)
    ]
    return {"tag": config.tag, "array": config.array_like, "fields": fields if config.array_like else sorted(fields)}


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    factory = field.default_factory
    value = field.default if factory is msgspec.NODEFAULT else factory()
    return json.dumps(msgspec.to_builtins(value), sort_keys=True)


def _type(info: msgspec.inspect.Type) -> Any:
    if isinstance(info, msgspec.inspect.Metadata):
        return _type(info.type)
    if isinstance(info, msgspec.inspect.StructType):
        return _struct(info.cls)
    if isinstance(info, msgspec.inspect.UnionType):
        return sorted(json.dumps(_type(one), sort_keys=True) for one in info.types)
    if isinstance(info, msgspec.inspect.ListType | msgspec.inspect.CollectionType):
        return ["list", _type(info.item_type)]
    if isinstance(info, msgspec.inspect.TupleType):
        return ["tuple", *(_type(one) for one in info.item_types)]
    if isinstance(info, msgspec.inspect.DictType):
        return ["dict", _type(info.key_type), _type(info.value_type)]
    bounds = {name: getattr(info, name) for name in ("ge", "le", "max_length") if getattr(info, name, None) is not None}
    return [type(info).__name__, bounds] if bounds else type(info).__name__


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
