"""An API, a conductor of the root or of the cell killed at a step of create, hand-off or release: nothing leaks.

After each: the project has the servers that its clients were told of and no other, as many as its limit allows; when
they are deleted nothing is charged, and the reconciler finds nothing.
"""

import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import pytest
from gevent.pool import Pool

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import delete_all, started, wait_until
from tests.cluster.test_actions import Clients
from tests.cluster.test_faults import owners, store_of
from tests.cluster.test_moves import comes_to
from tests.cluster.test_quotas import counted, create, demo_project, quota
from tests.unit.test_failpoints import OF_IMAGES, OF_QUOTAS, OF_RESIZES, places
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.db.tables import BUILD_REQUESTS, IMAGES, MAPPINGS, ROOT_OUTBOX, USAGES
from zcompute.failpoints import ENVIRONMENT, GATE
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.image import IMAGE_ACTIVE, Image

LIMIT = 6
CREATORS = 8
OF_API, OF_ROOT = ("api-1",), ("root-conductor-1", "root-conductor-2")
OF_CELL = ("c1-conductor-1", "c1-conductor-2")
PLACES = {
    "servers.before_create": OF_API,
    "servers.after_create": OF_API,
    "intake.before_create": OF_ROOT,
    "intake.after_create": OF_ROOT,
    "handoff.before_send": OF_ROOT,
    "handoff.after_send": OF_ROOT,
    "handoff.after_settle": OF_ROOT,
    "mapping.before_release": OF_ROOT,
    "mapping.after_release": OF_ROOT,
    "outbox.before_send": OF_CELL,
    "outbox.after_send": OF_CELL,
    "outbox.after_delete": OF_CELL,
}

PLACES_OF_RESIZES = {
    "resize.before_raise": OF_CELL,
    "resize.after_raise": OF_CELL,
    "quota.before_raise": OF_ROOT,
    "quota.after_raise": OF_ROOT,
}

PLACES_OF_IMAGES = {
    "create_image.before_row": OF_API,
    "create_image.after_row": OF_API,
    "create_image.after_action": OF_API,
    "image.before_create": OF_ROOT,
    "image.after_create": OF_ROOT,
    "image.before_update": OF_ROOT,
    "image.after_update": OF_ROOT,
}


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    shape = Shape(cells=("c1",), computes=1, hosts_per_compute=4)
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, shape) as running:
        running.on_unexpected_end = lambda text: None
        yield running


@pytest.fixture(scope="module")
def project(region: Region) -> str:
    found = demo_project(region)
    quota(region, "set", found, "--instances", str(LIMIT))
    return found


def wait_owners(region: Region) -> None:
    for cell in (ROOT_CELL, "c1"):
        with store_of(region, cell) as store:
            wait_until(lambda store=store: len(owners(store)) == 2, f"both conductors of {cell} own partitions")


@contextmanager
def armed(
    region: Region,
    victims: tuple[str, ...],
    place: str,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: int = 1,
) -> Iterator[None]:
    """All of them may die there; the first to pass it so often does, and the gate is closed behind it. Who is dead is
    restarted."""
    for service_id in victims:
        wait_owners(region)
        region.kill(service_id)
        with monkeypatch.context() as patch:
            patch.setenv(ENVIRONMENT, f"{place}=kill@{passes}")
            patch.setenv(GATE, str(gate))
            region.restart(service_id)
    region.wait_ready()
    wait_owners(region)
    died: list[str] = []

    def raise_the_dead() -> None:
        while True:
            for service_id in victims:
                process = region.processes[service_id]
                if not process.alive:
                    died.append(f"{service_id} {process.exit_code}")
                    region.restart(service_id)
            gevent.sleep(0.05)

    watching = gevent.spawn(raise_the_dead)
    try:
        yield
        wait_until(lambda: died, f"a service dies at {place}")
        assert len(died) == 1
        assert died[0].endswith(f" {-signal.SIGKILL}")
        assert not gate.exists()
    finally:
        watching.kill()


def create_many(region: Region) -> list[str]:
    """More at once than the limit allows; those that clients were told of."""
    deadline = time.monotonic() + 60

    def one(_: int) -> str | None:
        client = region.client()
        try:
            status, answer = create(client, deadline, name=f"s-{uuid.uuid4().hex[:6]}")
        finally:
            client.close()
        assert status in (202, 403), (status, answer)
        return answer["server"]["id"] if status == 202 else None

    return [created for created in Pool(CREATORS).map(one, range(CREATORS)) if created]


def charged(region: Region) -> list[str]:
    with store_of(region, ROOT_CELL) as store:
        return sorted(usage.uuid for usage in store.scan(USAGES, limit=100))


