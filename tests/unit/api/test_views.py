import hashlib

import msgspec
import pytest

from tests.unit.api.servers import build_request, instance
from zcompute.api.links import resource_links
from zcompute.api.views import iso_time, server_summaries, server_view
from zcompute.objects.build_request import BUILD_ERROR
from zcompute.objects.instance import Fault, ServerSpec
from zcompute.objects.server_list import instance_of

BASE = "http://api:8774"


def view(found, *, is_admin=False) -> dict:
    return msgspec.json.decode(msgspec.json.encode(server_view(found, BASE, is_admin=is_admin)))


def test_a_whole_server_as_nova_2_1_shows_it():
    spec = ServerSpec(image_ref="img", metadata={"a": "b"}, availability_zone="az1", key_name="k", config_drive=True)
    found = instance(
        "u1", spec=spec, vm_state="active", task_state=None, power_state=1, host="h1", progress=100,
        created_at_us=1_700_000_000_000_000, updated_at_us=1_700_000_001_500_000, launched_at_us=1_700_000_001_000_002,
    )  # fmt: skip
    assert view(found, is_admin=True) == {
        "id": "u1",
        "name": "web",
        "status": "ACTIVE",
        "tenant_id": "demo",
        "user_id": "ann",
        "metadata": {"a": "b"},
        "hostId": hashlib.sha224(b"demoh1").hexdigest(),
        "image": {"id": "img", "links": [{"rel": "bookmark", "href": f"{BASE}/images/img"}]},
        "flavor": {"id": "1", "links": [{"rel": "bookmark", "href": f"{BASE}/flavors/1"}]},
        "created": "2023-11-14T22:13:20Z",
        "updated": "2023-11-14T22:13:21Z",
        "addresses": {},
        "accessIPv4": "",
        "accessIPv6": "",
        "links": [
            {"rel": "self", "href": f"{BASE}/v2.1/servers/u1"},
            {"rel": "bookmark", "href": f"{BASE}/servers/u1"},
        ],
        "OS-DCF:diskConfig": "MANUAL",
        "progress": 100,
        "OS-EXT-AZ:availability_zone": "az1",
        "config_drive": "True",
        "key_name": "k",
        "OS-SRV-USG:launched_at": "2023-11-14T22:13:21.000002",
        "OS-SRV-USG:terminated_at": None,
        "OS-EXT-SRV-ATTR:host": "h1",
        "OS-EXT-SRV-ATTR:hypervisor_hostname": "h1",
        "OS-EXT-SRV-ATTR:instance_name": "instance-u1",
        "OS-EXT-STS:task_state": None,
        "OS-EXT-STS:vm_state": "active",
        "OS-EXT-STS:power_state": 1,
        "os-extended-volumes:volumes_attached": [],
    }


def test_what_is_an_administrators_is_left_out_for_others():
    assert not [key for key in view(instance("u1", host="h1")) if key.startswith("OS-EXT-SRV-ATTR")]


def test_a_server_without_image_or_host_has_empty_ones():
    shown = view(instance("u1"))
    assert (shown["image"], shown["hostId"], shown["status"]) == ("", "", "BUILD")


@pytest.mark.parametrize(
    ("code", "is_admin", "has_details"), [(500, False, False), (500, True, True), (404, False, True)]
)
def test_details_of_a_fault_are_for_administrators_unless_they_are_the_clients_fault(code, is_admin, has_details):
    fault = Fault(message="m", code=code, details="d", created_at_us=0)
    shown = view(instance("u1", vm_state="error", fault=fault), is_admin=is_admin)["fault"]
    assert shown == {"code": code, "created": "1970-01-01T00:00:00Z", "message": "m"} | (
        {"details": "d"} if has_details else {}
    )


def test_a_fault_is_shown_in_error_only():
    assert "fault" not in view(instance("u1", vm_state="active", fault=Fault(message="m")))
    assert "progress" not in view(instance("u1", vm_state="error"))


def test_a_build_request_becomes_the_instance_that_it_will_be():
    pending = build_request("u1", generation=3, created_at_us=7)
    shown = instance_of(pending)
    assert (shown.vm_state, shown.task_state, shown.mapping_generation) == ("building", "scheduling", 3)
    failed = instance_of(build_request("u1", state=BUILD_ERROR, fault=Fault(message="m", created_at_us=9)))
    assert (failed.vm_state, failed.task_state, failed.updated_at_us) == ("error", None, 9)


def test_times_are_cut_to_the_second():
    assert iso_time(1_999_999) == "1970-01-01T00:00:01Z"


@pytest.mark.parametrize("base", [BASE, 'http://a"b\\c'])
def test_what_is_written_as_bytes_is_what_an_encoder_writes(base):
    found = [instance("u1", name='a "name" \u00e9'), instance("u2", name="")]
    links = [msgspec.to_builtins(resource_links(base, "servers", each.uuid)) for each in found]
    summaries = msgspec.json.decode(msgspec.json.encode({"servers": server_summaries(found, base)}))
    assert summaries["servers"] == [
        {"id": each.uuid, "name": each.name, "links": own} for each, own in zip(found, links, strict=True)
    ]
    assert msgspec.json.decode(msgspec.json.encode(server_view(found[0], base, is_admin=False)))["links"] == links[0]


def test_no_servers_are_an_empty_list():
    assert msgspec.json.encode({"servers": server_summaries([], BASE)}) == b'{"servers":[]}'
