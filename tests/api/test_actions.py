"""POST /servers/ID/action: what reaches the cell, what is answered, and what is refused before anybody is asked."""

import msgspec
import pytest

from tests.api.test_servers import NOWHERE, called
from zcompute.api.action_bodies import KEYS
from zcompute.objects import methods as m
from zcompute.objects.actions import ACTIONS
from zcompute.objects.errors import (
    ActionForbidden,
    ActionInvalid,
    InstanceLocked,
    InstanceNotFound,
    OperationConflict,
    QuotaExceeded,
)

# A body of each key, the action that it asks for, and a state in which that is allowed.
BODIES = [
    ("os-start", None, "start", "stopped"),
    ("os-stop", {}, "stop", "active"),
    ("reboot", {"type": "SOFT"}, "reboot_soft", "active"),
    ("reboot", {"type": "Hard"}, "reboot_hard", "suspended"),
    ("pause", None, "pause", "active"),
    ("unpause", None, "unpause", "paused"),
    ("suspend", None, "suspend", "active"),
    ("resume", None, "resume", "suspended"),
    ("rescue", None, "rescue", "stopped"),
    ("unrescue", None, "unrescue", "rescued"),
    ("rebuild", {"imageRef": "i2"}, "rebuild", "stopped"),
    ("restore", None, "restore", "soft-delete"),
    ("resize", {"flavorRef": "2", "OS-DCF:diskConfig": "MANUAL"}, "resize", "active"),
    ("shelve", None, "shelve", "active"),
    ("shelveOffload", None, "shelve_offload", "shelved"),
    ("unshelve", {}, "unshelve", "shelved_offloaded"),
    ("lock", None, "lock", "error"),
    ("unlock", None, "unlock", "error"),
    ("os-resetState", {"state": "error"}, "reset_state", "active"),
]


def server_in(client, region, vm_state="active", **changes):
    server = client.created()
    fields = {"vm_state": vm_state, "task_state": None, "host": "h1", "launched_at_us": 1}
    region.hand_over(server, region.c2, **(fields | changes))
    return server


def act(client, server, body, headers=None):
    return client.ask("POST", f"/v2.1/servers/{server}/action", body, headers)


@pytest.mark.parametrize(("key", "value", "action", "vm_state"), BODIES)
def test_an_action_reaches_the_servers_cell(admin, region, key, value, action, vm_state):
    server = server_in(admin, region, vm_state)
    answer = act(admin, server, {key: value})
    assert answer.status == (200 if key == "rescue" else 202), answer.raw
    (request,) = called(region.c2, m.INSTANCE_ACTION)
    assert (request.uuid, request.project_id, request.action) == (server, "ops", action)
    assert (request.administrator, request.vm_state) == (True, "error" if key == "os-resetState" else "")


def test_every_key_is_tried_here_and_every_action_is_one_that_there_is():
    assert {key for key, *_ in BODIES} <= set(KEYS)
    assert {action for _, _, action, _ in BODIES} <= set(ACTIONS)


@pytest.mark.parametrize(("key", "value", "action", "vm_state"), BODIES[:12])
def test_what_a_state_forbids_is_a_conflict_in_novas_words(client, region, key, value, action, vm_state):
    server = server_in(client, region, "shelved")
    name = ACTIONS[action].name
    expected = f"Cannot '{name}' instance {server} while it is in vm_state shelved"
    assert act(client, server, {key: value}).fault == ("conflictingRequest", 409, expected)


def test_a_locked_server_is_a_conflict_but_for_administrators(client, admin, region):
    server = server_in(client, region, locked=True)
    assert act(client, server, {"pause": None}).fault == ("conflictingRequest", 409, f"Instance {server} is locked")
    assert act(admin, server, {"pause": None}).status == 202


def test_a_locked_server_is_not_deleted_and_the_answer_does_not_wait(client, admin, region):
    server = server_in(client, region, locked=True)

    def locked():
        raise InstanceLocked(f"Instance {server} is locked", uuid=server)

    region.c2.before[m.INSTANCE_DELETE] = locked
    fault = client.ask("DELETE", f"/v2.1/servers/{server}").fault
    assert fault == ("conflictingRequest", 409, f"Instance {server} is locked")
    assert [request.administrator for request in called(region.c2, m.INSTANCE_DELETE)] == [False]