def left(region: Region) -> int:
    with store_of(region, ROOT_CELL) as store:
        return len(store.scan(MAPPINGS, limit=100)) + len(store.scan(BUILD_REQUESTS, limit=100)) + counted(region)


def handed_over(region: Region) -> bool:
    with store_of(region, ROOT_CELL) as store:
        return not store.scan(BUILD_REQUESTS, limit=1)


def test_every_place_of_the_books_is_tried() -> None:
    assert sorted(PLACES) == sorted(place for place in places() if place.startswith(OF_QUOTAS))
    assert sorted(PLACES_OF_RESIZES) == sorted(place for place in places() if place.startswith(OF_RESIZES))
    assert sorted(PLACES_OF_IMAGES) == sorted(place for place in places() if place.startswith(OF_IMAGES))


@pytest.mark.parametrize("place", PLACES)
def test_killed_between_two_steps(
    region: Region, project: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    with armed(region, PLACES[place], place, gate, monkeypatch):
        gate.touch()
        created = create_many(region)
        assert len(created) == LIMIT
        assert charged(region) == sorted(created)
        wait_until(lambda: handed_over(region), "the cell has them all")
        delete_all(region, created)
    wait_until(lambda: left(region) == 0, "nothing is left of them", found=lambda: left(region))
    assert quota(region, "show", project)["used"] == {"cores": 0, "instances": 0, "ram": 0}
    report = quota(region, "reconcile")
    assert report["found"] == []
    assert report["silent_cells"] == []


def used(region: Region, project: str) -> int:
    cores: int = quota(region, "show", project)["used"]["cores"]
    return cores


@pytest.mark.parametrize("place", PLACES_OF_RESIZES)
def test_killed_while_a_resize_is_charged(
    region: Region, project: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client asks again until it has an answer: charged once, begun once, and given back with the revert."""
    gate = tmp_path / "gate"
    with armed(region, PLACES_OF_RESIZES[place], place, gate, monkeypatch):
        server = Clients(region, create_one(region))
        comes_to(server, "ACTIVE")
        gate.touch()
        key = {"Idempotency-Key": str(uuid.uuid4())}
        body, deadline = {"resize": {"flavorRef": "3"}}, time.monotonic() + 60
        status, answer = server.client.repeated("POST", f"{server.path}/action", body, deadline=deadline, headers=key)
        assert status == 202, answer
        comes_to(server, "VERIFY_RESIZE")
        assert used(region, project) == 2
    assert server.act({"revertResize": None})[0] == 202
    comes_to(server, "ACTIVE")
    wait_until(lambda: used(region, project) == 1, "given back")
    assert quota(region, "reconcile")["found"] == []
    delete_all(region, [server.path.rpartition("/")[2]])
    wait_until(lambda: left(region) == 0, "nothing is left of it", found=lambda: left(region))


@pytest.mark.parametrize("place", PLACES_OF_IMAGES)
def test_killed_while_an_image_is_made(
    region: Region, project: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client asks again until it has an answer: one image, made once."""
    gate = tmp_path / "gate"
    with armed(region, PLACES_OF_IMAGES[place], place, gate, monkeypatch):
        server = Clients(region, create_one(region))
        comes_to(server, "ACTIVE")
        gate.touch()
        key = {"Idempotency-Key": str(uuid.uuid4())}
        body, deadline = {"createImage": {"name": "one"}}, time.monotonic() + 60
        status, answer = server.client.repeated("POST", f"{server.path}/action", body, deadline=deadline, headers=key)
        assert status == 202, answer
        uuid_of_it = server.path.rpartition("/")[2]
        wait_until(lambda: images(region, uuid_of_it)[0].status == IMAGE_ACTIVE, "the image is there")
    (image,) = images(region, uuid_of_it)
    assert (image.size_bytes > 0, image.properties["instance_uuid"]) == (True, uuid_of_it)
    delete_all(region, [uuid_of_it])
    wait_until(lambda: left(region) == 0, "nothing is left of the server", found=lambda: left(region))
    with store_of(region, "c1") as store:
        wait_until(lambda: not store.scan(ROOT_OUTBOX, limit=1), "the root is owed nothing")


def images(region: Region, server: str) -> list[Image]:
    with store_of(region, ROOT_CELL) as store:
        return store.scan(IMAGES, where={"server_uuid": server}, limit=10)


def create_one(region: Region) -> str:
    client = region.client()
    try:
        status, answer = create(client, time.monotonic() + 60)
    finally:
        client.close()
    assert status == 202, answer
    created: str = answer["server"]["id"]
    return created
