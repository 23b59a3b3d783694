"""The ledger writes at the cell's committed release level, as its row says."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.unit.conductor.ledger_world import INSTANCES, World, instance
from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.ledger import Change
from zcompute.conductor.notices import tell_of_rows
from zcompute.objects.base import unpack
from zcompute.objects.errors import CannotLower
from zcompute.objects.flavor import Flavor
from zcompute.objects.lowering import unless_set
from zcompute.objects.notification import Notification, payload_document
from zcompute.objects.notification_payloads import InstanceUpdatePayload
from zcompute.objects.partition import partition_of

UUIDS = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(3)]
AT = INSTANCES.columns.index("flavor")


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def insert(world: World, uuid: str, **flavor: Any) -> None:
    def decide(change: Change) -> None:
        new = instance(uuid)
        new.flavor = msgspec.structs.replace(new.flavor, **flavor)
        change.put(INSTANCES, new)

    world.ledger.commit(partition_of(uuid), [(INSTANCES, (uuid,))], decide, timeout_ms=1000)


def version_of(world: World, uuid: str) -> list[Any]:
    row = world.database.tables["instances"][(uuid,)]
    return list(msgspec.msgpack.decode(row[AT])[:3])


def test_rows_keep_the_form_of_the_level_until_it_is_raised(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flavor, "VERSION", (1, 1))
    monkeypatch.setattr(Flavor, "LOWER", {1: unless_set("swap_mb")})
    world.ledger.write_at("1")
    insert(world, UUIDS[0])
    assert version_of(world, UUIDS[0]) == ["Flavor", 1, 0]
    with pytest.raises(InvalidRequest, match="swap_mb"):
        insert(world, UUIDS[1], swap_mb=64)
    assert (UUIDS[1],) not in world.database.tables["instances"]
    world.ledger.write_at("2")
    insert(world, UUIDS[2], swap_mb=64)
    assert version_of(world, UUIDS[2]) == ["Flavor", 1, 1]


def not_with_swap(fields: dict[str, Any]) -> None:
    if fields["flavor"].swap:
        raise CannotLower("swap cannot be said")
    del fields["old_display_name"]


def test_payloads_of_what_is_told_have_the_form_of_the_level_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InstanceUpdatePayload, "VERSION", (1, 1))
    monkeypatch.setattr(InstanceUpdatePayload, "LOWER", {1: not_with_swap})
    world.ledger.on_decided(tell_of_rows)

    def told(uuid: str, **flavor: Any) -> tuple[str, bool, bool]:
        """The payload's version, whether it has what came with 1.1, whether it was left out."""
        insert(world, uuid, **flavor)
        partition = partition_of(uuid)
        body = world.database.tables["notifications"][(partition, world.ledger.last_n(partition))][5]
        notification = unpack(body, Notification)
        shown = payload_document(notification.payload)
        return shown.get("version", ""), "old_display_name" in shown.get("data", {}), notification.truncated

    world.ledger.write_at("1")
    assert told(UUIDS[0]) == ("1.0", False, False)
    assert told(UUIDS[1], swap_mb=64) == ("", False, True), "what cannot be said is left out, the change is made"
    world.ledger.write_at("2")
    assert told(UUIDS[2], swap_mb=64) == ("1.1", True, False)
