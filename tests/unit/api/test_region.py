"""What an API process asks its cells, and when it does not."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gevent
import pytest

from zcompute.api.region import DOUBT_MS, PROBE, BusRegion
from zcompute.bus import Identity
from zcompute.bus.errors import Busy, DeadlineExceeded, InvalidRequest, Unavailable
from zcompute.cells.directory import CellDirectory
from zcompute.cells.gate import DOUBT_QUESTIONS, DOUBT_S, LATE_S_MIN, OPEN_MAX
from zcompute.config import Config, ServiceConfig
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import InstanceNotFound
from zcompute.objects.messages.instances import InstanceGetRequest
from zcompute.objects.methods import INSTANCE_GET, INSTANCE_LIST, SERVERS_PENDING

GET = InstanceGetRequest(uuid="u")


class Cell:
    """A router that answers as told."""

    def __init__(self, name: str) -> None:
        self.cell = name
        self.answer: Any = 7
        self.asked: list[str] = []

    def call_any(self, method: Any, request: Any, *, timeout_ms: int) -> Any:
        self.asked.append(method.name)
        assert timeout_ms > 0
        if isinstance(self.answer, Exception):
            gevent.sleep(LATE_S_MIN + 0.05 if isinstance(self.answer, DeadlineExceeded) else 0)
            raise self.answer
        return self.answer


class Directory:
    """Cells by name, all of them linked."""

    def __init__(self) -> None:
        self.all = {name: Cell(name) for name in (ROOT_CELL, "c1", "c2")}

    def router(self, name: str) -> Cell:
        if name not in self.all:
            raise Unavailable(f"cell {name} is not known")
        return self.all[name]

    def cells(self) -> list[str]:
        return [name for name in self.all if name != ROOT_CELL]

    def linked(self, _name: str) -> bool:
        return True


@pytest.fixture
def directory() -> Directory:
    return Directory()


@pytest.fixture
def region(directory: Directory, tmp_path: Path) -> Iterator[BusRegion]:
    config = Config(service=ServiceConfig(id="api-1", cell="root", state_dir=str(tmp_path)))
    made = BusRegion(config, Identity("api", "root", "api-1"))
    made._directory = cast(CellDirectory, directory)
    yield made
    made.stop()


def ask(region: BusRegion, cell: str = "c1") -> Any:
    return region.ask(cell, INSTANCE_GET, GET, 1_000)


def until(condition: Any) -> None:
    ends_at_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < ends_at_s
        gevent.sleep(0.01)


def silence(region: BusRegion, directory: Directory, cell: str = "c1") -> None:
    directory.all[cell].answer = DeadlineExceeded("late")
    with pytest.raises(DeadlineExceeded):
        ask(region, cell)
    assert region._gates[cell].silent


def test_a_silent_cell_is_not_asked_and_a_probe_opens_it_again(region: BusRegion, directory: Directory) -> None:
    silence(region, directory)
    asked = len(directory.all["c1"].asked)
    for _ in range(5):
        with pytest.raises(Unavailable, match="c1 does not answer"):
            ask(region)
    assert len(directory.all["c1"].asked) == asked
    assert ask(region, "c2") == 7
    directory.all["c1"].answer = 7
    until(lambda: not region._gates["c1"].silent)
    assert directory.all["c1"].asked[-1] == INSTANCE_LIST.name
    assert ask(region) == 7


def test_many_heavy_questions_are_waited_for_as_long_as_a_probe_comes_back(
    region: BusRegion, directory: Directory
) -> None:
    cell = directory.all["c1"]
    goes_on = gevent.event.Event()

    def heavy(method: Any, request: Any, *, timeout_ms: int) -> Any:
        cell.asked.append(method.name)
        return 1 if request is PROBE else goes_on.wait()

    cell.call_any = heavy  # type: ignore[method-assign]
    asking = [gevent.spawn(ask, region) for _ in range(DOUBT_QUESTIONS)]
    gevent.sleep(DOUBT_S + 0.05)
    asking.append(gevent.spawn(ask, region))
    until(lambda: INSTANCE_LIST.name in cell.asked)
    gevent.sleep(0.01)
    assert not region._gates["c1"].silent
    asking.append(gevent.spawn(ask, region))
    goes_on.set()
    gevent.joinall(asking, timeout=5, raise_error=True)
    assert cell.asked.count(INSTANCE_LIST.name) == 1


def test_a_cell_that_has_hung_is_known_before_the_first_question_is_late(
    region: BusRegion, directory: Directory
) -> None:
    cell = directory.all["c1"]

    def hang(method: Any, request: Any, *, timeout_ms: int) -> Any:
        gevent.sleep(timeout_ms / 1000)
        raise DeadlineExceeded("late")

    cell.call_any = hang  # type: ignore[method-assign]
    asking = [gevent.spawn(region.ask, "c1", INSTANCE_GET, GET, 10_000) for _ in range(DOUBT_QUESTIONS)]
    gevent.sleep(DOUBT_S + 0.05)
    asking.append(gevent.spawn(region.ask, "c1", INSTANCE_GET, GET, 10_000))
    gevent.sleep(DOUBT_MS / 1000 + 0.1)
    assert region._gates["c1"].silent
    with pytest.raises(Unavailable):
        ask(region)
    gevent.killall(asking)
    assert region._gates["c1"].open == 0


def test_the_root_is_probed_by_its_own_method(region: BusRegion, directory: Directory) -> None:
    silence(region, directory, ROOT_CELL)
    directory.all[ROOT_CELL].answer = 7
    until(lambda: not region._gates[ROOT_CELL].silent)
    assert directory.all[ROOT_CELL].asked[-1] == SERVERS_PENDING.name
    assert PROBE.limit == 1


def test_an_error_of_the_cells_own_is_an_answer(region: BusRegion, directory: Directory) -> None:
    silence(region, directory)
    directory.all["c1"].answer = InstanceNotFound("no", uuid="u")
    until(lambda: not region._gates["c1"].silent)
    with pytest.raises(InstanceNotFound):
        ask(region)
    directory.all["c1"].answer = InvalidRequest("what?")
    with pytest.raises(InvalidRequest):
        ask(region)
    assert region._gates["c1"].open == 0


def test_a_cell_that_is_deleted_is_probed_no_more_and_begins_anew_when_it_comes_back(
    region: BusRegion, directory: Directory
) -> None:
    silence(region, directory)
    cell = directory.all.pop("c1")
    until(lambda: "c1" not in region._gates)
    until(lambda: region._probing["c1"].dead)
    with pytest.raises(Unavailable, match="not known"):
        ask(region)
    assert "c1" not in region._gates
    assert {measure.labels.get("cell") for measure in region.measures()} == {ROOT_CELL, "c2"}
    cell.answer = 8
    directory.all["c1"] = cell
    assert ask(region) == 8


def test_too_many_open_questions_are_refused_and_counted(region: BusRegion, directory: Directory) -> None:
    assert ask(region) == 7
    region._gates["c1"].open = OPEN_MAX
    with pytest.raises(Busy) as refused:
        ask(region)
    assert refused.value.retry_after_ms == 1_000
    region._gates["c1"].open = 0
    assert ask(region) == 7


def test_a_question_whose_asker_is_killed_is_counted_off(region: BusRegion, directory: Directory) -> None:
    directory.all["c1"].answer = DeadlineExceeded("late")
    asking = gevent.spawn(ask, region)
    gevent.sleep(0)
    assert region._gates["c1"].open == 1
    asking.kill()
    assert region._gates["c1"].open == 0
    assert not region._gates["c1"].silent
