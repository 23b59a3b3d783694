"""The deciding parts of hosts and links; their dialogue is shown by the cluster tests."""

from typing import Any, cast

import pytest

from zcompute.compute.hosts import Hosts
from zcompute.compute.links import ConductorLinks, is_sound, plan_dials
from zcompute.compute.settings import Settings
from zcompute.objects.epochs import in_history
from zcompute.objects.errors import EpochRefused
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory
from zcompute.objects.partition import PARTITIONS, ConductorInfo, PartitionMap


class NoLinks:
    """No owner can be reached."""

    def way_to(self, key: str) -> None:
        return None

    def wait_change(self, timeout_s: float) -> None:
        raise AssertionError("begins were not to be started")


def made(monkeypatch: pytest.MonkeyPatch) -> tuple[Hosts, list[str], list[str]]:
    inventories = [HostInventory(name=name, total=Amounts()) for name in ("node1", "node2")]
    hosts = Hosts(inventories, "agent1", cast(ConductorLinks, NoLinks()), Settings())
    silent, begun = list[str](), list[str]()
    hosts.on_silent = silent.append
    monkeypatch.setattr(hosts, "_begin", lambda session: begun.append(session.name))
    for name in ("node1", "node2"):
        session = hosts.get(name)
        assert session is not None
        session.epoch = 4
    return hosts, silent, begun


def refusal(**details: Any) -> EpochRefused:
    return EpochRefused("no", **details)


def test_superseded_silences_that_host_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, silent, begun = made(monkeypatch)
    hosts.refused(refusal(host="node1", epoch=5, verdict="superseded"), {"node1": 4, "node2": 4})
    assert hosts.epochs() == {"node2": 4}
    assert (silent, begun) == (["node1"], [])


def test_a_begin_whose_answer_was_lost_is_no_other_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, silent, begun = made(monkeypatch)
    session = hosts.get("node1")
    assert session is not None
    session.answers_lost = 1
    hosts.refused(refusal(host="node1", epoch=5, verdict="superseded"), {"node1": 4, "node2": 4})
    assert (silent, begun, session.epoch, session.superseded) == (["node1"], ["node1"], None, False)
    session.epoch = 6
    hosts.refused(refusal(host="node1", epoch=7, verdict="superseded"), {"node1": 6})
    assert session.superseded


def test_an_epoch_above_the_row_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, _, begun = made(monkeypatch)
    hosts.refused(refusal(host="node1", epoch=3, verdict="invalid"), {"node1": 4})
    assert begun == ["node1"]
    assert hosts.epochs() == {"node2": 4}


def test_a_restored_cell_is_begun_anew_and_not_taken_for_another_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, silent, begun = made(monkeypatch)
    session = hosts.get("node1")
    assert session is not None
    session.epoch = 4
    hosts.refused(refusal(host="node1", epoch=in_history(7, 2), verdict="superseded"), {"node1": 4})
    assert (silent, begun, session.epoch, session.superseded) == (["node1"], ["node1"], None, False)
    session.epoch = in_history(7, 3)
    hosts.refused(refusal(host="node1", epoch=in_history(8, 3), verdict="superseded"), {"node1": session.epoch})
    assert session.superseded, "in one history it is another agent"


@pytest.mark.parametrize("details", [{}, {"host": "elsewhere"}, {"host": "node1", "epoch": 4, "verdict": "superseded"}])
def test_a_refusal_of_what_is_not_ours_or_past_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, details: dict[str, Any]
) -> None:
    hosts, silent, begun = made(monkeypatch)
    hosts.refused(refusal(**details), {"node1": 3, "node2": 4})
    assert hosts.epochs() == {"node1": 4, "node2": 4}
    assert (silent, begun) == ([], [])


def conductor(name: str, address: str) -> ConductorInfo:
    return ConductorInfo(service_id=name, incarnation="1", address=address, public_key=f"key-{name}")


def test_the_map_says_whom_to_dial_and_seeds_are_kept() -> None:
    seeds = {"k1": ("old", "key"), "k9": ("seed", "key")}
    cell_map = PartitionMap(cell="c1", conductors={"k2": conductor("k2", "two"), "k1": conductor("k1", "new")})
    assert plan_dials(seeds, cell_map, 16) == {
        "k1": ("new", "key-k1"),
        "k2": ("two", "key-k2"),
        "k9": ("seed", "key"),
    }
    assert list(plan_dials(seeds, cell_map, 2)) == ["k1", "k2"]


def test_maps_that_cannot_be_used_are_told_apart() -> None:
    assert is_sound(PartitionMap(cell="c1"), "c1")
    assert not is_sound(PartitionMap(cell="c2"), "c1")
    assert not is_sound(PartitionMap(cell="c1", owners=[]), "c1")
    assert not is_sound(PartitionMap(cell="c1", epochs=[0] * (PARTITIONS + 1)), "c1")
    assert not is_sound(PartitionMap(cell="c1", epochs=[-1] * PARTITIONS), "c1")
    assert not is_sound(PartitionMap(cell="c1", epochs=[1 << 64] * PARTITIONS), "c1")
