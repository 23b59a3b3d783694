"""Images over HTTP: Nova's proxy, createImage, and what is said of an image that cannot be used."""

import uuid

import pytest
from msgspec.structs import replace

from tests.api.conftest import Client, api_config, is_healthy, wait_until
from tests.api.test_actions import act, server_in
from tests.api.test_servers import NOWHERE, called
from tests.unit.conductor.root.fakes import UUIDS
from zcompute.api.image_lookup import check_usable
from zcompute.api.image_making import image_id_of
from zcompute.api.server import ApiService
from zcompute.db.tables import IMAGES as TABLE
from zcompute.objects import methods as m
from zcompute.objects.errors import InstanceBusy
from zcompute.objects.flavor import Flavor
from zcompute.objects.image import IMAGE_ACTIVE, IMAGE_ERROR, IMAGE_SAVING, PUBLIC, Image, ImageOutcome

IMAGES = "/v2.1/images"
BASE = Image(
    id=UUIDS[0], project_id="ops", name="base", status=IMAGE_ACTIVE, visibility=PUBLIC, size_bytes=5,
    properties={"os": "none"},
)  # fmt: skip


@pytest.fixture
def admin(service):
    client = Client(service.address, "admin-token")
    yield client
    client.close()


@pytest.fixture
def other(service):
    client = Client(service.address, "other-token")
    yield client
    client.close()


def create_image(client, server, headers=None, **fields):
    return act(client, server, {"createImage": {"name": "one", **fields}}, headers)


def image_in(answer):
    """The id that a createImage was answered with."""
    assert answer.status == 202, answer.raw
    assert answer.raw == b""
    base, _, image_id = answer.headers["Location"].rpartition("/")
    assert base.endswith(IMAGES)
    return image_id


def finish(region, image_id, server, status=IMAGE_ACTIVE, **fields):
    region.root.images.tell(ImageOutcome(image_id=image_id, status=status, **fields), server)


def test_a_shelved_servers_image_has_its_name_and_is_one_however_often_it_is_asked_for(client, region):
    server, key = server_in(client, region), {"Idempotency-Key": "once"}
    answers = [act(client, server, {"shelve": None}, key) for _ in range(2)]
    assert [(answer.status, answer.raw, "Location" in answer.headers) for answer in answers] == [(202, b"", False)] * 2
    (image,) = client.get(f"{IMAGES}/detail?server={server}").body["images"]
    name = client.get(f"/v2.1/servers/{server}").body["server"]["name"]
    assert (image["name"], image["status"]) == (f"{name}-shelved", "SAVING")
    requests = called(region.c2, m.INSTANCE_ACTION)
    assert {(request.action, request.arguments.image_ref) for request in requests} == {("shelve", image["id"])}


def test_an_image_is_made_of_a_server_and_shown_as_nova_does(client, region):
    server = server_in(client, region)
    image_id = image_in(create_image(client, server, metadata={"a": "b"}))
    shown = client.get(f"{IMAGES}/{image_id}").body["image"]
    base = f"http://{client.address[0]}:{client.address[1]}"

    def links(kind, identifier):
        return [
            {"rel": "self", "href": f"{base}/v2.1/{kind}/{identifier}"},
            {"rel": "bookmark", "href": f"{base}/{kind}/{identifier}"},
        ]

    assert shown == {
        "id": image_id, "name": "one", "status": "SAVING", "progress": 50, "minDisk": 1, "minRam": 0,
        "OS-EXT-IMG-SIZE:size": 0, "created": shown["created"], "updated": shown["created"],
        "metadata": {
            "a": "b", "instance_uuid": server, "user_id": "ann", "image_type": "snapshot", "base_image_ref": "img",
        },
        "links": links("images", image_id), "server": {"id": server, "links": links("servers", server)},
    }  # fmt: skip
    (request,) = called(region.c2, m.INSTANCE_ACTION)
    assert (request.action, request.arguments.image_ref, request.metadata) == ("snapshot", image_id, None)
    finish(region, image_id, server, size_bytes=7)
    shown = client.get(f"{IMAGES}/{image_id}").body["image"]
    assert (shown["status"], shown["progress"], shown["OS-EXT-IMG-SIZE:size"]) == ("ACTIVE", 100, 7)


