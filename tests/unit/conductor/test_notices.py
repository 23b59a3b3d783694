"""What is told of a row that changes, as a function of the row before and after."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.conductor.tasks.samples import NOW_US, host, spawning
from zcompute.conductor.notices import (
    build_request_error,
    instance_event,
    instance_exists,
    instance_update,
    service_change,
)
from zcompute.objects.build_request import BUILD_ERROR, BuildRequest
from zcompute.objects.host import HOST_DOWN
from zcompute.objects.instance import POWER_RUNNING, POWER_SHUTDOWN, VM_ACTIVE, Fault
from zcompute.objects.notification import Notification, document, payload_document

INSTANCE, _ = spawning()
replace = msgspec.structs.replace


def data_of(notification: Notification | None) -> dict[str, Any]:
    assert notification is not None
    data: dict[str, Any] = payload_document(notification.payload)["data"]
    return data


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"vm_state": VM_ACTIVE}, {"old_state": "building", "state": "active"}),
        ({"task_state": None}, {"old_task_state": "spawning", "new_task_state": None}),
        ({"power_state": POWER_RUNNING}, {"old_power_state": "pending", "power_state": "running"}),
        ({"name": "renamed"}, {}),
    ],
)
def test_a_change_of_states_or_name_is_told_with_what_was_before(fields: dict[str, Any], told: dict[str, Any]) -> None:
    data = data_of(instance_update(INSTANCE, replace(INSTANCE, **fields), "req-1"))
    assert told.items() <= data["state_update"].items()
    assert data["old_display_name"] == (INSTANCE.name if "name" in fields else None)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "progress": st.integers(0, 100),
            "observed_seq": st.integers(0, 9),
            "command_generation": st.integers(0, 9),
            "revision": st.integers(1, 9),
            "updated_at_us": st.integers(0, 9),
            "host": st.text(max_size=3),
        },
    )
)
def test_what_no_consumer_asks_for_is_not_told(fields: dict[str, Any]) -> None:
    assert instance_update(INSTANCE, replace(INSTANCE, **fields), "") is None


def test_a_new_server_has_no_states_before() -> None:
    update = data_of(instance_update(None, INSTANCE, ""))["state_update"]
    assert (update["old_state"], update["old_task_state"], update["old_power_state"]) == (None, None, None)


def test_an_unknown_power_state_has_a_word_too() -> None:
    after = replace(INSTANCE, power_state=POWER_SHUTDOWN)
    assert data_of(instance_update(INSTANCE, after, ""))["power_state"] == "shutdown"
    assert data_of(instance_update(after, replace(INSTANCE, power_state=99), ""))["power_state"] == "pending"


def test_a_phase_that_failed_says_why_and_is_an_error() -> None:
    failed = instance_event("instance.create.error", INSTANCE, "req-1", "no space")
    assert (failed.priority, data_of(failed)["fault"]["exception_message"]) == ("ERROR", "no space")
    began = instance_event("instance.create.start", INSTANCE, "req-1")
    assert (began.priority, data_of(began)["fault"]) == ("INFO", None)


def test_an_audit_names_its_period() -> None:
    period = data_of(instance_exists(INSTANCE, NOW_US, NOW_US + 1))["audit_period"]
    assert (period["audit_period_beginning_us"], period["audit_period_ending_us"]) == (NOW_US, NOW_US + 1)


def test_a_host_is_told_when_it_is_new_and_when_its_service_changes() -> None:
    known = host()
    created = service_change(None, known)
    assert created is not None
    assert created.event_type == "service.create"
    for fields in ({"state": HOST_DOWN}, {"disabled": True}, {"forced_down": True}, {"agent_epoch": 2}):
        changed = service_change(known, replace(known, **fields))
        assert changed is not None
        assert changed.event_type == "service.update"
    assert service_change(known, replace(known, instances=7, revision=9, updated_at_us=5)) is None


def test_a_document_names_itself_and_opens_its_payload() -> None:
    told = instance_event("instance.create.start", INSTANCE, "req-1")
    shown = document("c1", 7, 42, told)
    assert (shown["cell"], shown["partition"], shown["n"]) == ("c1", 7, 42)
    assert shown["payload"]["name"] == "InstanceActionPayload"
    assert shown["payload"]["data"]["uuid"] == INSTANCE.uuid
    assert document("c1", 7, 42, replace(told, payload=b"", truncated=True))["payload"] == {}


def test_a_server_that_no_cell_took_is_told_once_with_the_reason() -> None:
    pending = BuildRequest(
        uuid=INSTANCE.uuid,
        project_id="p",
        user_id="u",
        name="n",
        flavor=INSTANCE.flavor,
        spec=INSTANCE.spec,
        operation_id="op",
        request_id="req-1",
        created_at_us=5,
    )
    failed = replace(pending, state=BUILD_ERROR, fault=Fault(message="No valid host was found.", code=500))
    told = build_request_error(pending, failed, NOW_US)
    assert told is not None
    assert (told.event_type, told.priority, told.request_id) == ("instance.create.error", "ERROR", "req-1")
    data = data_of(told)
    assert (data["state"], data["task_state"], data["tenant_id"], data["created_at_us"]) == ("error", None, "p", 5)
    assert data["fault"]["exception_message"] == "No valid host was found."
    assert build_request_error(failed, replace(failed, revision=9), NOW_US) is None
    assert build_request_error(None, pending, NOW_US) is None
    assert build_request_error(pending, replace(pending, cell="c2"), NOW_US) is None
