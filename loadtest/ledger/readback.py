"""Everything is read back: what agents were told is durable must be in the database, once."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.ledger.bare_join import N_FIRST
from loadtest.ledger.measuring import Bench
from loadtest.ledger.orders import Dump
from loadtest.ledger.world import BARE_HOST, uuid_of
from zcompute.db.native.connection import Connection

ROWS = list[tuple[int, int, int, int, int]]
STATEMENT_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Found:
    """``lost``: acknowledged and not there; ``repeated``: there more than once; ``read`` instances were compared."""

    lost: int
    repeated: int
    read: int


def read_back(bench: Bench) -> Found:
    """Compare every instance, the count of its changes, the history rows and the notifications with what was acked."""
    cell = bench.cell
    paths = [cell.directory / f"expected-{number}" for number in range(len(cell.groups))]
    cell.ask(*(Dump(str(path)) for path in paths))
    cell.outcomes()
    expected = {uuid_of(number): tuple(rest) for path in paths for number, *rest in _rows(path)}
    connection = Connection(cell.target, timeout_s=STATEMENT_TIMEOUT_S)
    try:
        rows = connection.rows(
            b"SELECT uuid, agent_epoch, observed_seq, power_state, progress, revision FROM instances "
            b"WHERE host <> '%s'" % BARE_HOST.encode()
        )
        told = connection.rows(
            b"SELECT COUNT(*) FROM notifications WHERE event_type = 'instance.update' AND n < %d" % N_FIRST
        )
        history = connection.rows(
            b"SELECT COUNT(*) FROM instance_action_events WHERE host <> '%s'" % BARE_HOST.encode()
        )
    finally:
        connection.cut()
    there = {row[0]: row[1:5] for row in rows}
    wrong = sum(there.get(uuid) != state for uuid, state in expected.items())
    differences = [
        sum(row[5] - 1 for row in rows) - bench.tally.applied,
        told[0][0] - bench.tally.transitions,
        history[0][0] - bench.tally.transitions,
    ]
    return Found(
        lost=wrong + sum(-less for less in differences if less < 0),
        repeated=sum(more for more in differences if more > 0),
        read=len(rows),
    )


def _rows(path: Path) -> ROWS:
    return msgspec.msgpack.decode(path.read_bytes(), type=ROWS)
