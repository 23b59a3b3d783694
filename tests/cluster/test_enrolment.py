"""A cell and a host join a running region by tokens alone; tokens that let nobody in; kill -9 between the steps."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.cluster.region import command, started, wait_until
from zcompute.cli.key_files import new_pair
from zcompute.cli.tokens import PREFIX, Token, parse_token
from zcompute.cli.toml_text import dumps
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.cli.up.statedir import free_ports
from zcompute.keys import read_keyring_file, read_keys

NEW = "c9"
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    shape = Shape(cells=("c1",), computes=1, hosts_per_compute=1)
    with started(tmp_path_factory.mktemp("r") / "s", SQLITE, shape) as made:
        yield made


def ask(region: Region, *words: str, code: int = 0) -> Any:
    """An operator's command with ``--format json``."""
    done = command(*words, "--state-dir", str(region.paths.state_dir), "--format", "json")
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


class Service:
    """One process of a cell that the region does not know: its files, and its life."""

    def __init__(self, region: Region, directory: Path, kind: str, number: int) -> None:
        self.region, self.kind = region, kind
        self.id = f"{NEW}-{kind}-{number}"
        self.directory = directory / self.id
        self.directory.mkdir(parents=True)
        self.config = self.directory / "config.toml"
        self.key_file = self.directory / "keys" / "key.toml"
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, bus: dict[str, Any], **sections: Any) -> None:
        document = {
            "service": {"id": self.id, "cell": NEW, "state_dir": str(self.directory / "state")},
            "bus": {"key_file": str(self.key_file), **bus},
            **sections,
        }
        self.config.write_text(dumps(document))

    def enroll(self, token: str, code: int = 0) -> Any:
        """`zcompute cell|host enroll`, the token on standard input."""
        group = "cell" if self.kind == "conductor" else "host"
        words = [group, "enroll", "--token-file", "-", "--config", str(self.config), "--format", "json"]
        done = subprocess.run(
            [sys.executable, "-m", "zcompute.cli.main", *words],
            input=token + "\n", capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        for said in (done.stdout, done.stderr):
            assert token not in said
            assert parse_token(token).secret_key not in said
        return json.loads(done.stdout) if code == 0 else done.stderr

    def start(self) -> None:
        words = [self.kind, "--config", str(self.config)]
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen([sys.executable, "-m", "zcompute.cli.main", *words], stdout=log, stderr=log)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@pytest.fixture
def services(region: Region, tmp_path: Path) -> Iterator[list[Service]]:
    made: list[Service] = []
    yield made
    for service in made:
        service.stop()


def conductor(region: Region, services: list[Service], tmp_path: Path, number: int, root: Any = ()) -> Service:
    service = Service(region, tmp_path, "conductor", number)
    services.append(service)
    port = free_ports(["new"], {})["new"]
    bus = {"listen": f"tcp://127.0.0.1:{port}", "keyring": str(tmp_path / "keys" / "keyring.toml"), "root": list(root)}
    database = {"url": f"sqlite:///{tmp_path / 'c9.db'}"}
    service.write(bus, database=database, conductor={"allow_beside_compute": True})
    return service


def root_places(region: Region) -> list[dict[str, str]]:
    return [
        {
            "id": name,
            "address": f"tcp://127.0.0.1:{region.file.bus_ports[name]}",
            "public_key": read_keys(str(region.paths.key(name))).public_key,
        }
        for name in sorted(region.plans)
        if name.startswith("root-conductor")
    ]


def test_a_cell_and_its_host_join_by_tokens_and_nobody_else_does(
    region: Region, services: list[Service], tmp_path: Path
) -> None:
    made = ask(region, "cell", "create", NEW, "--uses", "2")
    token = made["token"]
    assert token.startswith(PREFIX)
    first = conductor(region, services, tmp_path, 1, root_places(region))
    second = conductor(region, services, tmp_path, 2, root_places(region))
    third = conductor(region, services, tmp_path, 3, root_places(region))

    # Wrong tokens: unknown to the root, for somebody else.
    unknown = _with(parse_token(token), **_fresh_pair())
    assert "no conductor has taken the token" in first.enroll(unknown.text, code=1)
    assert "not a conductor" in first.enroll(_with(parse_token(token), role="compute").text, code=2)

    enrolled = first.enroll(token)
    assert [row["id"] for row in enrolled["root"]] == ["root-conductor-1", "root-conductor-2"]
    assert first.enroll(token)["public_key"] == enrolled["public_key"], "a repeat is the same"
    names = {row.name for row in read_keyring_file(str(tmp_path / "keys" / "keyring.toml")).keys}
    assert names == {first.id, "api-1", "operator"}
    second.enroll(token)
    assert "used 2 times" in third.enroll(token, code=1)

    done = command("db", "init", "--config", str(first.config))
    assert done.returncode == 0, done.stderr
    first.start()
    second.start()
    wait_until(lambda: len(ask(region, "cell", "show", NEW)["conductors"]) == 2, "both registered", timeout_s=60)
    wait_until(lambda: all(row["linked"] for row in ask(region, "cell", "show", NEW)["conductors"]), "both linked")

    # A host, by the cell's own token.
    agent = Service(region, tmp_path, "compute", 1)
    services.append(agent)
    places = [
        {"id": row["id"], "address": row["address"], "public_key": read_keys(str(one.key_file)).public_key}
        for row, one in zip(ask(region, "cell", "show", NEW)["conductors"], (first, second), strict=True)
    ]
    agent.write(
        {"conductors": places},
        compute={"fake_dir": str(tmp_path / "hosts"), "hosts": [{"name": "c9-host-1"}]},
    )
    assert "not known" in ask(region, "cell", "token", "c8", code=1)
    host_token = ask(region, "host", "token", "c9-host-1", "--cell", NEW)["token"]
    assert "not for hosts" in agent.enroll(_with(parse_token(host_token), hosts=["c9-host-2"]).text, code=2)
    agent.enroll(host_token)
    agent.start()
    wait_until(lambda: [r["state"] for r in ask(region, "host", "list", "--cell", NEW)] == ["up"], "the host is up")
    assert ask(region, "host", "show", "c9-host-1")["cell"] == NEW
    wait_until(lambda: ask(region, "cell", "verify", NEW)["holds"], "all holds", timeout_s=60)

    # Revoked: its links end, and it stays out.
    token_id = ask(region, "host", "tokens", "--cell", NEW)[0]["id"]
    assert ask(region, "host", "revoke-token", token_id, "--cell", NEW)["shut_out"] == [agent.id]
    wait_until(
        lambda: [row["state"] for row in ask(region, "host", "list", "--cell", NEW)] == ["down"], "the host is shut out"
    )
    agent.enroll(host_token, code=1)

    # The cell goes, and with it the keys of its conductors.
    ask(region, "cell", "drain", NEW)
    for service in services:
        service.stop()
    wait_until(
        lambda: not any(row["linked"] for row in ask(region, "cell", "show", NEW)["conductors"]), "nobody is linked"
    )
    ask(region, "cell", "delete", NEW)
    assert all(row["revoked"] for row in ask(region, "cell", "tokens") if row["cell"] == NEW)
    first.start()
    ask(region, "cell", "create", NEW)
    assert ask(region, "cell", "show", NEW)["conductors"] == [], (
        "a key of the deleted cell does not speak for the new one"
    )
    logs = "".join(path.read_text() for path in region.paths.logs.iterdir())
    for text in (token, host_token):
        assert text not in logs, "no token in any log"
        assert parse_token(text).secret_key not in logs


def _with(token: Token, **changes: Any) -> Token:
    return msgspec.structs.replace(token, **changes)


def _fresh_pair() -> dict[str, str]:
    public_key, secret_key = new_pair()
    return {"public_key": public_key, "secret_key": secret_key}


def test_an_expired_token_says_so(region: Region, services: list[Service], tmp_path: Path) -> None:
    ask(region, "cell", "create", NEW)
    token = ask(region, "cell", "token", NEW, "--lifetime-hours", "0.0003")["token"]
    late = conductor(region, services, tmp_path, 7)
    time.sleep(1.5)  # the token's whole life, by the root's clock
    assert "expired" in late.enroll(token, code=1)


def armed(region: Region, point: str, gate: Path) -> list[str]:
    """The root's conductors, started again so that the next to pass the point dies."""
    victims = sorted(one for one in region.processes if one.startswith("root-conductor"))
    os.environ["ZCOMPUTE_FAILPOINTS"] = f"{point}=kill"
    os.environ["ZCOMPUTE_FAILPOINTS_GATE"] = str(gate)
    try:
        for victim in victims:
            region.kill(victim)
            region.restart(victim)
    finally:
        del os.environ["ZCOMPUTE_FAILPOINTS"], os.environ["ZCOMPUTE_FAILPOINTS_GATE"]
    wait_until(lambda: command("cell", "list", "--state-dir", str(region.paths.state_dir)).returncode == 0, "root up")
    for victim in victims:
        region.processes[victim].end_expected = True
    return victims


def revive(region: Region, victims: list[str]) -> None:
    """Start again who has died."""
    for victim in victims:
        if not region.processes[victim].alive:
            region.restart(victim)


@pytest.mark.parametrize("point", ["cell.delete.counted", "cell.delete.committed"])
def test_a_delete_that_is_cut_short_is_carried_on_by_its_repeat(region: Region, tmp_path: Path, point: str) -> None:
    name, gate = f"c-{point.replace('.', '-')}", tmp_path / "gate"
    victims = armed(region, point, gate)
    token_id = ask(region, "cell", "create", name)["token_id"]
    ask(region, "cell", "drain", name)
    gate.touch()

    said: list[str] = []

    def deleted() -> bool:
        done = command("cell", "delete", name, "--state-dir", str(region.paths.state_dir))
        said.append(done.stdout + done.stderr)
        return done.returncode == 0

    # Partitions may still move between the conductors that were started again: such a delete is refused in a sentence.
    wait_until(lambda: (deleted(), not gate.exists())[1], "the point was passed", found=lambda: said)
    wait_until(deleted, "the repeat is done")
    assert name not in {row["name"] for row in ask(region, "cell", "list")}
    assert [row["revoked"] for row in ask(region, "cell", "tokens") if row["id"] == token_id] == [True]
    revive(region, victims)


@pytest.mark.parametrize("point", ["cell.create.committed", "enrolment.create.committed", "enrolment.enrol.committed"])
def test_a_root_conductor_that_dies_between_the_steps_leaves_nothing_half_done(
    region: Region, services: list[Service], tmp_path: Path, point: str
) -> None:
    gate = tmp_path / "gate"
    name = f"c-{point.replace('.', '-')}"
    victims = armed(region, point, gate)
    if point == "enrolment.enrol.committed":
        token = ask(region, "cell", "create", name)["token"]
        newcomer = conductor(region, services, tmp_path, 5)
        newcomer.config.write_text(newcomer.config.read_text().replace(f'"{NEW}"', f'"{name}"'))
        gate.touch()
        said = newcomer_enrolls(newcomer, token)
        assert not gate.exists(), "the point was passed"
        newcomer.enroll(token)
        rows = [row for row in ask(region, "cell", "tokens") if row["cell"] == name]
        assert [row["uses"] for row in rows] == ["1/1"], said
    else:
        gate.touch()
        command("cell", "create", name, "--state-dir", str(region.paths.state_dir))
        wait_until(lambda: not gate.exists(), "the point was passed")
        wait_until(
            lambda: name in {row["name"] for row in ask(region, "cell", "list")}, "the cell is there: it had committed"
        )
        assert ask(region, "cell", "create", name)["changed"] is False
        assert ask(region, "cell", "token", name)["token"].startswith(PREFIX), "a token can be had all the same"
    revive(region, victims)


def newcomer_enrolls(newcomer: Service, token: str) -> str:
    """The first try, whose answer may be lost with the conductor."""
    words = ["cell", "enroll", "--token-file", "-", "--config", str(newcomer.config)]
    done = subprocess.run(
        [sys.executable, "-m", "zcompute.cli.main", *words],
        input=token + "\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr
