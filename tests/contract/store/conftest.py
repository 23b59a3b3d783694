"""The three stores that pass one suite: native on MariaDB, portable on MariaDB, portable on SQLite."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.contract.store.lane_writer import LaneWriter
from zcompute.db import migrate
from zcompute.db.drivers import open_store
from zcompute.db.private import PrivateMariaDB, find_programs
from zcompute.db.store import ConductorRow, Store

STORES = ("native-mariadb", "portable-mariadb", "portable-sqlite")

# For what only a server can do to a client.
on_mariadb = pytest.mark.parametrize("flavour", [name for name in STORES if name.endswith("mariadb")], indirect=True)

_numbers = count(1)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[PrivateMariaDB]:
    """One server for the whole session."""
    if find_programs() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mariadbd is missing: install mariadb-server-core")
        pytest.skip("mariadbd is missing: install mariadb-server-core")
    place = Path(tempfile.mkdtemp(prefix="zcompute-store-"))
    server = PrivateMariaDB(place / "data", durable=False, buffer_pool_mb=32)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(params=STORES)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_url(flavour: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Makes a database without a schema; returns its URL."""

    def make(kind: str) -> str:
        name = f"t{next(_numbers)}_{kind}"
        if flavour == "portable-sqlite":
            return f"sqlite:///{tmp_path}/{name}.db"
        return str(request.getfixturevalue("mariadb").create_database(name))

    return make


@pytest.fixture
def new_url(empty_url: Callable[[str], str]) -> Callable[[str], str]:
    """Makes an empty database of a kind; returns its URL."""

    def make(kind: str) -> str:
        url = empty_url(kind)
        migrate.upgrade(url, kind, "root" if kind == "root" else "c1")
        return url

    return make


@pytest.fixture
def open_at(flavour: str) -> Iterator[Callable[[str], Store]]:
    """Opens one more store (as another conductor would) on a database."""
    opened: list[Store] = []

    def make(url: str) -> Store:
        store = open_store(url, flavour.partition("-")[0])
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(new_url: Callable[[str], str], open_at: Callable[[str], Store]) -> Store:
    """A cell's store."""
    return open_at(new_url("cell"))


@pytest.fixture
def root(new_url: Callable[[str], str], open_at: Callable[[str], Store]) -> Store:
    """The root cell's store."""
    return open_at(new_url("root"))


def conductor(name: str = "con1", incarnation: str = "") -> ConductorRow:
    return ConductorRow(name, incarnation or f"{name}-1", f"tcp://127.0.0.1:2{len(name):04d}")


@pytest.fixture
def writer(store: Store) -> Iterator[LaneWriter]:
    """A lane of a registered conductor."""
    lane = LaneWriter.register(store, conductor())
    yield lane
    lane.connection.close()


@pytest.fixture
def root_writer(root: Store) -> Iterator[LaneWriter]:
    lane = LaneWriter.register(root, conductor())
    yield lane
    lane.connection.close()
