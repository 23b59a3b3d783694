"""Keys that come, go and overlap under live links."""

from dataclasses import replace

import pytest

from tests.unit.bus.conftest import Bus, connect, wait_until
from zcompute.bus import BusConfigError, KeyEntry, Keyring, Limits
from zcompute.bus.zap import RefusalPace


def test_an_entry_in_rotation_is_found_by_either_key_and_by_the_old_one_no_more_afterwards() -> None:
    entry = KeyEntry("compute-1", "new", "compute", "c1", frozenset({"h1"}), old_public_key="old")
    keyring = Keyring([entry])
    assert keyring.by_public_key("new") is keyring.by_public_key("old") is entry
    assert keyring.holds("compute-1", "old") is entry
    assert keyring.holds("compute-2", "old") is None
    keyring.replace([replace(entry, old_public_key="")])
    assert keyring.by_public_key("old") is None
    with pytest.raises(BusConfigError, match="once"):
        keyring.replace([entry, KeyEntry("compute-2", "old", "compute", "c1")])


def test_a_revoked_key_is_unknown_although_an_entry_lists_it() -> None:
    entry = KeyEntry("compute-1", "new", "compute", "c1", old_public_key="old")
    keyring = Keyring([entry], revoked=["new"])
    assert keyring.by_public_key("new") is None
    assert keyring.by_public_key("old") is entry
    assert keyring.is_revoked("new")
    assert not keyring.is_revoked("old")


def test_both_keys_of_a_rotation_get_in_and_its_end_takes_down_the_old_ones_link_only(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    old_link = connect(server, bus.endpoint("api", "api-1", key="api"))
    old_public, _ = bus.keys.secrets["api"]
    new_public, new_secret = bus.keys.make("other", "api")
    (entry,) = (entry for entry in bus.keys.entries if entry.name == "api")
    others = [entry for entry in bus.keys.entries if entry.name not in ("api", "other")]
    rotated = replace(entry, public_key=new_public, old_public_key=old_public)
    bus.keys.keyring.replace([*others, rotated])
    bus.keys.secrets["api"] = (new_public, new_secret)
    new_link = bus.endpoint("api", "api-2", key="api").dial(old_link.address, server.identity.public_key)
    assert new_link.wait_up(5000)
    assert {link.peer.key_name for link in server.links() if link.peer} == {"api"}
    bus.keys.keyring.replace([*others, replace(rotated, old_public_key="")])
    wait_until(lambda: not old_link.up)
    wait_until(lambda: server.counters["refused_revoked_frame"] >= 1)
    assert new_link.up
    assert [link.peer.service_id for link in server.links() if link.peer] == ["api-2"]


def test_a_listener_whose_key_is_revoked_is_left_by_those_that_know(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    link = connect(server, bus.endpoint("conductor", "conductor-2"))
    bus.keys.keyring.replace(
        [entry for entry in bus.keys.entries if entry.name != "conductor-1"], revoked=[server.identity.public_key]
    )
    wait_until(lambda: not link.up)
    assert not link.wait_up(300)


def test_unknown_keys_are_refused_slowly_while_known_ones_get_in_at_once(bus: Bus) -> None:
    limits = Limits(unknown_keys_burst=1, unknown_keys_per_s=1, unknown_keys_held_max=10)
    server = bus.endpoint("conductor", "conductor-1", limits=limits)
    address = server.bind("tcp://127.0.0.1:0")
    strangers = [bus.endpoint("compute", f"stranger-{n}") for n in range(8)]
    bus.keys.keyring.replace([entry for entry in bus.keys.entries if not entry.name.startswith("stranger")])
    for stranger in strangers:
        stranger.dial(address, server.identity.public_key)
    wait_until(lambda: server.counters["refused_key"] == 8)
    bus.keys.entries = [entry for entry in bus.keys.entries if not entry.name.startswith("stranger")]
    known = bus.endpoint("compute", "compute-1")
    assert known.dial(address, server.identity.public_key).wait_up(900)
    assert sum(stranger.counters["handshakes_failed"] for stranger in strangers) <= 2


def test_the_pace_lets_a_burst_go_holds_the_next_and_never_holds_too_many() -> None:
    pace = RefusalPace(Limits(unknown_keys_burst=2, unknown_keys_per_s=10, unknown_keys_held_max=3))
    delays = [pace.delay_s(100.0) for _ in range(7)]
    assert delays[:2] == [0.0, 0.0]
    assert delays[2:5] == pytest.approx([0.1, 0.2, 0.3])
    assert delays[5:] == [None, None]
    assert pace.delay_s(101.0) == 0.0
