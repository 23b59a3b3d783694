"""A lost database is told twice: when it goes and when it is back."""

import logging

from tests.unit.conductor.ledger_fake import LOST_BEFORE
from tests.unit.conductor.ledger_world import GLOBAL, World, flavor
from zcompute.conductor.outage import Outage
from zcompute.db.errors import ConnectionLost
from zcompute.db.tables import FLAVORS

GONE = ConnectionLost("no server")


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_one_warning_when_it_goes_and_one_when_the_last_part_is_back(caplog):
    now = [100.0]
    outage = Outage(lambda: now[0])
    for part in ("beats", "lane 1", "beats", "map", "lane 1"):
        outage.lost(part, GONE)
    now[0] = 103.5
    for part in ("beats", "map", "beats"):
        outage.back(part)
    assert len(warnings(caplog)) == 1
    outage.back("lane 1")
    outage.back("lane 1")
    assert warnings(caplog) == ["database lost part=beats error=no server", "database is back after_ms=3500"]


def test_a_lane_that_tries_for_long_warns_twice(caplog):
    world = World()
    world.connection.faults.extend([LOST_BEFORE] * 5)
    world.ledger.commit(
        GLOBAL, [(FLAVORS, ("9",))], lambda change: change.put(FLAVORS, flavor("9", name="nine")), timeout_ms=2000
    )
    world.close()
    assert [text.split(" part=")[0].split("=")[0] for text in warnings(caplog)] == [
        "database lost", "database is back after_ms",
    ]  # fmt: skip
