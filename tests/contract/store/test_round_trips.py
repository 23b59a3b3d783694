"""Every stored object comes back whole from every database, whatever it holds."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.contract.store.conftest import conductor
from tests.contract.store.lane_writer import LaneWriter, delete, insert, update
from tests.unit.db.objects_drawn import drawn
from zcompute.db.store import Store
from zcompute.db.tables import CELL_TABLES, CODECS, TableCodec

# Generated ones only: minimising a failure would run hundreds of transactions.
ROUND_TRIP = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def writers(
    new_url: Callable[[str], str], open_at: Callable[[str], Store]
) -> Iterator[Callable[[TableCodec[Any]], LaneWriter]]:
    made: dict[str, LaneWriter] = {}

    def writer_of(table: TableCodec[Any]) -> LaneWriter:
        kind = "cell" if table in CELL_TABLES else "root"
        if kind not in made:
            made[kind] = LaneWriter.register(open_at(new_url(kind)), conductor())
        return made[kind]

    yield writer_of
    for writer in made.values():
        writer.connection.close()


@pytest.mark.parametrize("name", sorted(CODECS))
@ROUND_TRIP
@given(data=st.data())
def test_an_object_comes_back_from_the_database(
    name: str, data: st.DataObject, writers: Callable[[TableCodec[Any]], LaneWriter]
) -> None:
    table = CODECS[name]
    writer = writers(table)
    stored = data.draw(drawn(table.kind))
    key = table.key_of(stored)
    writer.commit(insert(table, stored))
    assert writer.store.fetch(table, [key]) == {key: stored}
    assert writer.store.scan(table, limit=10) == [stored]
    if table.update_columns:
        other = data.draw(drawn(table.kind))
        same = {column: getattr(stored, column) for column in table.key_columns}
        newer = msgspec.structs.replace(other, **same, revision=stored.revision + 1)
        writer.commit(update(table, newer))
        assert writer.store.fetch(table, [key]) == {key: newer}
    writer.commit(delete(table, key))
    assert writer.store.fetch(table, [key]) == {}
