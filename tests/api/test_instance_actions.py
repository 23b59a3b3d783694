"""What was done with a server, as Nova 2.1 shows it."""

from tests.api.test_actions import server_in
from tests.api.test_servers import NOWHERE
from zcompute.objects import methods as m
from zcompute.objects.history import InstanceAction, InstanceActionEvent

REQUEST = "req-01234567-89ab-cdef-0123-456789abcdef"
START_US = 1_700_000_000_000_001


def history(server: str) -> m.InstanceActionsReply:
    stop = InstanceAction(
        instance_uuid=server, operation_id="op-2", action="stop", request_id=REQUEST, user_id="ann", project_id="demo",
        started_at_us=START_US, finished_at_us=START_US + 1, result="Error", message="no power",
    )  # fmt: skip
    create = InstanceAction(instance_uuid=server, operation_id="op-1", action="create", request_id="req-1")
    event = InstanceActionEvent(
        instance_uuid=server, operation_id="op-2", task_id="t", event="stop_apply", started_at_us=START_US,
        finished_at_us=START_US + 1, result="Error", message="no power",
    )  # fmt: skip
    other = InstanceActionEvent(instance_uuid=server, operation_id="op-1", task_id="t", event="build_spawn")
    under_way = InstanceActionEvent(instance_uuid=server, operation_id="op-2", task_id="t2", event="stop_apply")
    return m.InstanceActionsReply(actions=[stop, create], events=[event, other], under_way=under_way)


def test_the_operations_of_a_server_are_listed_newest_first_with_why_they_failed(client, region):
    server = server_in(client, region)
    region.c2.histories[server] = history(server)
    first, second = client.get(f"/v2.1/servers/{server}/os-instance-actions").body["instanceActions"]
    assert first == {
        "action": "stop", "instance_uuid": server, "request_id": REQUEST, "user_id": "ann", "project_id": "demo",
        "start_time": "2023-11-14T22:13:20.000001", "message": "no power",
    }  # fmt: skip
    assert (second["action"], second["message"]) == ("create", None)


def test_one_operation_is_shown_by_its_request_with_its_steps_to_administrators(client, admin, region):
    server = server_in(client, region)
    region.c2.histories[server] = history(server)
    path = f"/v2.1/servers/{server}/os-instance-actions/{REQUEST}"
    assert "events" not in client.get(path).body["instanceAction"]
    under_way, ended = admin.get(path).body["instanceAction"]["events"]
    assert (under_way["event"], under_way["finish_time"], under_way["result"]) == ("stop_apply", None, None)
    assert (ended["result"], ended["traceback"]) == ("Error", "no power")
    fault = client.get(f"/v2.1/servers/{server}/os-instance-actions/req-none").fault
    assert fault == ("itemNotFound", 404, f"Action for request_id req-none on instance {server} not found")


def test_a_server_that_no_cell_has_is_being_created(client, region):
    server = client.created()
    (action,) = client.get(f"/v2.1/servers/{server}/os-instance-actions").body["instanceActions"]
    assert (action["action"], action["project_id"], action["user_id"]) == ("create", "demo", "ann")


def test_histories_of_foreign_absent_and_misnamed_servers_are_not_found(client, other, region):
    server = server_in(client, region)
    region.c2.histories[server] = history(server)
    assert client.get(f"/v2.1/servers/{server}").status == 200
    for who, where in ((other, server), (client, NOWHERE), (client, "no-uuid")):
        assert who.get(f"/v2.1/servers/{where}/os-instance-actions").fault[:2] == ("itemNotFound", 404)
        assert who.get(f"/v2.1/servers/{where}/os-instance-actions/{REQUEST}").fault[:2] == ("itemNotFound", 404)