def test_an_image_that_was_not_made_says_so(client, region):
    server = server_in(client, region)
    image_id = image_in(create_image(client, server))
    finish(region, image_id, server, IMAGE_ERROR, reason="disk full")
    shown = client.get(f"{IMAGES}/{image_id}").body["image"]
    assert (shown["status"], shown["progress"]) == ("ERROR", 0)


def test_with_the_same_key_there_is_one_image(client, region):
    server, key = server_in(client, region), {"Idempotency-Key": "k"}
    first = image_in(create_image(client, server, key))
    assert image_in(create_image(client, server, key)) == first
    assert len(client.get(IMAGES).body["images"]) == 1
    another = server_in(client, region)
    assert create_image(client, another, key).fault[:2] == ("conflictingRequest", 409)
    assert image_in(create_image(client, server)) != first


@pytest.mark.parametrize("vm_state", ["building", "error", "rescued", "resized", "soft-delete"])
def test_a_state_that_forbids_it_leaves_no_image(client, region, vm_state):
    server = server_in(client, region, vm_state)
    expected = f"Cannot 'createImage' instance {server} while it is in vm_state {vm_state}"
    assert create_image(client, server).fault == ("conflictingRequest", 409, expected)
    assert client.get(IMAGES).body["images"] == []


def test_a_lock_is_no_matter_and_another_task_is(client, region):
    server = server_in(client, region, locked=True)
    image_in(create_image(client, server))
    busy = server_in(client, region, task_state="rebooting")
    assert create_image(client, busy).fault[:2] == ("conflictingRequest", 409)


def test_a_refusal_does_not_withdraw_what_the_same_operation_is_making(client, region):
    """The first request is refused after a second one of the same key has found its row."""
    server, key = server_in(client, region), {"Idempotency-Key": "k2"}

    def refused_meanwhile():
        row = region.root.images.ledger.all(TABLE)[0]
        region.root.images.create(replace(row))
        raise InstanceBusy("busy", uuid=server)

    region.c2.before[m.INSTANCE_ACTION] = refused_meanwhile
    assert create_image(client, server, key).status == 409
    assert len(client.get(IMAGES).body["images"]) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "body"), ({}, "'name' is a required property"), ({"name": ""}, "attribute name"),
        ({"name": "x" * 256}, "attribute name"), ({"name": " a"}, "name"),
        ({"name": "a", "metadata": {"k": 1}}, "metadata"),
        ({"name": "a", "rotation": 1}, "rotation"),
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_a_bad_request(client, region, value, words):
    fault = act(client, NOWHERE, {"createImage": value}).fault
    assert fault[:2] == ("badRequest", 400)
    assert words in fault[2]


def test_too_much_metadata_is_forbidden(client):
    metadata = {f"k{at}": "" for at in range(129)}
    assert create_image(client, NOWHERE, metadata=metadata).fault[:2] == ("forbidden", 403)


def test_an_image_of_no_server_is_not_made(client, other, region):
    server = server_in(client, region)
    assert create_image(client, NOWHERE).fault[:2] == ("itemNotFound", 404)
    assert create_image(other, server).fault[:2] == ("itemNotFound", 404)
    assert not region.root.images.ledger.rows


# -- the directory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def some(region):
    """A public image, one of demo's and one of other's."""
    desk = region.root.images
    found = [
        BASE,
        replace(BASE, id=UUIDS[1], project_id="demo", visibility="private", name="mine", status=IMAGE_SAVING),
        replace(BASE, id=UUIDS[2], project_id="other", visibility="private", name="theirs"),
    ]
    return [desk.create(image).id for image in found]


def names(answer):
    return [image["name"] for image in answer.body["images"]]


