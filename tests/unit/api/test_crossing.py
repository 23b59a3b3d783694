"""Servers that go to another cell: a list shows each once whatever both cells have, a place that was known is left."""

from typing import Any, cast

import pytest

from tests.unit.api.servers import instance
from tests.unit.api.test_locate import DEMO, HERE, LIMITS, MISSING, ScriptedRegion, located, show
from zcompute.api.action_bodies import Asked
from zcompute.api.deadline import Deadline
from zcompute.api.listing import Listing
from zcompute.api.locate import Place, Servers
from zcompute.api.queries import ServerList
from zcompute.bus.errors import Unavailable
from zcompute.conductor.root.settings import CrossMoveSettings
from zcompute.config import ConductorConfig
from zcompute.objects import methods as m
from zcompute.objects.errors import InstanceBusy
from zcompute.objects.instance import ARRIVING, LEAVING, Instance

BEFORE, AFTER = located("c1", 1), located("c2", 2)


def row(generation: int, crossing: str) -> Instance:
    return instance("u", vm_state="active", mapping_generation=generation, crossing=crossing, host=f"h{generation}")


def listed(c1: list[Instance], c2: list[Instance], place: Any) -> list[str | None]:
    region = ScriptedRegion(
        root_pending=[m.PendingReply(build_requests=[])],
        root_locate=[place],
        c1_list=[m.InstanceListReply(instances=[*c1, instance("x", host="hx")])],
        c2_list=[m.InstanceListReply(instances=c2)],
    )
    wanted = ServerList(query=m.InstanceQuery(project_id=None, limit=9), marker=None)
    found = Listing(region, cast(Servers, None)).page(wanted, None, Deadline(5_000)).instances
    assert region.asked.count("root_locate") <= (2 if isinstance(place, Unavailable) else 1)
    return [each.host for each in found if each.uuid == "u"]


# What each cell may have when its row is read, in the order of the move.
SOURCE = [row(1, ""), row(1, LEAVING), None]
TARGET = [None, row(2, ARRIVING), row(2, "")]
BEFORE_SWITCH = [(0, 0), (1, 0), (1, 1), (0, 1)]
AFTER_SWITCH = [(0, 1), (0, 2), (1, 1), (1, 2), (2, 2), (2, 1)]


@pytest.mark.parametrize(("source", "target"), BEFORE_SWITCH)
def test_before_the_switch_a_list_has_the_sources_row_once(source: int, target: int) -> None:
    c2 = [each for each in [TARGET[target]] if each is not None]
    assert listed([cast(Instance, SOURCE[source])], c2, BEFORE) == ["h1"]


@pytest.mark.parametrize(("source", "target"), AFTER_SWITCH)
def test_behind_the_switch_a_list_has_the_targets_row_once(source: int, target: int) -> None:
    c1 = [each for each in [SOURCE[source]] if each is not None]
    assert listed(c1, [cast(Instance, TARGET[target])], AFTER) == ["h2"]


def test_a_server_that_was_deleted_in_its_new_cell_is_not_shown_by_the_copy_in_the_old_one() -> None:
    assert listed([row(1, LEAVING)], [], MISSING) == []


@pytest.mark.parametrize(("target", "shown"), [(ARRIVING, "h1"), ("", "h2")])
def test_without_the_root_a_list_has_it_once_all_the_same(target: str, shown: str) -> None:
    assert listed([row(1, LEAVING)], [row(2, target)], Unavailable("away")) == [shown]


def test_a_server_that_is_in_no_move_costs_the_root_nothing() -> None:
    assert listed([row(1, "")], [], AssertionError("nobody asks")) == ["h1"]


def test_no_list_lasts_as_long_as_a_move_waits_before_it_stops_the_server() -> None:
    assert ConductorConfig().cross_move_wait_s == CrossMoveSettings().lists_s_max > LIMITS.list_ms_max / 1000


def servers_at(region: ScriptedRegion) -> Servers:
    servers = Servers(region, LIMITS)
    servers.places.put("u", Place("c1", 1, "demo"))
    return servers


@pytest.mark.parametrize("there", [m.InstanceReply(instance=row(1, LEAVING)), MISSING, Unavailable("away")])
def test_a_known_place_that_it_leaves_or_that_is_away_is_asked_for_anew(there: Any) -> None:
    region = ScriptedRegion(root_locate=[AFTER], c1_get=[there], c2_get=[HERE])
    servers = servers_at(region)
    assert show(region, servers).vm_state == "active"
    assert servers.places.get("u") == Place("c2", 2, "demo")


def test_a_cell_that_is_away_and_has_it_still_is_an_error() -> None:
    for place in (BEFORE, Unavailable("the root too")):
        region = ScriptedRegion(root_locate=[place], c1_get=[Unavailable("away")])
        with pytest.raises(Unavailable, match="away"):
            show(region, servers_at(region))


def act(region: ScriptedRegion) -> None:
    servers_at(region).act("u", DEMO, Asked("stop"), "op", Deadline(2000))


def test_an_action_refused_where_it_was_is_tried_once_where_it_is() -> None:
    busy = InstanceBusy("on its way", uuid="u", vm_state="active", task_state="resize_migrated")
    region = ScriptedRegion(root_locate=[AFTER], c1_action=[busy], c2_action=[m.Empty()])
    act(region)
    assert region.asked == ["c1_action", "root_locate", "c2_action"]
    region = ScriptedRegion(root_locate=[BEFORE], c1_action=[busy])
    with pytest.raises(InstanceBusy):
        act(region)
    assert region.asked == ["c1_action", "root_locate", "c1_action"]


def test_a_delete_is_refused_at_once_while_the_server_is_on_its_way_and_done_where_it_has_come_to() -> None:
    busy = InstanceBusy("on its way", uuid="u", vm_state="active", task_state="resize_prep")
    region = ScriptedRegion(root_locate=[BEFORE], c1_delete=[busy])
    with pytest.raises(InstanceBusy):
        servers_at(region).delete("u", DEMO, "op", Deadline(20_000))
    assert region.asked == ["c1_delete", "root_locate", "c1_delete"]
    region = ScriptedRegion(root_locate=[AFTER], c1_delete=[busy], c2_delete=[m.Empty()])
    servers_at(region).delete("u", DEMO, "op", Deadline(20_000))
    assert region.asked[-1] == "c2_delete"
