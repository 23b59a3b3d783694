"""/servers/ID/os-instance-actions: what was done with a server, newest first, and why it failed."""

from typing import Any

from zcompute.api import context
from zcompute.api.errors import ItemNotFound
from zcompute.api.locate import Servers
from zcompute.api.uuids import canonical_uuid
from zcompute.api.views import usage_time
from zcompute.objects.errors import InstanceNotFound
from zcompute.objects.history import InstanceAction, InstanceActionEvent
from zcompute.objects.messages.instances import InstanceActionsReply

REQUEST_ID_CHARS_MAX = 80


class InstanceActions:
    """GET /servers/ID/os-instance-actions."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    def on_get(self, req: Any, resp: Any, server_id: str) -> None:
        """All operations, those under way too."""
        history = _history(self._servers, req, server_id)
        context.answer(resp, {"instanceActions": [action_view(action) for action in history.actions]})


class InstanceActionItem:
    """GET /servers/ID/os-instance-actions/REQUEST_ID."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    def on_get(self, req: Any, resp: Any, server_id: str, request_id: str) -> None:
        """One operation; with its steps, for administrators."""
        history = _history(self._servers, req, server_id)
        action = next((action for action in history.actions if action.request_id == request_id), None)
        if action is None:
            asked = request_id[:REQUEST_ID_CHARS_MAX]
            raise ItemNotFound(f"Action for request_id {asked} on instance {server_id} not found")
        view = action_view(action)
        if context.caller_of(req).is_admin:
            view["events"] = [event_view(event) for event in events_of(history, action)]
        context.answer(resp, {"instanceAction": view})


def action_view(action: InstanceAction) -> dict[str, Any]:
    """As Nova 2.1 shows it; ``message`` says why it failed."""
    return {
        "action": action.action,
        "instance_uuid": action.instance_uuid,
        "request_id": action.request_id,
        "user_id": action.user_id,
        "project_id": action.project_id,
        "start_time": usage_time(action.started_at_us),
        "message": action.message or None,
    }


def event_view(event: InstanceActionEvent) -> dict[str, Any]:
    """As Nova 2.1 shows it; a step under way has no end and no result. ``traceback`` is a step's reason here."""
    return {
        "event": event.event,
        "start_time": usage_time(event.started_at_us),
        "finish_time": usage_time(event.finished_at_us) if event.finished_at_us else None,
        "result": event.result or None,
        "traceback": event.message or None,
    }


def events_of(history: InstanceActionsReply, action: InstanceAction) -> list[InstanceActionEvent]:
    """The steps of an operation, the one under way too, newest first."""
    under_way = [history.under_way] if history.under_way is not None else []
    return [event for event in [*under_way, *history.events] if event.operation_id == action.operation_id]


def _history(servers: Servers, req: Any, server_id: str) -> InstanceActionsReply:
    caller = context.caller_of(req)
    wanted = canonical_uuid(server_id)
    if wanted is None:
        raise ItemNotFound(f"Instance {server_id[:80]} could not be found: the server id is not a UUID.")
    try:
        return servers.history(wanted, None if caller.is_admin else caller.project_id, context.deadline_of(req))
    except InstanceNotFound:
        raise ItemNotFound(f"Instance {wanted} could not be found.") from None
