"""Over which conductor an owner is reached."""

from zcompute.compute.settings import Settings
from zcompute.compute.ways import Ways

LIMITS = Settings(relay_after_ms=1000, relay_rest_ms=2000, beat_relays_max=2)
ALL = {"k1": True, "k2": True, "k3": True, "k4": True}


def without(*names: str) -> dict[str, bool]:
    return {name: relays for name, relays in ALL.items() if name not in names}


def away(ways: Ways, owner: str = "k1") -> None:
    """The owner has been away for long enough."""
    assert ways.to(owner, without(owner), 0.0) == ""


def test_the_owner_itself_is_the_way_while_it_is_linked() -> None:
    assert Ways(LIMITS, "agent").to("k1", ALL, 0.0) == "k1"


def test_a_link_that_is_just_made_anew_is_waited_for() -> None:
    ways = Ways(LIMITS, "agent")
    away(ways)
    assert ways.to("k1", without("k1"), 0.9) == ""
    assert ways.to("k1", without("k1"), 1.0) in without("k1")


def test_the_direct_link_counts_at_once_when_it_is_back_and_is_waited_for_anew() -> None:
    ways = Ways(LIMITS, "agent")
    away(ways)
    assert ways.to("k1", without("k1"), 5.0) != "k1"
    assert ways.to("k1", ALL, 5.1) == "k1"
    assert ways.to("k1", without("k1"), 5.2) == ""


def test_the_wait_begins_with_the_loss_not_with_the_first_report() -> None:
    ways = Ways(LIMITS, "agent")
    assert ways.to("k1", ALL, 0.0) == "k1"
    ways.lost("k1", 1.0)
    ways.lost("k1", 1.9)
    assert ways.to("k1", without("k1"), 2.0) in without("k1")


def test_nobody_owns_or_nobody_relays() -> None:
    ways = Ways(LIMITS, "agent")
    assert ways.to("", ALL, 100.0) == ""
    away(ways)
    assert ways.to("k1", {"k2": False}, 5.0) == "", "of a release that does not relay"
    assert ways.to("k1", {}, 5.0) == ""
    assert ways.to("k1", {"k2": False, "k3": True}, 5.0) == "k3"


def test_a_relay_is_kept_while_it_is_usable() -> None:
    ways = Ways(LIMITS, "agent")
    away(ways)
    first = ways.to("k1", without("k1"), 5.0)
    assert all(ways.to("k1", without("k1"), 5.0 + later) == first for later in range(5))
    second = ways.to("k1", without("k1", first), 11.0)
    assert second not in ("", "k1", first)
    assert ways.to("k1", without("k1"), 12.0) == second


def test_one_that_refused_is_asked_last_for_a_while() -> None:
    ways = Ways(LIMITS, "agent")
    away(ways)
    first = ways.to("k1", without("k1"), 5.0)
    ways.refused("k1", first, 5.0)
    assert ways.to("k1", without("k1"), 5.1) != first
    assert ways.to("k1", {first: True}, 5.2) == first, "there is no other"


def test_agents_are_spread_over_relays() -> None:
    chosen = set()
    for agent in range(20):
        ways = Ways(LIMITS, f"agent-{agent}")
        away(ways)
        chosen.add(ways.to("k1", without("k1"), 5.0))
    assert chosen == {"k2", "k3", "k4"}


def test_a_beat_takes_the_direct_link_or_several_relays() -> None:
    ways = Ways(LIMITS, "agent")
    assert ways.all_to("k1", ALL, 0.0) == ["k1"]
    assert ways.all_to("k1", without("k1"), 0.0) == []
    relays = ways.all_to("k1", without("k1"), 2.0)
    assert len(set(relays)) == 2
    assert "k1" not in relays
