"""Stored objects have the form of the cell's committed release level, until that is raised."""

import msgspec
import pytest

from zcompute.db.schema import RELEASE_LEVEL
from zcompute.db.tables import INSTANCES
from zcompute.objects.base import pack, unpack
from zcompute.objects.errors import CannotLower
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Instance, ServerSpec
from zcompute.objects.lowering import FIRST, object_kinds, unless_set
from zcompute.objects.stored import LEVELS, pack_at

FLAVOR = Flavor(flavorid="1", name="n", vcpus=1, memory_mb=1, root_gb=1)
SWAPPING = msgspec.structs.replace(FLAVOR, swap_mb=64)


@pytest.fixture
def newer(monkeypatch):
    """A release in which the flavor has left 1.0: 1.1 brought ``swap_mb``, which an older reader must not miss."""
    monkeypatch.setattr(Flavor, "VERSION", (1, 1))
    monkeypatch.setattr(Flavor, "LOWER", {1: unless_set("swap_mb")})


def test_this_release_writes_what_its_own_level_says():
    assert list(LEVELS)[-1] == RELEASE_LEVEL
    left = {kind.__name__: kind.VERSION for kind in object_kinds() if kind.VERSION != FIRST}
    assert LEVELS[RELEASE_LEVEL] == left, "an object left its version: name a new level, or let this one have it"
    assert pack_at(RELEASE_LEVEL) is pack


@pytest.mark.usefixtures("newer")
def test_an_older_level_keeps_its_form():
    packed = pack_at("1")(FLAVOR)
    assert msgspec.msgpack.decode(packed)[:3] == ["Flavor", 1, 0]
    assert unpack(packed, Flavor) == FLAVOR
    assert msgspec.msgpack.decode(pack_at("2")(FLAVOR))[:3] == ["Flavor", 1, 1], "not known here: as it is"
    assert msgspec.msgpack.decode(pack_at("2", {"2": {"Flavor": (1, 1)}})(SWAPPING))[:3] == ["Flavor", 1, 1]


@pytest.mark.usefixtures("newer")
def test_what_a_level_cannot_say_is_not_written():
    with pytest.raises(CannotLower):
        pack_at("1")(SWAPPING)


@pytest.mark.usefixtures("newer")
def test_objects_inside_a_row_have_the_levels_form():
    stored = Instance(uuid="u", project_id="p", user_id="u", name="n", flavor=FLAVOR, spec=ServerSpec())
    at = INSTANCES.columns.index("flavor")
    assert msgspec.msgpack.decode(INSTANCES.to_row(stored, 0, pack_at("1"))[at])[:3] == ["Flavor", 1, 0]
    assert msgspec.msgpack.decode(INSTANCES.to_row(stored, 0)[at])[:3] == ["Flavor", 1, 1]