def test_what_the_cell_says_is_for_administrators_is_forbidden(client, region):
    server = server_in(client, region)

    def forbidden():
        raise ActionForbidden("Policy doesn't allow it to be performed.", uuid=server, action="unlock")

    region.c2.before[m.INSTANCE_ACTION] = forbidden
    fault = act(client, server, {"unlock": None}).fault
    assert fault == ("forbidden", 403, "Policy doesn't allow it to be performed.")


def test_a_server_that_no_cell_has_yet_is_building(client, region):
    server = client.created()
    fault = act(client, server, {"os-stop": None}).fault
    assert fault == ("conflictingRequest", 409, f"Cannot 'stop' instance {server} while it is in vm_state building")
    assert act(client, server, {"lock": None}).status == 409


def test_only_administrators_reset_a_state(client, region):
    server = server_in(client, region)
    fault = act(client, server, {"os-resetState": {"state": "active"}}).fault
    assert fault[:2] == ("forbidden", 403)
    assert not called(region.c2, m.INSTANCE_ACTION)


def test_foreign_absent_and_misnamed_servers_are_not_found(client, other, region):
    server = server_in(client, region)
    assert act(client, server, {"pause": None}).status == 202  # its place is known from here on
    for who, where in ((other, server), (client, NOWHERE), (client, "no-uuid")):
        assert act(who, where, {"pause": None}).fault[:2] == ("itemNotFound", 404)


def test_an_action_follows_a_server_to_another_cell(client, region):
    server = server_in(client, region)
    assert act(client, server, {"lock": None}).status == 202
    region.root.mappings[server].cell = "c1"
    region.c1.instances[server] = region.c2.instances.pop(server)
    assert act(client, server, {"pause": None}).status == 202
    assert len(called(region.c1, m.INSTANCE_ACTION)) == 1


def test_a_server_that_is_gone_from_its_cell_is_not_found(client, region):
    server = server_in(client, region)

    def gone():
        raise InstanceNotFound("gone", uuid=server)

    region.c2.before[m.INSTANCE_ACTION] = gone
    assert act(client, server, {"pause": None}).status == 404


def test_a_key_makes_a_repeat_the_same_operation(client, other, region):
    server = server_in(client, region)
    for _ in range(2):
        assert act(client, server, {"reboot": {"type": "HARD"}}, {"Idempotency-Key": "once"}).status == 202
    act(client, server, {"reboot": {"type": "HARD"}})
    first, second, third = (request.operation_id for request in called(region.c2, m.INSTANCE_ACTION))
    assert first == second != third
    assert act(client, server, {"pause": None}, {"Idempotency-Key": "\x7f"}).status == 400

    def used():
        raise OperationConflict("used", operation_id=first)

    region.c2.before[m.INSTANCE_ACTION] = used
    fault = act(client, server, {"pause": None}, {"Idempotency-Key": "once"}).fault
    assert fault == ("conflictingRequest", 409, "Idempotency-Key was used before for another request.")


def test_a_rescue_answers_with_the_password_that_the_host_is_told(client, region):
    server = server_in(client, region)
    given = act(client, server, {"rescue": {"adminPass": "secret", "rescue_image_ref": "http://any/images/i1"}})
    made = act(client, server, {"rescue": None}, {"Idempotency-Key": "k"})
    again = act(client, server, {"rescue": None}, {"Idempotency-Key": "k"})
    first, second, _ = called(region.c2, m.INSTANCE_ACTION)
    assert (given.body, first.arguments.password, first.arguments.image_ref) == (
        {"adminPass": "secret"},
        "secret",
        "i1",
    )
    assert made.body == again.body == {"adminPass": second.arguments.password}
    assert len(second.arguments.password) == 12


