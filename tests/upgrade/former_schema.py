"""What a release does to a database, kept as data: the statements that must go on working on every expanded schema.

``python -m tests.upgrade.former_schema`` writes this release's, into schema/RELEASE.json; a release that is out is
never written again. Statements of the ledger (insert, update, select, delete of each table, with the columns that the
release knows) and of ownership (register, take over, release, read the map), in the order in which they run.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from zcompute import __version__
from zcompute.db import migrate, ownership, schema
from zcompute.db.drivers import open_store
from zcompute.db.session import Session
from zcompute.db.store import ConductorRow
from zcompute.db.tables import CELL_TABLES, ROOT_TABLES, SHARED_TABLES, TableCodec

DIRECTORY = Path(__file__).parent / "schema"
Statement = tuple[str, dict[str, Any]]


class Recording:
    """A session that notes what it is asked."""

    def __init__(self, inner: Session, noted: list[Statement]) -> None:
        self._inner = inner
        self._noted = noted

    def select(self, sql: str, **values: Any) -> list[Any]:
        self._noted.append((sql, values))
        return self._inner.select(sql, **values)

    def select_for_update(self, sql: str, **values: Any) -> list[Any]:
        self._noted.append((sql, values))
        return self._inner.select_for_update(sql, **values)

    def execute(self, sql: str, **values: Any) -> int:
        self._noted.append((sql, values))
        return self._inner.execute(sql, **values)


class RecordingSessions:
    """Sessions of a store, noted."""

    def __init__(self, inner: Any, noted: list[Statement]) -> None:
        self._inner = inner
        self._noted = noted

    def read(self, work: Callable[[Any], Any]) -> Any:
        return self._inner.read(lambda session: work(Recording(session, self._noted)))

    def write(self, work: Callable[[Any], Any], *, on_lock_wait: Any = None) -> Any:
        return self._inner.write(lambda session: work(Recording(session, self._noted)))

    def now_us(self) -> int:
        return 1


def ownership_statements() -> list[Statement]:
    """A conductor's life, as this code has it."""
    noted: list[Statement] = []
    with tempfile.TemporaryDirectory() as place:
        url = f"sqlite:///{place}/cell.db"
        migrate.upgrade(url, schema.KIND_CELL, "c1")
        store: Any = open_store(url)
        sessions: Any = RecordingSessions(store._sessions, noted)
        lanes = ownership.register(sessions, ConductorRow("con", "con-1", "tcp://127.0.0.1:1"), 2)
        ownership.take_over(sessions, [], lanes, 1, None)
        ownership.readdress(sessions, "con", "con-1", "tcp://127.0.0.1:2", "key")
        sessions.read(ownership.read_beats)
        sessions.read(ownership.read_map)
        ownership.release(sessions, "con-1")
        store.close()
    return noted


def table_statements(table: TableCodec[Any]) -> list[Statement]:
    """Insert, update, read and delete a row, by the columns that this code knows."""
    columns = schema.TABLES[table.name].c
    row = {name: _value(columns[name]) for name in table.columns}
    key = " AND ".join(f"{name} = :{name}" for name in table.key_columns)
    names = ", ".join(table.columns)
    keys = {name: row[name] for name in table.key_columns}
    # Names come from the codec.
    found: list[Statement] = [
        (f"INSERT INTO {table.name} ({names}) VALUES ({', '.join(f':{name}' for name in table.columns)})", row)  # noqa: S608
    ]
    if table.update_columns:
        sets = ", ".join(f"{name} = :{name}" for name in table.update_columns)
        values = keys | {name: row[name] for name in table.update_columns}
        found.append((f"UPDATE {table.name} SET {sets} WHERE {key}", values))  # noqa: S608
    found.append((f"SELECT {names} FROM {table.name} WHERE {key}", keys))  # noqa: S608
    found.append((f"DELETE FROM {table.name} WHERE {key}", keys))  # noqa: S608
    return found


def _value(column: sa.Column[Any]) -> Any:
    if isinstance(column.type, sa.LargeBinary):
        return {"hex": "00ff"}
    return "x" if isinstance(column.type, sa.String) else 1


def statements() -> dict[str, list[Statement]]:
    """By kind of database."""
    owning = ownership_statements()
    of = {schema.KIND_CELL: CELL_TABLES, schema.KIND_ROOT: ROOT_TABLES}
    return {
        kind: [*owning, *(each for table in (*tables, *SHARED_TABLES) for each in table_statements(table))]
        for kind, tables in of.items()
    }


def releases() -> list[str]:
    """Those that are kept."""
    return sorted(path.stem for path in DIRECTORY.glob("*.json"))


def read(release: str, kind: str) -> list[Statement]:
    """What a release does to a database of a kind."""
    found = json.loads((DIRECTORY / f"{release}.json").read_text(encoding="utf-8"))[kind]
    return [(sql, {name: _plain(value) for name, value in values.items()}) for sql, values in found]


def _plain(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / f"{__version__}.json").write_text(json.dumps(statements(), indent=1) + "\n", encoding="utf-8")
