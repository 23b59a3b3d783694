"""An object that an older release reads: what is dropped, what is said instead, what is refused."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.objects.strategies import objects, structs
from zcompute.objects import lowering
from zcompute.objects.base import VersionedObject
from zcompute.objects.errors import CannotLower
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Instance
from zcompute.objects.lowering import Lowering, all_of, attributes, instead, lowering_for, unless_set, without
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.region import FlavorListReply
from zcompute.objects.report import Observation

FLAVOR = Flavor(flavorid="1", name="n", vcpus=1, memory_mb=1, root_gb=1)


class Pet(VersionedObject):
    """1.1 brought ``mood``, 1.2 legs above four (said as four), 1.3 ``wings`` and ``nickname``."""

    VERSION = (1, 3)
    LOWER = {
        3: all_of(unless_set("wings"), without("nickname")),
        2: instead("legs", {6: 4, 8: 4}),
    }

    name: str
    mood: str = "good"
    legs: int = 4
    wings: int = 0
    nickname: str = ""


class Owner(VersionedObject):
    name: str
    pets: list[Pet] = msgspec.field(default_factory=list)
    best: dict[str, Pet | None] = msgspec.field(default_factory=dict)


class Visit(msgspec.Struct, tag="visit"):
    owner: Owner
    when: int = 0


def lowered(value, known, *behind):
    encoded = msgspec.msgpack.encode(Lowering(known, frozenset(behind or {"Pet"}))(value))
    return msgspec.msgpack.decode(encoded)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ((1, 2), {"name": "a", "legs": 6}),
        ((1, 1), {"name": "a", "legs": 4}),
        ((1, 0), {"name": "a", "legs": 4}),
    ],
)
def test_each_minor_between_the_two_takes_its_rule(known, expected):
    assert lowered(Pet(name="a", legs=6, nickname="x"), {"Pet": known}) == expected


def test_what_an_older_reader_would_misread_is_refused():
    assert lowered(Pet(name="a"), {"Pet": (1, 2)}) == {"name": "a"}
    with pytest.raises(CannotLower, match="wings"):
        lowered(Pet(name="a", wings=2), {"Pet": (1, 2)})


def test_another_major_is_refused():
    with pytest.raises(CannotLower, match=r"1\.3.*0\.9"):
        lowered(Pet(name="a"), {"Pet": (0, 9)})


def test_objects_inside_messages_lists_and_maps_are_lowered_too():
    pet = Pet(name="a", legs=8, nickname="x")
    visit = Visit(Owner(name="o", pets=[pet], best={"k": pet, "none": None}), 7)
    plain = {"name": "a", "legs": 4}
    assert lowered(visit, {}) == {
        "type": "visit",
        "owner": {"name": "o", "pets": [plain], "best": {"k": plain, "none": None}},
        "when": 7,
    }


def test_what_the_peer_reads_as_it_is_is_not_copied():
    lower = Lowering({}, frozenset({"Pet"}))
    for value in (FLAVOR, Observation(instance_uuid="u", host="h", generation=1, power_state=1), Empty()):
        assert lower(value) is value


@pytest.mark.parametrize("kind", structs(), ids=lambda kind: kind.__name__)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_without_rules_a_lowered_message_is_the_message(kind, data):
    message = data.draw(objects(kind))
    everything = frozenset(one.__name__ for one in lowering.object_kinds())
    known = dict.fromkeys(everything, (1, 0))
    encoded = msgspec.msgpack.encode(Lowering(known, everything)(message))
    assert msgspec.msgpack.decode(encoded, type=kind) == message


def test_a_peer_is_told_of_objects_that_have_left_their_first_version(monkeypatch):
    assert lowering_for({}) is None
    monkeypatch.setattr(Flavor, "VERSION", (1, 2))
    told = attributes()
    assert told == {"objects": {"Flavor": [1, 2]}}
    assert lowering_for(msgspec.msgpack.decode(msgspec.msgpack.encode(told))) is None
    assert lowering_for({"objects": {"Flavor": [1, 3]}}) is None
    assert lowering_for({}) is not None
    assert lowering_for({"objects": {"Flavor": [1, 1]}}) is not None


def test_an_object_inside_another_is_found(monkeypatch):
    monkeypatch.setattr(Flavor, "VERSION", (1, 1))
    monkeypatch.setattr(Flavor, "LOWER", {1: without("extra_specs")})
    lower = lowering_for({})
    assert lower is not None
    reply = FlavorListReply(flavors=[msgspec.structs.replace(FLAVOR, extra_specs={"a": "b"})])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(lower(reply)), type=type(reply)).flavors == [FLAVOR]
    assert "Flavor" in lowering.reached(Instance)


@pytest.mark.parametrize(
    "told",
    [
        {"objects": 7},
        {"objects": [["Flavor", 1]]},
        {"objects": {"Flavor": "1.0"}},
        {"objects": {"Flavor": [1]}},
        {"objects": {"Flavor": [True, None]}},
        {"objects": {str(number): [1, 1] for number in range(1000)}},
    ],
)
def test_attributes_of_another_shape_say_nothing(told):
    assert lowering.versions_in(told) == {}
