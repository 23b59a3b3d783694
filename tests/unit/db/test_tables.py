"""Objects survive the wire and the row, whole."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.db.objects_drawn import drawn
from zcompute.db.schema import KIND_CELL, KIND_ROOT, TABLES, metadata_of
from zcompute.db.tables import CELL_TABLES, CODECS, ROOT_TABLES, SHARED_TABLES, TABLE_ORDER, TableCodec
from zcompute.objects.base import pack, unpack
from zcompute.objects.partition import GLOBAL_KEY

NAMES = sorted(CODECS)
INSERT_ONLY = {
    "archived_rows",
    "claims",
    "group_placements",
    "instance_action_events",
    "notifications",
    "operations",
    "root_outbox",
}
PRIMITIVES = (type(None), int, float, str, bytes, bool)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_object_comes_back_from_the_wire_the_row_and_the_packed_form(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    stored = data.draw(drawn(codec.kind))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(stored), type=codec.kind) == stored
    assert unpack(pack(stored), codec.kind) == stored
    row = codec.to_row(stored, 255)
    assert len(row) == len(codec.columns)
    assert all(isinstance(value, PRIMITIVES) for value in row)
    assert codec.from_row(row) == stored
    width = len(codec.key_columns)
    assert codec.key_of(stored) == row[:width]
    assert row[codec.partition_at] == (255 if codec.partition_key is not None else stored.partition_id)


@pytest.mark.parametrize("name", NAMES)
def test_a_codec_covers_every_field_and_every_column(name: str) -> None:
    codec, table = CODECS[name], TABLES[name]
    assert codec.columns == tuple(column.name for column in table.columns)
    assert codec.key_columns == tuple(column.name for column in table.primary_key)
    assert {attribute for attribute, *_ in codec.readers} == {f.name for f in msgspec.structs.fields(codec.kind)}


@pytest.mark.parametrize("name", sorted(set(NAMES) - INSERT_ONLY))
def test_mutable_tables_have_the_row_guard(name: str) -> None:
    codec = CODECS[name]
    assert codec.update_columns[-1] == "revision"
    assert set(codec.update_columns) | set(codec.key_columns) | {"partition_id"} == set(codec.columns)


def test_insert_only_tables_have_nothing_to_update() -> None:
    assert {name for name in NAMES if not CODECS[name].update_columns} == INSERT_ONLY


def test_every_table_has_a_place_in_the_order_and_a_database() -> None:
    assert sorted(TABLE_ORDER) == NAMES
    for kind, codecs in ((KIND_CELL, CELL_TABLES), (KIND_ROOT, ROOT_TABLES)):
        present = set(metadata_of(kind).tables)
        assert {codec.name for codec in (*codecs, *SHARED_TABLES)} < present
        assert {"cell_state", "conductors", "beats", "lanes", "partitions"} < present


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("instances", "uuid"),
        ("hosts", "name"),
        ("claims", "host"),
        ("tasks", "instance_uuid"),
        ("root_outbox", "instance_uuid"),
        ("instance_actions", "instance_uuid"),
        ("instance_action_events", "instance_uuid"),
        ("build_requests", "project_id"),
        ("instance_mappings", "project_id"),
        ("usages", "project_id"),
        ("operations", "project_id"),
        ("flavors", None),
        ("cells", None),
    ],
)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_partition_keys(name: str, field: str | None, data: st.DataObject) -> None:
    codec: TableCodec = CODECS[name]
    stored = data.draw(drawn(codec.kind))
    assert codec.partition_key(stored) == (GLOBAL_KEY if field is None else getattr(stored, field))


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_an_update_row_is_the_key_and_the_columns_asked_for(data: st.DataObject) -> None:
    codec = CODECS["hosts"]
    stored = data.draw(drawn(codec.kind))
    assert codec.update_row(stored, ("state", "revision")) == (stored.name, stored.state, stored.revision)
    assert codec.update_row(stored)[1:] == codec.to_row(stored, 1)[2:]
    assert codec.picker(("state",))(codec.to_row(stored, 1)) == (stored.state,)
