"""docs/tasks.md, made from the code: every kind of task, its steps, and its way back.

``python -m zcompute.cli.tasks_text > docs/tasks.md``
"""

import sys

from zcompute.conductor.tasks.moves.plans import (
    AT_SOURCE,
    AWAIT_ROOT,
    PLANS,
    STEP_CHECK_FENCE,
    STEP_CLAIM,
    STEP_FINISH,
    STEP_LEAVE,
    STEP_REACH,
    STEP_ROLLED_BACK,
    STEP_SCHEDULE,
    STEP_SWITCH,
    STEP_SWITCH_BACK,
    UNDO,
)
from zcompute.conductor.tasks.settings import MOVE_DEADLINES_S
from zcompute.conductor.tasks.steps import KINDS

_HEAD = """# Tasks
Made from the code (`python -m zcompute.cli.tasks_text > docs/tasks.md`); a test holds it true.

What takes longer than a commit is a task of the conductor that owns the server's partition: a row with its kind, step,
attempt and deadline, changed in the same commits as the server. Whoever owns the partition next reads the rows and
carries on; before a step that commands hosts it adopts the server at every host that the task names, so that a command
of the former owner is stale wherever it comes late. A step is begun again after every doubt: each is idempotent, and an
agent answers a step that it has done under a former owner without doing it again.

| what happens | what becomes of the task |
| --- | --- |
| its conductor dies, is stopped, is cut off | the next owner adopts and carries on from the journaled step |
| a host is silent until the deadline | parked: fault shown, claims and generations kept; its word carries it on |
| that host is forced down | it is waited for no longer |
| the deadline comes before any host was told anything | a build ends in ERROR, a move is rolled back |
| the server is deleted | the delete takes its place, its hosts and its claims |
| a kind or step that this release does not know | left alone for one that does |
| a cell does not answer the root | a move between cells waits for it; before the switch until its deadline |
"""

_MOVES = """
## Moves
Every kind of move is a list of the same steps. The switch is one commit of the server's row: host, reporter generation,
claim in force and flavor. Before it a move that cannot go on is rolled back, the last step first; after it there is
only forward. The destination's claim is committed before the switch, the source's is released after it, or kept with
the source's stopped copy until the move is confirmed or reverted.
With `[conductor] resize_confirm_window_s` set (Nova's resize_confirm_window) the owner of the server confirms it after
so long by itself, looking once a minute for the 100 of each partition that wait longest.

A move to another cell is a task of the root with a task in each cell: `export` where the server is, `import` where it
goes to. The root repeats a word to each side until that says that it is there: hold (export waits in `hold`), prepare
(import comes to `prepared`), send (export comes to `sent`), then commits the mapping, which is the switch, then
activate (import ends) and leave (export ends). Where a side waits for the root it goes neither on nor back by itself;
at its deadline it is parked, and the word carries it on. Before the switch the root takes a move back: reopen at the
source, then discard at the target.

What is shelved has an image in place of a destination: from the commit of the snapshot on there is no way back.
`shelve` goes on to leave the host with `[conductor] shelved_offload_time_s` 0 (the default; Nova's
shelved_offload_time), else it is `shelve_here`, and the server's owner begins `shelve_offload` after so long, looking
once a minute for the 100 of each partition that wait longest (never with -1). `unshelve` is of a server that is on no
host, `unshelve_here` of one that still is on its own: the same action to clients.
"""

