"""Two releases on one link: what each may ask of the other, and what is refused before anything is done."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
import pytest

from tests.unit.bus.conftest import Answer, Ask, Bus, Method, bus, connect, wait_until
from zcompute.bus import Endpoint, Link, UnsupportedVersion
from zcompute.bus.linkhome import Lower
from zcompute.bus.method import interface_ranges
from zcompute.objects.interface import Interface

__all__ = ["bus"]

ROLES = frozenset({"compute", "conductor"})
OLD, NEW = Interface("pets", (1, 0)), Interface("pets", (1, 2))
OTHER_MAJOR = Interface("pets", (2, 0))
PETS = {
    "old": (OLD, OLD.method("feed", Ask, Answer, ROLES), None),
    "new": (NEW, NEW.method("feed", Ask, Answer, ROLES), NEW.method("groom", Ask, Answer, ROLES, since=2)),
}


def endpoint_of(bus: Bus, release: str, role: str) -> tuple[Endpoint, list[str]]:
    """An endpoint that serves interface pets as its release declares it; what it was asked."""
    endpoint = bus.endpoint(role, f"{role}-1")
    asked: list[str] = []
    for method in PETS[release][0].methods.values():
        endpoint.serve(method, lambda ask, context, name=method.name: (asked.append(name), Answer(name))[1])
    return endpoint, asked


@pytest.mark.parametrize("server_release", ["old", "new"])
@pytest.mark.parametrize("client_release", ["old", "new"])
def test_what_both_know_works_in_all_four_combinations(bus: Bus, client_release: str, server_release: str) -> None:
    server, asked = endpoint_of(bus, server_release, "conductor")
    client, asked_back = endpoint_of(bus, client_release, "compute")
    link = connect(server, client)
    assert link.call(PETS[client_release][1], Ask("?"), timeout_ms=2000) == Answer("feed")
    (back,) = server.links(role="compute")
    assert back.call(PETS[server_release][1], Ask("?"), timeout_ms=2000) == Answer("feed")
    assert (asked, asked_back) == (["feed"], ["feed"])


@pytest.mark.parametrize("server_release", ["old", "new"])
def test_what_only_the_newer_knows_is_refused_before_sending_and_names_both_ranges(
    bus: Bus, server_release: str
) -> None:
    server, asked = endpoint_of(bus, server_release, "conductor")
    client, _ = endpoint_of(bus, "new", "compute")
    link = connect(server, client)
    groom = PETS["new"][2]
    if server_release == "new":
        assert link.call(groom, Ask("?"), timeout_ms=2000) == Answer("groom")
        return
    with pytest.raises(UnsupportedVersion) as refused:
        link.call(groom, Ask("?"), timeout_ms=2000)
    assert refused.value.details["wanted"] == [1, 2]
    assert refused.value.details["caller"] == [[1, 0], [1, 2]]
    assert refused.value.details["server"] == [[1, 0], [1, 0]]
    assert client.counters["calls"] == 0
    assert asked == []


def force(link: Link, method: Method) -> Method:
    """Let a link send what its peer does not speak, as a peer in error would."""
    link._spoken[id(method)] = link._endpoint.prepare(method)
    return method


@pytest.mark.parametrize("version", [(1, 1), (1, 9), (2, 0), (0, 0)])
def test_the_receiver_refuses_what_lies_outside_its_range_before_dispatch(bus: Bus, version: tuple[int, int]) -> None:
    server, asked = endpoint_of(bus, "old", "conductor")
    client, _ = endpoint_of(bus, "new", "compute")
    link = connect(server, client)
    wrong = force(link, Method("pets", "feed", version=version, roles=ROLES))
    with pytest.raises(UnsupportedVersion) as refused:
        link.call(wrong, Ask("?"), timeout_ms=2000)
    assert refused.value.details["wanted"] == list(version)
    assert refused.value.details["caller"] == [[1, 0], [1, 2]]
    assert refused.value.details["server"] == [[1, 0], [1, 0]]
    assert asked == []
    assert server.counters["refused_UnsupportedVersion"] == 1


def test_another_major_is_refused(bus: Bus) -> None:
    server, _ = endpoint_of(bus, "old", "conductor")
    link = connect(server, bus.endpoint("compute", "compute-1"))
    with pytest.raises(UnsupportedVersion, match=r"2\.0.*1\.0-1\.0"):
        link.call(OTHER_MAJOR.method("feed", Ask, Answer, ROLES), Ask("?"), timeout_ms=2000)


def test_a_service_announces_the_version_that_its_interface_has_reached() -> None:
    raised = Interface("pets", (1, 3))  # by a field of a request, not by a method
    assert interface_ranges([raised.method("feed", Ask, Answer, ROLES)]) == {"pets": ((1, 0), (1, 3))}
    assert interface_ranges([Method("pets", "feed", version=(1, 1))]) == {"pets": ((1, 0), (1, 1))}


def test_requests_replies_and_events_go_out_as_the_very_peer_reads_them(bus: Bus) -> None:
    """The server is of a release whose answers are longer; one client is too, the other is not."""

    def lowering(told: Mapping[str, Any]) -> Lower | None:
        return None if told.get("release") == 2 else lambda message: {"text": message.text.partition(" ")[0]}

    server = bus.endpoint("conductor", "conductor-1", topics=("pets",))
    server.lowering = lowering
    feed = OLD.methods["feed"]
    server.serve(feed, lambda ask, context: Answer("fed well"))
    older = bus.endpoint("compute", "compute-1", topics=("pets",))
    newer = bus.endpoint("compute", "compute-2", topics=("pets",), attributes=lambda: {"release": 2})
    address = server.bind("tcp://127.0.0.1:0")
    heard: dict[str, Any] = {}
    links: dict[str, Link] = {}
    for name, client in (("older", older), ("newer", newer)):
        hear = partial(lambda name, link, event: heard.update({name: msgspec.msgpack.decode(event.payload)}), name)
        client.on_event("pets", hear)
        client.serve(feed, lambda ask, context: Answer(ask.text))
        links[name] = client.dial(address, server.identity.public_key)
    assert all(link.wait_up(5000) for link in links.values())
    answers = {name: link.call(feed, Ask("?"), timeout_ms=2000).text for name, link in links.items()}
    assert answers == {"older": "fed", "newer": "fed well"}
    asked = {
        link.peer.service_id: link.call(feed, Ask("come here"), timeout_ms=2000).text
        for link in server.links(role="compute")
        if link.peer is not None
    }
    assert asked == {"compute-1": "come", "compute-2": "come here"}
    server.publish("pets", "k", 1, Answer("a dog"))
    wait_until(lambda: len(heard) == 2)
    assert heard == {"older": {"text": "a"}, "newer": {"text": "a dog"}}


def test_what_a_peers_version_cannot_say_is_refused_on_either_side(bus: Bus) -> None:
    def lowering(told: Mapping[str, Any]) -> Lower | None:
        def refuse(message: Any) -> Any:
            raise ValueError("wings cannot be said")

        return refuse

    server = bus.endpoint("conductor", "conductor-1", topics=("pets",))
    server.lowering = lowering
    feed = OLD.methods["feed"]
    server.serve(feed, lambda ask, context: Answer("fed"))
    client = bus.endpoint("compute", "compute-1", topics=("pets",))
    client.serve(feed, lambda ask, context: Answer("fed"))
    link = connect(server, client)
    with pytest.raises(UnsupportedVersion, match="wings"):
        link.call(feed, Ask("?"), timeout_ms=2000)
    (back,) = server.links(role="compute")
    with pytest.raises(UnsupportedVersion, match="wings"):
        back.call(feed, Ask("?"), timeout_ms=2000)
    server.publish("pets", "k", 1, Answer("a dog"))
    assert server.counters["refused_event_version"] == 1