def test_a_project_sees_its_own_images_and_the_public_ones(client, other, admin, some):
    assert names(client.get(IMAGES)) == ["base", "mine"]
    assert names(other.get(f"{IMAGES}/detail")) == ["base", "theirs"]
    assert names(admin.get(IMAGES)) == ["base", "mine", "theirs"]
    assert set(client.get(IMAGES).body["images"][0]) == {"id", "name", "links"}
    assert client.get(f"{IMAGES}/{some[2]}").fault == ("itemNotFound", 404, "Image not found.")
    assert client.get(f"{IMAGES}/{some[0].upper()}").body["image"]["metadata"] == {"os": "none"}


@pytest.mark.parametrize("name", ["nothing", "x" * 300, "%C3%A9"])
def test_an_image_that_there_is_not_is_not_found(client, name):
    assert client.get(f"{IMAGES}/{name}").fault == ("itemNotFound", 404, "Image not found.")
    assert client.ask("DELETE", f"{IMAGES}/{name}").fault == ("itemNotFound", 404, "Image not found.")


def test_lists_are_filtered_and_paged(client, admin, some):
    assert names(admin.get(f"{IMAGES}?name=mine")) == ["mine"]
    assert names(admin.get(f"{IMAGES}?status=saving")) == ["mine"]
    assert names(admin.get(f"{IMAGES}?status=NONSENSE")) == []
    assert names(admin.get(f"{IMAGES}?server=http://x/servers/{NOWHERE}")) == []
    assert names(admin.get(f"{IMAGES}?server=%C3%A9")) == []
    assert names(admin.get(f"{IMAGES}?marker={some[0].upper()}")) == ["mine", "theirs"]
    page = admin.get(f"{IMAGES}/detail?limit=2").body
    (following,) = page["images_links"]
    assert following["rel"] == "next"
    assert names(admin.get(following["href"].partition(str(admin.address[1]))[2])) == ["theirs"]
    assert client.get(f"{IMAGES}?marker={some[2]}").fault == ("badRequest", 400, f"marker [{some[2]}] not found")
    assert client.get(f"{IMAGES}?limit=-1").fault[:2] == ("badRequest", 400)
    assert client.get(f"{IMAGES}?name={'x' * 256}").fault[:2] == ("badRequest", 400)


@pytest.mark.parametrize(
    "field", ["changes-since=2020-01-01", "minRam=1", "minDisk=1", "type=snapshot", "property-a=b"]
)
def test_a_filter_that_is_not_served_is_refused_by_name(client, field):
    name, code, message = client.get(f"{IMAGES}?{field}").fault
    assert (name, code) == ("badRequest", 400)
    assert field.partition("=")[0] in message


def test_an_image_is_deleted_by_its_project(client, other, some):
    assert client.ask("DELETE", f"{IMAGES}/{some[2]}").fault[:2] == ("itemNotFound", 404)
    refused = client.ask("DELETE", f"{IMAGES}/{some[0]}").fault
    assert refused == ("forbidden", 403, "You are not allowed to delete the image.")
    deleted = other.ask("DELETE", f"{IMAGES}/{some[2]}")
    assert (deleted.status, deleted.raw) == (204, b"")
    assert other.get(f"{IMAGES}/{some[2]}").status == 404
    assert other.ask("DELETE", f"{IMAGES}/{some[2]}").status == 404


# -- look-ups ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(fake_region, tmp_path_factory):
    """An API that takes known images only."""
    config = api_config(tmp_path_factory.mktemp("strict"), fake_region, require_known_images=True)
    service = ApiService(replace(config, service=replace(config.service, id="api-2")))
    service.start()
    wait_until(lambda: is_healthy(service) and all(service._region.linked(cell) for cell in ("c1", "c2")), "linked")
    yield service
    service.stop()


@pytest.fixture
def picky(strict, region):
    client = Client(strict.address)
    yield client
    client.close()


def fresh(region, **fields):
    """An image that no API has looked up yet."""
    return region.root.images.create(replace(BASE, id=str(uuid.uuid4()), **fields)).id


