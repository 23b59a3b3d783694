"""Every object survives the wire and the database's blob unchanged; what is not one is refused."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.objects.strategies import objects, stored, structs
from zcompute.objects.base import VersionedObject, pack, unpack
from zcompute.objects.errors import ObjectError, ObjectVersionUnsupported, StoredObjectInvalid
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Instance
from zcompute.objects.report import Observation, ReportBody, StepResult

BRISK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def named(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


def test_the_strategies_know_every_kind():
    assert len(structs()) >= 55
    assert Instance in stored()


@named(structs())
@BRISK
@given(data=st.data())
def test_an_object_comes_off_the_wire_as_it_went(kind, data):
    sent = data.draw(objects(kind))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=kind) == sent


@named(stored())
@BRISK
@given(data=st.data())
def test_an_object_comes_out_of_its_blob_as_it_went(kind, data):
    kept = data.draw(objects(kind))
    assert unpack(pack(kept), kind) == kept


@named([Observation, StepResult])
@BRISK
@given(data=st.data())
def test_a_report_says_itself_which_sort_it_is(kind, data):
    sent = data.draw(objects(kind))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=ReportBody) == sent


@named(structs())
@BRISK
@given(data=st.data())
def test_a_field_of_a_later_minor_is_ignored(kind, data):
    sent = data.draw(objects(kind))
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(sent))
    fields["a_field_of_tomorrow"] = [1, {"x": None}]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=kind) == sent


@named(stored())
def test_a_blob_of_another_major_is_refused_with_both_versions(kind):
    major = kind.VERSION[0] + 1
    blob = msgspec.msgpack.encode((kind.__name__, major, 0, {}))
    with pytest.raises(ObjectVersionUnsupported, match=rf"{major}\.0.*{kind.VERSION[0]}\.x"):
        unpack(blob, kind)


def test_a_blob_of_another_kind_is_refused():
    flavor = Flavor(flavorid="1", name="n", vcpus=1, memory_mb=1, root_gb=1)
    with pytest.raises(StoredObjectInvalid, match="expected a stored Instance, found Flavor"):
        unpack(pack(flavor), Instance)


@BRISK
@given(st.binary(max_size=200))
def test_bytes_that_are_no_object_are_refused_and_never_crash(garbage):
    with pytest.raises(ObjectError):
        unpack(garbage, Instance)


@BRISK
@given(data=st.data())
def test_a_cut_off_blob_is_refused(data):
    blob = pack(data.draw(objects(Instance)))
    cut = data.draw(st.integers(0, len(blob) - 1))
    with pytest.raises(StoredObjectInvalid):
        unpack(blob[:cut], Instance)


def test_a_stored_object_with_a_wrong_field_is_refused():
    blob = msgspec.msgpack.encode(("Flavor", 1, 0, {"flavorid": 7}))
    with pytest.raises(StoredObjectInvalid, match="does not decode"):
        unpack(blob, Flavor)


def test_names_of_stored_objects_are_unique():
    names = [kind.__name__ for kind in stored()]
    assert len(names) == len(set(names))
    assert all(issubclass(kind, VersionedObject) for kind in stored())
