"""Objects straight from the packets of MariaDB's text protocol."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.db.objects_drawn import drawn
from zcompute.db.native.reader import row_reader
from zcompute.db.tables import CODECS, INSTANCES, Projection
from zcompute.objects.messages.instances import InstanceBrief


def as_sent(value: object) -> bytes:
    """A value as the server sends it."""
    if value is None:
        return b"\xfb"
    if isinstance(value, bool):
        value = int(value)
    text = value if isinstance(value, bytes) else str(value).encode()
    size = len(text)
    if size < 251:
        return bytes([size]) + text
    if size < 1 << 16:
        return b"\xfc" + size.to_bytes(2, "little") + text
    return b"\xfd" + size.to_bytes(3, "little") + text


@pytest.mark.parametrize("name", sorted(CODECS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_was_written_is_read(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    stored = data.draw(drawn(codec.kind))
    assert row_reader(codec)(b"".join(map(as_sent, codec.to_row(stored, 255)))) == stored


@pytest.mark.parametrize("size", [0, 1, 250, 251, 65_535, 65_536])
def test_values_of_any_length_and_what_stands_behind_them(size: int) -> None:
    form = Projection(INSTANCES.name, InstanceBrief, ("uuid", "name", "mapping_generation", "host"))
    packet = b"".join(map(as_sent, ("u", "n" * size, 12, None)))
    assert row_reader(form)(packet) == InstanceBrief(uuid="u", name="n" * size, mapping_generation=12, host=None)


@pytest.mark.parametrize("value", [0, 7, 10, -1, 2**63 - 1, -(2**63)])
def test_numbers_of_any_size_and_sign(value: int) -> None:
    form = Projection(INSTANCES.name, InstanceBrief, ("uuid", "created_at_us"))
    assert row_reader(form)(as_sent("u") + as_sent(value)).created_at_us == value
