"""TLS to MariaDB, and a password that changes while everything runs."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest

from tests.contract.store.certificates import authority, certificate
from tests.contract.store.conftest import conductor
from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import instance
from tests.contract.store.test_beats import BeatThread
from zcompute.cli.up.statedir import free_ports
from zcompute.config import DatabaseConfig
from zcompute.db import migrate
from zcompute.db.drivers import open_store
from zcompute.db.errors import ConnectionLost
from zcompute.db.native.connection import Connection
from zcompute.db.private import PrivateMariaDB, find_programs
from zcompute.db.secrets import PASSWORDS_MAX, Secret, file_secret
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES
from zcompute.db.tls import TlsFiles, context_of
from zcompute.db.url import MariaDbTarget, configured_url, parse_url

DRIVERS = ("native", "portable")
_users = count(1)


@dataclass
class Place:
    """A server that speaks TLS, and files for its clients."""

    server: PrivateMariaDB
    ca: str
    stranger: str  # another CA
    cert: str
    key: str
    database: str = ""

    def run(self, *statements: str) -> None:
        """As the server's root, who has the same password."""
        target = parse_url(self.server.url("mysql"))
        assert isinstance(target, MariaDbTarget)
        connection = Connection(replace(target, user="root"))
        for statement in statements:
            connection.query(statement.encode())
        connection.cut()

    def user(self, password: str, require: str = "") -> str:
        """A new user of the database."""
        name = f"svc{next(_users)}"
        self.run(
            f"CREATE USER '{name}'@'%' IDENTIFIED BY '{password}' {require}",
            f"GRANT ALL PRIVILEGES ON *.* TO '{name}'@'%'",
        )
        return name

    def end_connections(self, user: str) -> None:
        """The server ends every connection of a user."""
        self.run(f"KILL USER '{user}'@'%'")

    def config(self, user: str, password: str = "", **keys: object) -> DatabaseConfig:
        url = f"mysql://{user}:{password}@127.0.0.1:{self.server.port}/{self.database}"
        return DatabaseConfig(url=url, **keys)  # type: ignore[arg-type]  # keys of whatever kind

    def open(self, config: DatabaseConfig, driver: str) -> Store:
        return open_store(configured_url(config), driver)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    if find_programs() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mariadbd is missing: install mariadb-server-core")
        pytest.skip("mariadbd is missing: install mariadb-server-core")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing: it makes the certificates")
    directory = Path(tempfile.mkdtemp(prefix="zcompute-tls-"))
    ca, stranger = authority(directory, "ca"), authority(directory, "stranger")
    server_cert, server_key = certificate(directory, ca, "server", serial=1, san="IP:127.0.0.1")
    cert, key = certificate(directory, ca, "client", serial=2)
    server = PrivateMariaDB(
        directory / "data",
        port=free_ports(["server"], {})["server"],
        durable=False,
        buffer_pool_mb=16,
        options=(f"--ssl-ca={ca}", f"--ssl-cert={server_cert}", f"--ssl-key={server_key}"),
    )
    server.start()
    try:
        made = Place(server, str(ca), str(stranger), str(cert), str(key), "access")
        migrate.upgrade(server.create_database(made.database), "cell", "c1")
        yield made
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=DRIVERS)
def opened(place: Place, request: pytest.FixtureRequest) -> Iterator[Callable[[DatabaseConfig], Store]]:
    """Opens stores with one of the drivers, and closes them."""
    stores: list[Store] = []

    def make(config: DatabaseConfig) -> Store:
        stores.append(place.open(config, request.param))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


# -- TLS --------------------------------------------------------------------------------------------------------------


def test_reads_batches_and_beats_go_over_tls_with_a_certificate_of_our_own(
    place: Place, opened: Callable[[DatabaseConfig], Store]
) -> None:
    user = place.user("p", "REQUIRE X509")
    store = opened(place.config(user, "p", tls_ca=place.ca, tls_cert=place.cert, tls_key=place.key))
    writer = LaneWriter.register(store, conductor(f"{user}-con"))
    stored = instance()
    writer.commit(insert(INSTANCES, stored))
    assert store.fetch(INSTANCES, [(stored.uuid,)]) == {(stored.uuid,): stored}
    beating = BeatThread(store.open_beater(f"{user}-con-1"), 20)
    beating.join()
    assert beating.results == [True] * 20
    writer.connection.close()
    without = opened(place.config(user, "p", tls_ca=place.ca))
    with pytest.raises(ConnectionLost, match="Access denied"):
        without.ping()


def test_a_large_answer_comes_whole_over_tls_in_a_native_thread(place: Place) -> None:
    """Longer than a TLS record, and than what is received at once."""
    user = place.user("p", "REQUIRE SSL")
    config = place.config(user, "p", tls_ca=place.ca)
    target = parse_url(configured_url(config))
    assert isinstance(target, MariaDbTarget)

    class Reading:
        def beat(self) -> bool:
            from zcompute.db.native.beater import _original_socket

            connection = Connection(target, dial=lambda: _original_socket(target))
            answer = connection.rows(b"SELECT REPEAT('x', 300000), '" + b"y" * 100_000 + b"'")
            connection.cut()
            return answer == [("x" * 300_000, "y" * 100_000)]

        def close(self) -> None:
            """Nothing is kept."""

    reading = BeatThread(Reading(), 2)
    reading.join()
    assert reading.results == [True, True]