def test_a_server_of_an_unknown_image_is_refused_where_that_is_required(client, picky, region):
    assert client.create(imageRef=str(uuid.uuid4())).status == 202
    unknown = ("badRequest", 400, "Can not find requested image")
    assert picky.create(imageRef=str(uuid.uuid4())).fault == unknown
    assert picky.create(imageRef="x" * 60).fault == unknown
    assert picky.create(imageRef=fresh(region, project_id="other", visibility="private")).fault == unknown
    assert picky.create(imageRef="").status == 202
    assert picky.create(imageRef=f"http://any/images/{fresh(region)}").status == 202
    assert picky.create(imageRef=fresh(region).upper()).status == 202


def test_boots_of_the_same_image_ask_the_root_for_it_once(picky, region):
    image_id = fresh(region)
    region.root.seen.clear()
    for _ in range(5):
        assert picky.create(imageRef=image_id).status == 202
    asked = [type(request) for _, request, _ in region.root.seen]
    assert asked.count(m.ImageGetRequest) == 1
    assert asked.count(m.FlavorGetRequest) <= 1


def test_an_image_that_has_become_active_is_believed_at_once(picky, region):
    server = str(uuid.uuid4())
    image_id = fresh(region, status=IMAGE_SAVING, server_uuid=server, project_id="demo", operation_id="o")
    assert picky.create(imageRef=image_id).fault == ("badRequest", 400, f"Image {image_id} is not active.")
    finish(region, image_id, server)
    assert picky.create(imageRef=image_id).status == 202


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"min_ram_mb": 513}, "Flavor's memory is too small for requested image."),
        (
            {"min_disk_gb": 2},
            "Flavor's disk is smaller than the minimum size specified in image metadata. "
            "Flavor disk is 1073741824 bytes, minimum size is 2147483648 bytes.",
        ),
        (
            {"size_bytes": (1 << 30) + 1},
            "Flavor's disk is too small for requested image. "
            "Flavor disk is 1073741824 bytes, image is 1073741825 bytes.",
        ),
    ],
)  # fmt: skip
def test_a_flavor_too_small_for_the_image_is_refused(client, picky, region, fields, words):
    image_id = fresh(region, **fields)
    assert picky.create(imageRef=image_id).fault == ("badRequest", 400, words)
    server = server_in(client, region)
    for body in ({"rebuild": {"imageRef": image_id}}, {"rescue": {"rescue_image_ref": image_id}}):
        assert act(client, server, body).fault == ("badRequest", 400, words)
    assert not called(region.c2, m.INSTANCE_ACTION)


def test_a_flavor_without_a_disk_has_one_as_large_as_the_image():
    check_usable(
        replace(BASE, min_disk_gb=9, size_bytes=1 << 40),
        Flavor(flavorid="1", name="n", vcpus=1, memory_mb=1, root_gb=0),
    )


def test_a_rebuild_and_a_rescue_look_their_image_up(client, picky, region):
    server, absent, saving = server_in(client, region), str(uuid.uuid4()), fresh(region, status=IMAGE_SAVING)
    rebuild, rescue = {"rebuild": {"imageRef": absent}}, {"rescue": {"rescue_image_ref": absent}}
    assert act(picky, server, rebuild).fault == ("badRequest", 400, "Cannot find image for rebuild")
    said = f"Requested rescue image '{absent}' is not supported"
    assert act(picky, server, rescue).fault == ("badRequest", 400, said)
    not_active = ("badRequest", 400, f"Image {saving} is not active.")
    for who in (client, picky):
        assert act(who, server, {"rebuild": {"imageRef": saving}}).fault == not_active
        assert act(who, server, {"rescue": {"rescue_image_ref": saving}}).fault == not_active
    assert not called(region.c2, m.INSTANCE_ACTION)
    assert act(picky, server, {"rescue": None}).status == 200
    assert act(client, server, rebuild).status == 202


def test_the_id_of_an_image_is_made_of_its_operation():
    assert image_id_of("demo", "op") == image_id_of("demo", "op") != image_id_of("other", "op")
    assert str(uuid.UUID(image_id_of("demo", "op"))) == image_id_of("demo", "op")