def test_a_forced_delete_is_one_that_does_not_wait(client, region):
    server = server_in(client, region, "soft-delete")
    assert act(client, server, {"forceDelete": None}).status == 202
    (request,) = called(region.c2, m.INSTANCE_DELETE)
    assert (request.uuid, request.force) == (server, True)
    assert act(client, server, {"forceDelete": None}).status == 404


def test_a_rebuild_answers_with_the_server_and_its_password(client, region):
    server = server_in(client, region)
    body = {"imageRef": "http://any/images/i2", "name": "new", "metadata": {"a": "b"}, "adminPass": "secret"}
    answer = act(client, server, {"rebuild": body})
    assert answer.status == 202
    assert (answer.body["server"]["id"], answer.body["server"]["adminPass"]) == (server, "secret")
    assert answer.headers["Location"].endswith(f"/v2.1/servers/{server}")
    (request,) = called(region.c2, m.INSTANCE_ACTION)
    assert (request.arguments.image_ref, request.name, request.metadata) == ("i2", "new", {"a": "b"})


def test_a_resize_takes_the_whole_flavor_along(client, region):
    server = server_in(client, region)
    assert act(client, server, {"resize": {"flavorRef": "http://any/flavors/2"}}).status == 202
    (request,) = called(region.c2, m.INSTANCE_ACTION)
    assert request.arguments.flavor == region.root.flavors["2"]


def test_a_flavor_that_a_server_may_not_become_is_as_one_that_is_not_there(client, admin, region, monkeypatch):
    server = server_in(client, region)
    (secret,) = [flavor.flavorid for flavor in region.root.flavors.values() if not flavor.is_public]
    fault = act(client, server, {"resize": {"flavorRef": secret}}).fault
    assert fault == ("badRequest", 400, f"Flavor {secret} could not be found.")
    assert act(admin, server, {"resize": {"flavorRef": secret}}).status == 202
    monkeypatch.setitem(region.root.flavors, "2", msgspec.structs.replace(region.root.flavors["2"], disabled=True))
    assert act(admin, server, {"resize": {"flavorRef": "2"}}).status == 400


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (QuotaExceeded("Quota exceeded for cores"), ("forbidden", 403, "Quota exceeded for cores")),
        (
            ActionInvalid("When resizing, instances must change flavor!"),
            ("badRequest", 400, "When resizing, instances must change flavor!"),
        ),
    ],
)
def test_what_the_cell_says_of_a_resize_is_answered_in_novas_words(client, region, error, fault):
    server = server_in(client, region)

    def refused():
        raise error

    region.c2.before[m.INSTANCE_ACTION] = refused
    assert act(client, server, {"resize": {"flavorRef": "2"}}).fault == fault


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "empty body"),
        ("[]", "Expected `object`"),
        ("{}", "found none"),
        ({"pause": None, "unpause": None}, "too many body keys"),
        ({"explode": None}, "There is no such action: explode"),
        ({"x" * 500: None}, "There is no such action: xxx"),
        ({"pause": 5}, "body"),
        ({"pause": {"now": True}}, "'now' was unexpected"),
        ({"reboot": None}, "body"),
        ({"reboot": {}}, "'type' is a required property"),
        ({"reboot": {"type": "WARM"}}, "attribute type"),
        ({"reboot": {"type": 1}}, "attribute type"),
        ({"reboot": {"type": "HARD", "force": True}}, "'force' was unexpected"),
        ({"rescue": {"adminPass": ""}}, "attribute adminPass"),
        ({"rescue": {"image": "i"}}, "'image' was unexpected"),
        ({"rebuild": {}}, "'imageRef' is a required property"),
        ({"rebuild": {"imageRef": ""}}, "attribute imageRef"),
        ({"rebuild": {"imageRef": "i", "name": " x"}}, "name"),
        ({"rebuild": {"imageRef": "i", "metadata": {"a": 1}}}, "attribute metadata"),
        ({"rebuild": {"imageRef": "i", "personality": []}}, "personality"),
        ({"rebuild": {"imageRef": "i", "preserve_ephemeral": True}}, "preserve_ephemeral"),
        ({"resize": {}}, "'flavorRef' is a required property"),
        ({"resize": {"flavorRef": ""}}, "attribute flavorRef"),
        ({"resize": {"flavorRef": "2", "OS-DCF:diskConfig": "AUTO"}}, "attribute OS-DCF:diskConfig"),
        ({"resize": {"flavorRef": "2", "host": "h"}}, "'host' was unexpected"),
        ({"resize": {"flavorRef": "no such"}}, "Flavor no such could not be found."),
        ({"resize": {"flavorRef": "f" * 256}}, "attribute flavorRef"),
        ({"os-resetState": {"state": "deleted"}}, "attribute state"),
        ({"os-resetState": {}}, "'state' is a required property"),
    ],
)
def test_a_wrong_body_is_refused_by_name_and_nobody_is_asked(client, region, body, says):
    server = server_in(client, region)
    fault = act(client, server, body).fault
    assert fault[:2] == ("badRequest", 400)
    assert says in fault[2]
    assert len(fault[2]) < 300
    assert not called(region.c2, m.INSTANCE_ACTION)