def test_a_server_that_another_signed_or_of_another_name_is_refused(
    place: Place, opened: Callable[[DatabaseConfig], Store]
) -> None:
    user = place.user("p", "REQUIRE SSL")
    with pytest.raises(ConnectionLost, match="certificate verify failed"):
        opened(place.config(user, "p", tls_ca=place.stranger)).ping()
    opened(place.config(user, "p", tls_ca=place.stranger, tls_verify="none")).ping()
    by_name = place.config(user, "p", tls_ca=place.ca)
    elsewhere = DatabaseConfig(url=by_name.url.replace("127.0.0.1", "localhost"), tls_ca=place.ca)
    with pytest.raises(ConnectionLost, match=r"certificate verify failed|doesn't match"):
        opened(elsewhere).ping()
    opened(DatabaseConfig(url=elsewhere.url, tls_ca=place.ca, tls_verify="ca")).ping()


def test_tls_that_is_demanded_and_not_offered_is_an_error(mariadb: PrivateMariaDB) -> None:
    store = open_store(f"{mariadb.url('mysql')}&tls_verify=none")
    with pytest.raises(ConnectionLost, match="SSL is required"):
        store.ping()
    store.close()


def test_files_that_are_missing_are_named_and_may_come_later(
    place: Place, tmp_path: Path, opened: Callable[[DatabaseConfig], Store]
) -> None:
    user = place.user("p", "REQUIRE SSL")
    store = opened(place.config(user, "p", tls_ca=str(tmp_path / "ca.pem")))
    with pytest.raises(ConnectionLost, match=r"ca\.pem"):
        store.ping()
    shutil.copy(place.ca, tmp_path / "ca.pem")
    store.ping()


def test_connections_share_one_context_until_its_files_change(place: Place, tmp_path: Path) -> None:
    mine = tmp_path / "ca.pem"
    shutil.copy(place.ca, mine)
    first = context_of(TlsFiles(ca=str(mine)))
    assert context_of(TlsFiles(ca=str(mine))) is first
    shutil.copy(place.stranger, mine)
    os.utime(mine, ns=(1, 1))
    assert context_of(TlsFiles(ca=str(mine))) is not first


# -- passwords --------------------------------------------------------------------------------------------------------


def test_a_password_that_changes_costs_no_restart(
    place: Place, tmp_path: Path, opened: Callable[[DatabaseConfig], Store]
) -> None:
    """The file first, then the server; between them and after, everything goes on."""
    user = place.user("old")
    secrets = tmp_path / "password"
    secrets.write_text("old\n")
    store = opened(place.config(user, password_file=str(secrets)))
    writer = LaneWriter.register(store, conductor(f"{user}-con"))
    writer.commit()
    beater = store.open_beater(f"{user}-con-1")
    assert beats(beater, 1) == [True]

    secrets.write_text("new\nold\n")
    place.end_connections(user)
    store.ping()  # the server has not heard of the new one
    fresh = opened(place.config(user, password_file=str(secrets)))
    fresh.ping()  # one who starts now tries the new one first

    place.run(f"ALTER USER '{user}'@'%' IDENTIFIED BY 'new'")
    place.end_connections(user)
    for each in (store, fresh):
        each.ping()
    writer.connection.reconnect(5_000)
    writer.commit()
    assert beats(beater, 3)[-1]
    writer.connection.close()
    beater.close()


def beats(beater: object, number: int) -> list[bool]:
    beating = BeatThread(beater, number)  # type: ignore[arg-type]  # any beater
    beating.join()
    return beating.results


def test_the_server_may_change_first(place: Place, tmp_path: Path, opened: Callable[[DatabaseConfig], Store]) -> None:
    user = place.user("old")
    secrets = tmp_path / "password"
    secrets.write_text("old\n")
    store = opened(place.config(user, password_file=str(secrets)))
    store.ping()
    place.run(f"ALTER USER '{user}'@'%' IDENTIFIED BY 'new'")
    place.end_connections(user)
    with pytest.raises(ConnectionLost, match="Access denied"):
        store.ping()
    secrets.unlink()
    with pytest.raises(ConnectionLost, match="Access denied"):
        store.ping()
    secrets.write_text("new\n")
    store.ping()


def test_a_password_in_the_url_is_read_again_from_the_configuration(place: Place) -> None:
    user = place.user("old")
    urls = [place.config(user, "old").url]
    store = open_store(urls[0], "native", lambda: urls[-1])
    store.ping()
    place.run(f"ALTER USER '{user}'@'%' IDENTIFIED BY 'new'")
    place.end_connections(user)
    urls.append("nonsense")
    with pytest.raises(ConnectionLost, match="Access denied"):
        store.ping()
    urls.append(place.config(user, "new").url)
    store.ping()
    store.close()


def test_candidates_are_tried_once_each_the_one_that_worked_first(tmp_path: Path) -> None:
    secret = Secret("a", lambda: ["b", "a", "b", "c"])
    assert list(secret.candidates()) == ["a", "b", "c"]
    assert secret.worked("b")
    assert list(secret.candidates()) == ["b", "a", "c"]
    many = tmp_path / "many"
    many.write_text("\n".join(f" p{number} " for number in range(20)))
    assert list(file_secret(str(many)).candidates()) == [f"p{number}" for number in range(PASSWORDS_MAX)]
    assert list(file_secret(str(tmp_path / "none")).candidates()) == [""]