_WHAT = {
    STEP_SCHEDULE: "asks a scheduler for hosts with alternates, or takes the one asked for",
    STEP_CLAIM: "room at the destination, conditional",
    "prepare": "the destination makes room and answers where it awaits the data",
    "hold": "the server is held for a move to another cell; the root's word ends it",
    "sent": "its data are away; the root's word says whether it follows them or works again",
    "prepared": "a destination awaits its data; the root's word says that the server is here, or that it will not come",
    "send": "the source stops the domain and gives its data away",
    "migrate": "the source hands the running domain over",
    STEP_REACH: "the destination answers",
    STEP_CHECK_FENCE: "the source is forced down still",
    STEP_SWITCH: "the commit",
    STEP_SWITCH_BACK: "the same commit, in the other direction",
    "activate": "the destination makes the domain of what came, and reports from now on",
    "grant": "the destination reports from now on",
    "spawn": "the destination builds it anew",
    "power_off": "where it was stopped before",
    "clean_source": "the source destroys its copy",
    "clean_destination": "the destination destroys its copy",
    "reopen": "the source's copy is the server again",
    "shut_down": "stopped, if it runs",
    "snapshot": "makes the image; the server is shelved with the commit",
    "leave": "the commit: on no host, without a claim",
    "power_on": "starts it again",
    "build": "makes it of its image",
    "undo_shut_down": "where it ran: it runs again",
    "undo_build": "destroys what it has begun",
    "undo_send": "the source's copy runs again",
    "undo_prepare": "the destination destroys what it has begun",
    STEP_ROLLED_BACK: "claims are released; the server is what it was",
    STEP_FINISH: "claims are released; the last commit",
}


_AT_NO_HOST = (
    STEP_SCHEDULE, STEP_CLAIM, STEP_CHECK_FENCE, STEP_SWITCH, STEP_SWITCH_BACK, STEP_FINISH, STEP_ROLLED_BACK,
    *AWAIT_ROOT,
    STEP_LEAVE,
)  # fmt: skip


def _place(step: str) -> str:
    if step in _AT_NO_HOST:
        return ""
    return "source" if step in AT_SOURCE else "destination"


def _diagram(kind: str) -> list[str]:
    plan = PLANS[kind]
    states = {step: plan.task_state(step) for step in plan.steps}
    lines = [f"### {kind}", f"Deadline {MOVE_DEADLINES_S[kind]} s.", "", "```mermaid", "stateDiagram-v2"]
    lines.append(f"    [*] --> {plan.steps[0]}")
    for step, following in zip(plan.steps, plan.steps[1:], strict=False):
        lines.append(f"    {step} --> {following}")
    lines.append(f"    {plan.steps[-1]} --> [*]")
    if STEP_ROLLED_BACK in plan.all_steps:
        for step in plan.revocable:
            undos = plan.undos(step)
            lines.append(f"    {step} --> {undos[0] if undos else STEP_ROLLED_BACK}")
        for undo in [name for name in plan.all_steps if name in UNDO.values()]:
            undos = plan.undos(undo)
            lines.append(f"    {undo} --> {undos[0] if undos else STEP_ROLLED_BACK}")
        lines.append(f"    {STEP_ROLLED_BACK} --> [*]")
    lines += ["```", "", "| task_state | in steps |", "| --- | --- |"]
    for state in dict.fromkeys(states.values()):
        lines.append(f"| {state} | {', '.join(step for step in plan.steps if states[step] == state)} |")
    return [*lines, ""]


def reference() -> str:
    """docs/tasks.md."""
    used = list(dict.fromkeys(step for plan in PLANS.values() for step in plan.all_steps))
    missing = [step for step in used if step not in _WHAT]
    if missing:
        raise ValueError(f"expected words for every step, found none for {', '.join(missing)}: add them to _WHAT")
    kinds = [*PLANS]
    lines = [_HEAD, "## Kinds", "| kind | steps |", "| --- | --- |"]
    lines += [f"| {kind} | {', '.join(step.name for step in steps)} |" for kind, steps in KINDS.items()]
    lines += [_MOVES, f"| step | at | {' | '.join(kinds)} | |", "| --- | --- |" + " --- |" * (len(kinds) + 1)]
    for step in used:
        marks = " | ".join("x" if step in PLANS[kind].all_steps else "" for kind in kinds)
        lines.append(f"| {step} | {_place(step)} | {marks} | {_WHAT[step]} |")
    lines.append("")
    for kind in kinds:
        lines += _diagram(kind)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
