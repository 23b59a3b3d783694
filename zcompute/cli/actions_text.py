"""docs/actions.md, made from the code: what may be asked of a server in which state, and what comes of it.

``python -m zcompute.cli.actions_text > docs/actions.md``
"""

import sys

from zcompute.api.action_bodies import KEYS
from zcompute.conductor.tasks.moves.plans import PLANS
from zcompute.conductor.tasks.settings import ACT_DEADLINES_S, MOVE_DEADLINES_S
from zcompute.objects.actions import ACTIONS, DELETE, SOFT_DELETE, Action

_HEAD = """# Actions of a server
Made from `zcompute/objects/actions.py` (`python -m zcompute.cli.actions_text > docs/actions.md`); a test holds it true.

`POST /v2.1/servers/ID/action` takes a body with one key. It is answered 202 (a rescue and an evacuation: 200 with the
password; a confirmation: 204) after the commit that makes the action sure to be carried on: from then on it is a
[journaled task](tasks.md) of one step, or of those of a move, which any owner of the server takes over. With an
`Idempotency-Key` a repeat is the same operation: it is accepted again, even when it is long over, and done once.

| asked at the wrong time | answer |
| --- | --- |
| its vm_state or task_state does not allow it | 409 `Cannot 'start' instance ID while it is in vm_state active` |
| it is locked, and the caller is no administrator | 409 `Instance ID is locked` |
| it was never active, or is on no host | 409 `... which has never been active`, `... is not ready` |
| no cell has it yet | 409, in vm_state building |
| only administrators may | 403 |
| the body is none of these | 400, with the field's name |
| a move to the host where it is; an evacuation of a host that is not forced down | 400, in Nova's words |

An action begins only while nothing else is under way (task_state none): a server has one task at most, so a hard reboot
does not break a soft one off, as it does in Nova. A delete breaks off every action.

The lock is looked at first, then the vm_state, then the task_state. An administrator's lock is not its user's to take
away (403).
"""

_TAIL = """
## Deletes that can be taken back
With `[conductor] reclaim_interval_s` set, `DELETE` is soft (Nova's reclaim_instance_interval): the server is stopped,
keeps its room and its place in the quota, and has the status SOFT_DELETED. Lists leave it out, as Nova's do, unless an
administrator asks with `deleted=true` or `soft_deleted=true`. For that long `restore`
starts it again; then it is deleted for good, by the owner of the server, looking once a minute for the oldest 100 of
each partition. `forceDelete` does not wait. What was never active, is on no host, or waits for a silent host is deleted
at once; while another action is under way a soft delete is refused (409) after the API has tried for its deadline.

## How an action ends
- **Done**: the state of its row, and the fault is gone. The power state is the hypervisor's word alone: it comes as an
  observation, a moment before or after.
- **Refused by the hypervisor**, by an agent that is of an older release, or because the host was told nothing and is
  not linked for 30 s: the server is what it was before. The reason is in the instance's action (result Error), and in
  the notification `error` where Nova has one (reboot, resume).
- **No word before the deadline**: the task is parked. The server is in ERROR with a fault that names the silent host;
  only a delete is accepted. The host's word ends the task as if it had come in time.
- **The host is forced down**: the server is what it was before, and can be evacuated or deleted.

`GET /v2.1/servers/ID/os-instance-actions` lists what was done with a server, newest first, with the reason of what
failed; `.../os-instance-actions/REQUEST_ID` shows one operation, to administrators with its steps, of which the one
under way has no end yet. Of a step that fails again and again the first 20 attempts are told, and how it ended.

`os-resetState` changes what is shown, nothing else. It is refused while a task has not ended: none is ever stuck, and a
parked one ends as said above. `active` of a server whose move is neither confirmed nor reverted is VERIFY_RESIZE, so
that one of the two can follow; until then no other move of it begins (409).
"""

_COLUMNS = ("action", "body", "in vm_state", "task_state meanwhile", "at most", "ends in", "a lock", "who")


def _cells(key: str, takes: str, action: Action) -> tuple[str, ...]:
    states = "any" if action.vm_states is None else ", ".join(sorted(action.vm_states))
    deadline_s = ACT_DEADLINES_S.get(action.task_state) or MOVE_DEADLINES_S.get(action.kind)
    return (
        action.key,
        f"`{key}`: {takes}" if takes else f"`{key}`",
        states,
        action.task_state or (", ".join(dict.fromkeys(PLANS[action.kind].task_states.values())) if action.kind else ""),
        f"{deadline_s} s" if deadline_s else "",
        action.vm_state,
        "refuses it" if action.unlocked else "",
        "administrators" if action.administrators else "",
    )


def reference() -> str:
    """docs/actions.md."""
    rows = [_cells(name, key.takes, action) for name, key in KEYS.items() for action in key.of]
    documented = {row[0] for row in rows}
    missing = [name for name in ACTIONS if name not in documented and name != SOFT_DELETE.key]
    if missing:
        raise ValueError(f"expected a body for every action, found none for {', '.join(missing)}: add it to KEYS")
    rows += [_cells("DELETE /v2.1/servers/ID", "", action) for action in (SOFT_DELETE, DELETE)]
    lines = ["| " + " | ".join(row) + " |" for row in (_COLUMNS, ("---",) * len(_COLUMNS), *rows)]
    return "\n".join([_HEAD, "## The table", *lines, _TAIL])


if __name__ == "__main__":
    sys.stdout.write(reference())