def test_only_post_is_served(client, region):
    assert client.get(f"/v2.1/servers/{NOWHERE}/action").fault[:2] == ("badMethod", 405)


@pytest.mark.parametrize(
    ("vm_state", "task_state", "status"),
    [
        ("stopped", None, "SHUTOFF"),
        ("paused", None, "PAUSED"),
        ("suspended", "resuming", "SUSPENDED"),
        ("rescued", None, "RESCUE"),
        ("active", "rebooting", "REBOOT"),
        ("active", "rebooting_hard", "HARD_REBOOT"),
        ("active", "powering-off", "ACTIVE"),
        ("active", "migrating", "MIGRATING"),
        ("paused", "migrating", "MIGRATING"),
        ("error", "rebuilding", "REBUILD"),
        ("stopped", "resize_prep", "RESIZE"),
        ("resized", None, "VERIFY_RESIZE"),
        ("resized", "resize_confirming", "VERIFY_RESIZE"),
        ("resized", "resize_reverting", "REVERT_RESIZE"),
    ],
)
def test_a_server_is_shown_with_novas_status_and_found_by_it(client, region, vm_state, task_state, status):
    server = server_in(client, region, vm_state, task_state=task_state)
    assert client.get(f"/v2.1/servers/{server}").body["server"]["status"] == status
    server_in(client, region, "suspended" if vm_state != "suspended" else "paused")
    client.created()
    assert listed(client, f"status={status}") == [server]


def listed(client, query):
    return [found["id"] for found in client.get(f"/v2.1/servers?{query}").body["servers"]]


def test_a_list_by_the_status_of_a_vm_state_has_what_is_under_way_there_as_in_nova(client, region):
    rests = server_in(client, region, "active")
    reboots = server_in(client, region, "active", task_state="rebooting")
    assert set(listed(client, "status=ACTIVE")) == {rests, reboots}
    assert set(listed(client, "status=REBOOT&status=SHUTOFF")) == {rests, reboots}
    assert set(listed(client, "status=REBOOT&status=RESIZE")) == {reboots}
    assert listed(client, "status=PASSWORD") == listed(client, "status=NO_SUCH") == []


def test_soft_deleted_servers_are_in_no_list_but_that_of_administrators_who_ask(client, admin, region):
    kept, gone = server_in(client, region, "active"), server_in(client, region, "soft-delete")
    assert client.get(f"/v2.1/servers/{gone}").body["server"]["status"] == "SOFT_DELETED"
    assert listed(client, "") == listed(client, "soft_deleted=1") == [kept]
    assert listed(client, "status=SOFT_DELETED") == []
    every = "all_tenants=1"
    assert listed(admin, every) == [kept]
    assert listed(admin, f"{every}&deleted=1&status=SOFT_DELETED") == listed(admin, f"{every}&deleted=1") == [gone]
    assert listed(admin, f"{every}&deleted=1&soft_deleted=0") == []
    assert set(listed(admin, f"{every}&soft_deleted=1")) == {kept, gone}
    assert admin.get("/v2.1/servers?soft_deleted=perhaps").fault[1] == 400
