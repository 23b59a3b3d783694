"""SIGUSR2's state dump: whole, private, bounded in number, and never the end of the service."""

import logging
from collections.abc import Iterator
from pathlib import Path

import gevent
import msgspec
import pytest
from gevent.event import Event as Flag

from tests.unit.bus.conftest import Bus, connect, serve_echo
from zcompute.cli import state_dump
from zcompute.cli.state_dump import DUMPS_KEPT_MAX, StateDump, StateDumper, dump_dir, stacks, whole_stat, write_dump
from zcompute.config import Config, LogConfig, ServiceConfig


@pytest.fixture
def bus() -> Iterator[Bus]:
    made = Bus()
    yield made
    made.close()


def config(state_dir: Path, **log: str) -> Config:
    service = ServiceConfig(id="conductor-1", cell="c1", state_dir=str(state_dir))
    return Config(service=service, log=LogConfig(**log))


def test_a_dump_holds_links_and_stacks_and_only_its_owner_may_read_it(bus: Bus, tmp_path: Path) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    connect(server, bus.endpoint("compute", "compute-1"))
    wait = Flag()

    def wait_for_it() -> None:
        wait.wait()

    waiting = [gevent.spawn(wait_for_it) for _ in range(3)]
    gevent.sleep(0)
    StateDumper(config(tmp_path))()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("conductor-1-")
    assert path.stat().st_mode & 0o777 == 0o600
    read = msgspec.json.decode(path.read_bytes(), type=StateDump)
    seen = {endpoint.service_id: endpoint for endpoint in read.endpoints}
    assert [link.service_id for link in seen["conductor-1"].links] == ["compute-1"]
    assert any(stack.count >= 3 and any("wait_for_it" in frame for frame in stack.frames) for stack in read.stacks)
    assert any(stack.kind == "thread" for stack in read.stacks)
    assert server.identity.secret_key not in path.read_text()
    wait.set()
    gevent.joinall(waiting, timeout=2)


def test_pages_make_a_whole(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_dump, "LINKS_AT_ONCE", 2)
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    for number in range(5):
        assert bus.endpoint("compute", f"c-{number}").dial(address, server.identity.public_key).wait_up(5000)
    assert [link.service_id for link in whole_stat(server).links] == [f"c-{number}" for number in range(5)]


def test_old_dumps_of_this_service_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    document = StateDump(service_id="a", release="1", pid=1, written_at="", endpoints=[], stacks=[])
    others = [tmp_path / "a-b-2026-01-01T000000.000Z.state.json", tmp_path / "a.log", tmp_path / "a-old.state.json"]
    for other in others:
        other.write_text("kept")
    for number in range(DUMPS_KEPT_MAX + 3):
        write_dump(tmp_path / f"a-2026-01-01T0000{number:02d}.000Z.state.json", document, "a")
    names = sorted(path.name for path in tmp_path.glob("a-2026*"))
    assert len(names) == DUMPS_KEPT_MAX
    assert names[0] == "a-2026-01-01T000003.000Z.state.json"
    assert all(other.exists() for other in others)


def test_a_dump_that_cannot_be_written_is_logged_and_the_next_one_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "missing"
    dumper = StateDumper(config(directory))
    with caplog.at_level(logging.WARNING):
        dumper()
    assert "could not be written" in caplog.text
    directory.mkdir()
    dumper()
    assert len(list(directory.iterdir())) == 1


def test_dumps_go_where_the_configuration_says_else_beside_the_log(tmp_path: Path) -> None:
    assert dump_dir(config(tmp_path, dump_dir="/d", file="/l/x.log")) == Path("/d")
    assert dump_dir(config(tmp_path, file="/l/x.log")) == Path("/l")
    assert dump_dir(config(tmp_path)) == tmp_path


def test_stacks_are_counted_together_and_bounded() -> None:
    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        else:
            gevent.sleep(60)

    sleepers = [gevent.spawn(deep, 100) for _ in range(4)]
    gevent.sleep(0)
    found = next(stack for stack in stacks() if any("deep" in frame for frame in stack.frames))
    assert found.count == 4
    assert len(found.frames) == state_dump.STACK_FRAMES_MAX
    gevent.killall(sleepers)


def test_a_signal_during_a_dump_is_ignored_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go = Flag()
    written: list[Path] = []

    class SlowPool:
        def apply(self, write: object, arguments: tuple[Path, StateDump, str]) -> None:
            go.wait()
            written.append(arguments[0])

    class Hub:
        threadpool = SlowPool()

    dumper = StateDumper(config(tmp_path))
    monkeypatch.setattr(state_dump.gevent, "get_hub", Hub)
    first = gevent.spawn(dumper)
    gevent.sleep(0.01)
    with caplog.at_level(logging.WARNING):
        dumper()
    assert "the signal is ignored" in caplog.text
    go.set()
    first.get(timeout=2)
    assert len(written) == 1
