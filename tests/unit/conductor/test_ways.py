"""Ways to hosts over fellow conductors. Links are played by this file."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus.errors import LinkDown, UnknownMethod
from zcompute.conductor.commands import Commands
from zcompute.conductor.ways import WayLimits, Ways
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.methods import RELAY_FIND, RELAY_SPAWN, SPAWN
from zcompute.objects.relay import FindReply


class Fellow:
    """Another conductor, with agents of these hosts."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = set(hosts)
        self.name = "k2"
        self.up = True
        self.knows = True
        self.asked: list[list[str]] = []
        self.commands: list[tuple[Any, int]] = []

    def call(self, method: Any, request: Any, *, timeout_ms: int) -> Any:
        if method is RELAY_FIND:
            self.asked.append(sorted(request.hosts))
            if not self.knows:
                raise UnknownMethod("an older release")
            return FindReply(hosts=[host for host in request.hosts if host in self.hosts] + ["never-asked"])
        if not self.hosts:
            raise LinkDown("not attached here either")
        self.commands.append((method, timeout_ms))
        return "recorded"


class World:
    def __init__(self, *fellows: Fellow, **limits: int) -> None:
        self.fellows = list(fellows)
        links: Any = SimpleNamespace(links=lambda: [one for one in self.fellows if one.up])
        self.ways = Ways(links, WayLimits(**limits))
        ledger: Any = None
        self.commands = Commands(ledger, self.ways)
        self.found: list[str] = []
        self.commands.on_attach(self.found.append)
        self.ways.start()


@pytest.fixture
def made() -> Any:
    worlds: list[World] = []

    def make(*fellows: Fellow, **limits: int) -> World:
        worlds.append(World(*fellows, **limits))
        return worlds[-1]

    yield make
    for world in worlds:
        world.ways.stop()


def find(world: World, host: str) -> None:
    assert not world.commands.has_way(host)
    wait_for(lambda: host in world.found)


def test_fellows_are_asked_and_whoever_waits_for_the_host_is_told(made: Any) -> None:
    near, far = Fellow("h1"), Fellow("h2")
    world = made(near, far)
    find(world, "h1")
    assert world.commands.has_way("h1")
    assert world.commands.send("h1", SPAWN, Empty(), timeout_ms=77) == "recorded"
    assert (near.commands, far.commands) == ([(RELAY_SPAWN, 77)], [])
    assert "never-asked" not in world.found


def test_the_own_link_goes_before_every_other_way(made: Any) -> None:
    fellow = Fellow("h1")
    world = made(fellow)
    find(world, "h1")
    own: Any = Fellow("h1")
    world.commands.attach("h1", own)
    world.commands.send("h1", SPAWN, Empty(), timeout_ms=5)
    assert (own.commands, fellow.commands) == ([(SPAWN, 5)], [])
    world.commands.detach("h1", own)
    assert not world.ways._known


def test_a_host_that_nobody_reaches_is_asked_for_at_intervals(made: Any) -> None:
    fellow = Fellow()
    world = made(fellow, again_ms=60_000)
    for _ in range(10):
        assert not world.commands.has_way("h1")
        with pytest.raises(LinkDown):
            world.commands.send("h1", SPAWN, Empty(), timeout_ms=5)
    wait_for(lambda: fellow.asked == [["h1"]])
    assert world.found == []


def test_a_way_that_has_ended_is_looked_for_anew(made: Any) -> None:
    near, other = Fellow("h1"), Fellow()
    world = made(near, other, again_ms=0)
    find(world, "h1")
    near.hosts.clear()
    other.hosts.add("h1")
    with pytest.raises(LinkDown):
        world.commands.send("h1", SPAWN, Empty(), timeout_ms=5)
    wait_for(lambda: world.commands.has_way("h1"))
    world.commands.send("h1", SPAWN, Empty(), timeout_ms=5)
    assert len(other.commands) == 1
    other.up = False
    assert not world.commands.has_way("h1")


def test_a_fellow_of_an_older_release_is_no_way(made: Any) -> None:
    old = Fellow("h1")
    old.knows = False
    world = made(old, Fellow("h1"))
    find(world, "h1")
    assert world.ways._known["h1"].link is not old


def test_questions_are_bounded(made: Any) -> None:
    fellow = Fellow()
    world = made(fellow, hosts_max=2, wanted_max=3)
    for number in range(5):
        world.commands.has_way(f"h{number}")
    wait_for(lambda: fellow.asked == [["h0", "h1"], ["h2"]])
