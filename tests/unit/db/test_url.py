"""Database URLs."""

import pytest

from zcompute.db.drivers import open_store
from zcompute.db.errors import InvalidUrl
from zcompute.db.tls import TlsFiles
from zcompute.db.url import MariaDbTarget, SqliteTarget, parse_url


def test_a_mariadb_url_with_everything() -> None:
    found = parse_url("mysql://u:p%40ss@127.0.0.1:3307/cell?unix_socket=/run/my.sock")
    assert found == MariaDbTarget("127.0.0.1", 3307, "u", "p@ss", "cell", "/run/my.sock")
    assert found.is_local


def test_a_server_elsewhere_is_not_local() -> None:
    found = parse_url("mysql://u:p@db.example.org/cell?tls_ca=/etc/ca.pem")
    assert isinstance(found, MariaDbTarget)
    assert (found.port, found.tls, found.is_local) == (3306, TlsFiles(ca="/etc/ca.pem"), False)


def test_a_file() -> None:
    assert parse_url("sqlite:////var/lib/x.db") == SqliteTarget("/var/lib/x.db")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://x/y",
        "sqlite:///relative.db",
        "sqlite://",
        "mysql://u:secret@h",
        "mysql://u:secret@h/a/b",
        "mysql://u:secret@h:port/a",
        "mysql://u:secret@h/a?sslca=1",
        "mysql://u:secret@h/a?tls_verify=perhaps",
        "mysql://u:secret@h/a?tls_key=/k",
        "",
    ],
)
def test_other_urls_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(InvalidUrl) as failure:
        parse_url(url)
    assert "secret" not in str(failure.value)


def test_drivers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidUrl, match="native driver"):
        open_store("sqlite:////x.db", "native")
    with pytest.raises(InvalidUrl, match="none of"):
        open_store("sqlite:////x.db", "orm")
