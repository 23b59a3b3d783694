"""The command ``zcompute up`` as a newcomer meets it: real processes, its promises, its refusals."""

import json
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import command, popen, region_processes, wait_until
from zcompute.cli import exits
from zcompute.cli.up.region import Region
from zcompute.cli.up.statedir import free_ports
from zcompute.db.private import find_programs

UP = ("--api-port", "0", "--exit")


def test_it_boots_on_mariadb_loses_conductors_loses_nothing_and_finds_its_data_again(state_dir: Path) -> None:
    require_mariadb()
    metrics_file = state_dir.parent / "r.json"
    first = command(
        "up", *UP, "--boot", "150", "--kill-conductor", "--json", str(metrics_file), "--database", "mariadb",
        "--state-dir", str(state_dir),
    )  # fmt: skip
    assert first.returncode == 0, first.stdout + first.stderr
    metrics = json.loads(metrics_file.read_text())["metrics"]
    assert (metrics["active"], metrics["error"], metrics["conductors_killed"]) == (150, 0, 3)
    assert metrics["p99_ms"] >= metrics["p50_ms"] > 0
    assert not region_processes(state_dir)
    second = command("up", *UP, "--boot", "10", "--state-dir", str(state_dir))
    assert second.returncode == 0, second.stdout + second.stderr
    assert "database mariadb" in second.stdout
    assert sum(int(number) for number in _servers_per_cell(second.stdout)) == 160


def test_it_boots_on_sqlite_and_loses_conductors_and_loses_nothing(state_dir: Path) -> None:
    done = command("up", *UP, "--boot", "60", "--kill-conductor", "--database", "sqlite", "--state-dir", str(state_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed root-conductor-" in done.stdout


def _servers_per_cell(output: str) -> list[str]:
    rows = [line.replace("│", "|").replace("┃", "|").split("|") for line in output.splitlines()]
    return [row[2].strip() for row in rows if len(row) > 3 and row[1].strip() in ("c1", "c2")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_stops_everything_within_five_seconds(state_dir: Path, number: int) -> None:
    log = state_dir.parent / "up.log"
    database = "mariadb" if find_programs() is not None else "sqlite"
    process = popen(
        "up", "--api-port", "0", "--boot", "5", "--database", database, "--state-dir", str(state_dir), log=log
    )
    try:
        wait_until(lambda: "stays up until" in log.read_text(), "up", timeout_s=60, found=log.read_text)
        assert len(region_processes(state_dir)) >= 14
        started = time.monotonic()
        process.send_signal(number)
        process.wait(timeout=10)
        wait_until(lambda: not region_processes(state_dir), "no process left", timeout_s=10)
        assert time.monotonic() - started < 5.0
    finally:
        process.kill()
    assert process.returncode == (-number if number == signal.SIGKILL else 0), log.read_text()


def test_a_port_in_use_is_one_sentence_and_its_exit_code(state_dir: Path) -> None:
    with socket.socket() as taken:
        port = free_ports(["taken"], {})["taken"]
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = command("up", "--api-port", str(port), "--state-dir", str(state_dir))
    assert done.returncode == exits.PORT_IN_USE
    assert done.stderr.strip() == (
        f"Error: port {port} of 127.0.0.1 is in use: stop what listens there, or use --api-port"
    )


def test_a_state_directory_in_use_is_one_sentence_and_its_exit_code(sqlite_region: Region) -> None:
    done = command("up", "--api-port", "0", "--state-dir", str(sqlite_region.paths.state_dir))
    assert done.returncode == exits.STATE_DIR_IN_USE
    assert "is in use by another `zcompute up` (pid" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_state_directory_of_another_version_is_one_sentence_and_its_exit_code(state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "version").write_text("999\n")
    done = command("up", "--api-port", "0", "--state-dir", str(state_dir))
    assert done.returncode == exits.STATE_DIR_VERSION
    assert "is of version 999, this release reads version 1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_directory_that_holds_something_else_is_left_alone(state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "thesis.txt").write_text("mine")
    done = command("up", "--api-port", "0", "--state-dir", str(state_dir))
    assert done.returncode == exits.USAGE
    assert [entry.name for entry in state_dir.iterdir()] == ["thesis.txt"]


def test_another_database_than_the_one_that_is_there_is_refused(sqlite_region: Region, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("version", "region.toml"):
        (copy / name).write_bytes((sqlite_region.paths.state_dir / name).read_bytes())
    done = command("up", "--api-port", "0", "--database", "mariadb", "--state-dir", str(copy))
    assert done.returncode == exits.USAGE
    assert "holds a region on sqlite, not mariadb" in done.stderr


def test_a_missing_program_is_one_sentence_and_its_exit_code(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from zcompute.cli.up import databases
    from zcompute.cli.up.command import up

    monkeypatch.setattr(databases, "find_programs", lambda: None)
    result = CliRunner().invoke(up, ["--database", "mariadb", "--api-port", "0", "--state-dir", str(state_dir)])
    assert result.exit_code == exits.PROGRAM_MISSING
    assert "mariadb-server-core" in result.output
