"""Moves that are asked for wrongly: refused with Nova's code and words, through the whole API; nothing changes.

The cell is a fake which begins an action as a conductor does. What is found out later only (no room, a destination that
is too old) ends the task: tests/unit/conductor/cell/test_moves.py, and how it is shown at the end of this file.
"""

from typing import Any

import msgspec
import pytest

from tests.api.test_actions import act, server_in
from zcompute.objects.flavor import Flavor
from zcompute.objects.history import RESULT_ERROR, InstanceAction
from zcompute.objects.instance import Move
from zcompute.objects.messages.instances import InstanceActionsReply

NO_SPACE = "No valid host was found. h2: not enough memory_mb"
TOO_OLD = "No valid host was found. h2: the agent of host h2 is of an older release: it knows no step"


def waits() -> Move:
    flavor = Flavor(flavorid="1", name="f", vcpus=1, memory_mb=1, root_gb=1)
    return Move(
        kind="migrate", former_host="h0", former_claim="t/1", former_flavor=flavor, former_vm_state="active", since_us=1
    )


def live(host: str | None = None) -> dict[str, Any]:
    return {"os-migrateLive": {"host": host, "block_migration": False, "disk_over_commit": False}}


def evacuate(host: str | None = None) -> dict[str, Any]:
    return {"evacuate": {"onSharedStorage": False} | ({} if host is None else {"host": host})}


def conflict(name: str, where: str) -> tuple[str, int, str]:
    return "conflictingRequest", 409, f"Cannot '{name}' instance {{uuid}} while it is in {where}"


def forbidden(name: str) -> tuple[str, int, str]:
    return "forbidden", 403, f"Policy doesn't allow {name} to be performed."


CONFIRM, REVERT, MIGRATE = {"confirmResize": None}, {"revertResize": None}, {"migrate": None}
LIVE = "os-migrateLive"
CASES = {
    "live, paused": (live(), {"vm_state": "paused"}, conflict(LIVE, "vm_state paused")),
    "live, shut off": (live(), {"vm_state": "stopped"}, conflict(LIVE, "vm_state stopped")),
    "live, in error": (live(), {"vm_state": "error"}, conflict(LIVE, "vm_state error")),
    "live, busy": (live(), {"task_state": "rebooting"}, conflict(LIVE, "task_state rebooting")),
    "live, to itself": (
        live("h1"), {}, ("badRequest", 400, "Unable to migrate instance ({uuid}) to current host (h1)."),
    ),
    "live, waits": (live(), {"vm_state": "resized", "move": waits()}, conflict(LIVE, "vm_state resized")),
    "cold, paused": (MIGRATE, {"vm_state": "paused"}, conflict("migrate", "vm_state paused")),
    "cold, twice": (MIGRATE, {"vm_state": "resized", "move": waits()}, conflict("migrate", "vm_state resized")),
    "cold, under way": (MIGRATE, {"task_state": "resize_prep"}, conflict("migrate", "task_state resize_prep")),
    "evacuate, up": (evacuate(), {}, ("badRequest", 400, "Compute service of h1 is still in use.")),
    "evacuate, to itself": (evacuate("h1"), {}, ("badRequest", 400, "The target host can't be the same one.")),
    "evacuate, paused": (evacuate(), {"vm_state": "paused"}, conflict("evacuate", "vm_state paused")),
    "confirm, nothing": (CONFIRM, {}, conflict("confirmResize", "vm_state active")),
    "revert, nothing": (REVERT, {}, conflict("revertResize", "vm_state active")),
    "confirm, twice": (
        CONFIRM,
        {"vm_state": "resized", "task_state": "resize_confirming", "move": waits()},
        conflict("confirmResize", "task_state resize_confirming"),
    ),
    "revert, after confirm": (
        REVERT,
        {"vm_state": "resized", "task_state": "resize_confirming", "move": waits()},
        conflict("revertResize", "task_state resize_confirming"),
    ),
    "confirm, after revert": (
        CONFIRM,
        {"vm_state": "resized", "task_state": "resize_reverting", "move": waits()},
        conflict("confirmResize", "task_state resize_reverting"),
    ),
    "revert, to a dead host": (
        REVERT,
        {"vm_state": "resized", "move": msgspec.structs.replace(waits(), former_host="dead")},
        ("conflictingRequest", 409, "Cannot 'revertResize' instance {uuid}: its former host dead is forced down"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_move_that_is_asked_for_wrongly_is_refused_in_novas_words(admin, region, case):
    body, state, (name, code, words) = CASES[case]
    region.c2.forced_down.add("dead")
    server = server_in(admin, region, **state)
    before = msgspec.structs.replace(region.c2.instances[server])
    assert act(admin, server, body).fault == (name, code, words.format(uuid=server))
    assert region.c2.instances[server] == before


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (live(), forbidden("live-migration")),
        (MIGRATE, forbidden("migrate")),
        (evacuate(), forbidden("evacuate")),
        (CONFIRM, ("conflictingRequest", 409, "Instance {uuid} is locked")),
        (REVERT, ("conflictingRequest", 409, "Instance {uuid} is locked")),
        ({"resize": {"flavorRef": "2"}}, ("conflictingRequest", 409, "Instance {uuid} is locked")),
    ],
    ids=["live", "cold", "evacuate", "confirm", "revert", "resize"],
)
def test_a_lock_and_the_policy_keep_users_from_moves_and_administrators_from_none(client, admin, region, body, fault):
    """As in Nova an administrator may do what a lock refuses."""
    waiting = body in (CONFIRM, REVERT)
    state = {"vm_state": "resized", "move": waits()} if waiting else {}
    server = server_in(client, region, locked=True, locked_by_admin=True, **state)
    before = msgspec.structs.replace(region.c2.instances[server])
    name, code, words = fault
    assert act(client, server, body).fault == (name, code, words.format(uuid=server))
    assert region.c2.instances[server] == before
    region.c2.forced_down.add("h1")
    assert act(admin, server, body).status in (200, 202, 204)


@pytest.mark.parametrize("host", ["h1", None])
def test_an_evacuation_of_a_host_that_is_forced_down_goes_anywhere_but_there(admin, region, host):
    region.c2.forced_down.add("h1")
    server = server_in(admin, region)
    assert act(admin, server, evacuate(host)).status == (400 if host else 200)


@pytest.mark.parametrize("why", [NO_SPACE, TOO_OLD])
def test_what_is_found_out_later_is_in_the_servers_history_and_the_server_as_it_was(admin, region, why):
    server = server_in(admin, region)
    assert act(admin, server, MIGRATE).status == 202
    failed = InstanceAction(
        instance_uuid=server, operation_id="op", action="migrate", request_id="req-1", project_id="ops",
        started_at_us=1, finished_at_us=2, result=RESULT_ERROR, message=why,
    )  # fmt: skip
    region.c2.histories[server] = InstanceActionsReply(actions=[failed], events=[])
    (shown,) = admin.get(f"/v2.1/servers/{server}/os-instance-actions").body["instanceActions"]
    assert (shown["action"], shown["message"]) == ("migrate", why)
    found = admin.get(f"/v2.1/servers/{server}").body["server"]
    assert (found["status"], "fault" in found) == ("ACTIVE", False)
