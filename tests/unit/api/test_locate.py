"""Showing and deleting over a region that answers from a script."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.api.servers import build_request, instance
from zcompute.api.auth import Caller
from zcompute.api.deadline import Deadline
from zcompute.api.listing import Listing
from zcompute.api.locate import Place, Places, Servers
from zcompute.api.queries import ServerList
from zcompute.api.settings import Limits
from zcompute.bus.errors import DeadlineExceeded, Unavailable
from zcompute.objects import methods as m
from zcompute.objects.build_request import InstanceMapping
from zcompute.objects.errors import InstanceBusy, InstanceNotFound

DEMO = Caller(project_id="demo", user_id="ann", is_admin=False, secret=b"s")
LIMITS = Limits(relocate_pause_ms_min=1, relocate_pause_ms_max=5)


class ScriptedRegion:
    """Answers of (cell, method name) by turns, the last one for ever; keeps who was asked."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def ask_owner(self, key: str, method: m.Method, request: Any, timeout_ms: int) -> Any:
        return self._answer(f"owner_{method.name}", timeout_ms)

    def ask(self, cell: str, method: m.Method, request: Any, timeout_ms: int) -> Any:
        return self._answer(f"{cell}_{method.name}", timeout_ms)

    def cells(self) -> list[str]:
        return ["c1", "c2"]

    def linked(self, cell: str) -> bool:
        return True

    def _answer(self, name: str, timeout_ms: int) -> Any:
        assert timeout_ms > 0
        self.asked.append(name)
        script = self.answers[name]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer() if isinstance(answer, Callable) else answer


def located(cell: str | None, generation: int = 1, *, pending: bool = False) -> m.LocateReply:
    mapping = InstanceMapping(uuid="u", project_id="demo", cell=cell, generation=generation)
    return m.LocateReply(mapping=mapping, build_request=build_request("u", cell=cell) if pending else None)


MISSING = InstanceNotFound("no", uuid="u")
HERE = m.InstanceReply(instance=instance("u", vm_state="active"))


def show(region: ScriptedRegion, servers: Servers | None = None):
    return (servers or Servers(region, LIMITS)).show("u", "demo", Deadline(2000))


def delete(region: ScriptedRegion, servers: Servers | None = None, timeout_ms: int = 2000) -> None:
    (servers or Servers(region, LIMITS)).delete("u", DEMO, "op", Deadline(timeout_ms))


def test_a_server_on_its_way_to_another_cell_is_found_there():
    region = ScriptedRegion(root_locate=[located("c1"), located("c2", 2)], c1_get=[MISSING], c2_get=[HERE])
    assert show(region).vm_state == "active"
    assert region.asked == ["root_locate", "c1_get", "root_locate", "c2_get"]


def test_a_server_that_its_cell_denies_twice_is_gone():
    region = ScriptedRegion(root_locate=[located("c1")], c1_get=[MISSING])
    with pytest.raises(InstanceNotFound):
        show(region)
    assert region.asked == ["root_locate", "c1_get"] * 2


def test_a_pending_server_is_shown_when_its_cell_does_not_answer():
    region = ScriptedRegion(root_locate=[located("c1", pending=True)], c1_get=[Unavailable("away")])
    assert show(region).vm_state == "building"


def test_a_deletion_accepted_by_the_root_shows_before_the_cell_knows_of_it():
    asked = located("c1", pending=True)
    asked.build_request.delete_requested = True
    for script in ([HERE], [MISSING], [Unavailable("away")]):
        assert show(ScriptedRegion(root_locate=[asked], c1_get=script)).task_state == "deleting"


def test_a_mapping_without_cell_or_build_request_is_nothing():
    with pytest.raises(InstanceNotFound):
        show(ScriptedRegion(root_locate=[located(None)]))


def test_an_unreachable_cell_is_not_a_missing_server():
    region = ScriptedRegion(root_locate=[located("c1")], c1_get=[Unavailable("away")])
    with pytest.raises(Unavailable):
        show(region)


def test_a_delete_asks_the_root_while_it_holds_the_server():
    accepted = m.ServerDeleteReply(accepted=True)
    region = ScriptedRegion(root_locate=[located("c1", pending=True)], owner_delete=[accepted])
    delete(region)
    assert region.asked == ["root_locate", "owner_delete"]


def test_a_delete_of_a_server_under_way_goes_round_until_it_settles():
    in_c1 = m.ServerDeleteReply(accepted=False, cell="c1")
    region = ScriptedRegion(
        root_locate=[located("c1", pending=True), located("c1"), located("c2", 2)],
        owner_delete=[in_c1],
        c1_delete=[InstanceBusy("refusal pending", uuid="u"), MISSING],
        c2_delete=[m.Empty()],
    )
    delete(region)
    assert region.asked[-1] == "c2_delete"


def test_a_delete_that_stays_busy_ends_with_the_deadline():
    region = ScriptedRegion(root_locate=[located("c1")], c1_delete=[InstanceBusy("busy", uuid="u")])
    with pytest.raises((InstanceBusy, DeadlineExceeded)):
        delete(region, timeout_ms=100)


def test_a_cached_place_of_another_project_is_not_even_asked():
    region = ScriptedRegion()
    servers = Servers(region, LIMITS)
    servers.places.put("u", Place("c1", 1, "other"))
    with pytest.raises(InstanceNotFound):
        delete(region, servers)
    assert not region.asked


def test_places_are_bounded_and_never_go_back_a_generation():
    places = Places(2)
    places.put("a", Place("c1", 2, "p"))
    places.put("a", Place("c9", 1, "p"))
    places.put("b", Place("c1", 1, "p"))
    assert places.get("a") == Place("c1", 2, "p")
    places.put("c", Place("c1", 1, "p"))
    assert places.get("b") is None
    assert len(places) == 2


def test_a_list_reads_the_root_before_the_cells_so_that_a_hand_over_hides_nothing():
    region = ScriptedRegion(
        root_pending=[m.PendingReply(build_requests=[])],
        c1_list=[m.InstanceListReply(instances=[instance("u")])],
        c2_list=[m.InstanceListReply(instances=[])],
    )
    wanted = ServerList(m.InstanceQuery(project_id="demo", limit=10), None)
    page = Listing(region, Servers(region, LIMITS), LIMITS).page(wanted, "demo", Deadline(2000))
    assert [found.uuid for found in page.instances] == ["u"]
    assert region.asked[0] == "root_pending"
