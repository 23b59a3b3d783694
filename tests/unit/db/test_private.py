"""The embedded MariaDB: quick, private, and gone with its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zcompute.db.errors import PrivateServerFailed
from zcompute.db.native.connection import Connection
from zcompute.db.private import PrivateMariaDB, find_programs
from zcompute.db.url import MariaDbTarget, parse_url

pytestmark = pytest.mark.skipif(
    find_programs() is None and os.environ.get("CI") != "true", reason="mariadbd is missing"
)


def connect(url: str) -> Connection:
    target = parse_url(url)
    assert isinstance(target, MariaDbTarget)
    return Connection(target)


def until(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    ends_at = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_second_start_finds_its_data_again_even_after_a_crash(tmp_path: Path) -> None:
    server = PrivateMariaDB(tmp_path / "data")
    server.start()
    try:
        connection = connect(server.create_database("x"))
        connection.query(b"CREATE TABLE t (a INT)")
        connection.query(b"INSERT INTO t VALUES (7)")
        server.kill()
        again = PrivateMariaDB(tmp_path / "data")
        again.start()
        try:
            assert connect(again.create_database("x")).rows(b"SELECT a FROM t") == [(7,)]
            pid = again.pid
        finally:
            again.stop()
        assert pid is not None
        assert not is_running(pid)
        assert again.pid is None
    finally:
        server.stop()


def test_a_template_is_copied_and_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    template = PrivateMariaDB(tmp_path / "template", durable=False)
    template.start()
    template.stop()
    server = PrivateMariaDB(tmp_path / ("long" * 30) / "data", durable=False, template=tmp_path / "template")
    server.start()
    try:
        assert len(server.socket) <= 100
        assert connect(server.create_database("x")).rows(b"SELECT 1") == [(1,)]
        assert server.password == template.password
    finally:
        server.stop()
    assert not Path(server.socket).exists()


def test_strangers_do_not_get_in(tmp_path: Path) -> None:
    server = PrivateMariaDB(tmp_path / "data", durable=False)
    server.start()
    try:
        for user, password in (("root", ""), ("zcompute", ""), ("", "")):
            probe = subprocess.run(
                [sys.executable, "-c", _PROBE, server.socket, user, password],
                capture_output=True,
                timeout=20,
                check=False,
                text=True,
            )
            assert "Access denied" in probe.stderr
        assert (tmp_path / "data" / "zcompute.json").stat().st_mode & 0o077 == 0
    finally:
        server.stop()


_PROBE = "import pymysql, sys; pymysql.connect(unix_socket=sys.argv[1], user=sys.argv[2], password=sys.argv[3])"


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    words = (
        "import sys, time; from zcompute.db.private import PrivateMariaDB; "
        "server = PrivateMariaDB(sys.argv[1], durable=False); server.start(); print(server.pid, flush=True); "
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", words, str(tmp_path / "data")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(timeout=10)
    until(lambda: not is_running(pid))


def test_a_foreign_data_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data" / "mysql").mkdir(parents=True)
    with pytest.raises(PrivateServerFailed, match="found another one"):
        PrivateMariaDB(tmp_path / "data").start()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(PrivateServerFailed, match="empty or missing"):
        PrivateMariaDB(tmp_path / "other").start()
    assert (tmp_path / "other" / "file").exists()


def test_an_option_it_does_not_know_ends_with_its_log(tmp_path: Path) -> None:
    server = PrivateMariaDB(tmp_path / "data", durable=False, options=("--no-such-option",))
    with pytest.raises(PrivateServerFailed, match="no-such-option"):
        server.start()
    assert server.pid is None


@pytest.mark.parametrize("name", ["a`b", "", "ä", "a b"])
def test_odd_database_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PrivateServerFailed, match="letters"):
        PrivateMariaDB(tmp_path / "data").create_database(name)


def test_without_programs_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("zcompute.db.private._PLACES", ())
    assert find_programs() is None
    with pytest.raises(PrivateServerFailed, match="install mariadb-server"):
        PrivateMariaDB(tmp_path / "data").start()
