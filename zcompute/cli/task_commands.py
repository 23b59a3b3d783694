"""``zcompute task list|show|retry|abort|complete``: long operations of all cells, and the operator's word on one."""

import json
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import click
from gevent.pool import Pool

from zcompute.bus.errors import BusError
from zcompute.cli.bus_commands import end_with
from zcompute.cli.cell_commands import ask, dial_cells, open_operator, operator_options
from zcompute.cli.exits import CommandError
from zcompute.cli.operator import Missing, Operator
from zcompute.cli.tables import print_rows
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import ServiceError
from zcompute.objects.messages.tasks import TaskListReply, TaskListRequest, TaskOrder, TaskReply
from zcompute.objects.methods import TASK_ABORT, TASK_COMPLETE, TASK_LIST, TASK_RETRY
from zcompute.objects.task import TASK_PARKED, TASK_RUNNING, Task

PAGE_ROWS = 500
PAGES_MAX = 400  # of one cell
CELLS_AT_ONCE = 16


@dataclass
class Found:
    """Tasks of cells, with why the parked ones are parked, and the cells that did not answer."""

    tasks: list[tuple[str, Task]] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)


@click.group()
def task() -> None:
    """List tasks; look at one; begin a parked one again; end one.

    Exit codes: 0 done, 1 refused, not found, or a cell has not answered (it says which), 2 wrong usage.
    """


@task.command("list")
@click.option("--cell", "cells", multiple=True, help="Only tasks of this cell; may be repeated.")
@click.option("--state", type=click.Choice([TASK_RUNNING, TASK_PARKED]), help="Only tasks in this state.")
@click.option("--kind", help="Only tasks of this kind, as build or delete.")
@click.option("--instance", "instance_uuid", help="Only the task of this server.")
@operator_options
def list_tasks(
    cells: tuple[str, ...],
    state: str | None,
    kind: str | None,
    instance_uuid: str | None,
    config_path: str | None,
    state_dir: str,
    form: str,
) -> None:
    """The tasks of all cells, or of those named; a cell that does not answer is named."""
    request = TaskListRequest(limit=PAGE_ROWS, state=state, kind=kind, instance_uuid=instance_uuid)
    with open_operator(config_path, state_dir) as operator:
        found = find(operator, cells, request)
    rows = [task_line(cell, row, found.faults) for cell, row in found.tasks]
    if form == "json":
        missing = [{"cell": gap.service, "reason": gap.reason} for gap in found.missing]
        click.echo(json.dumps({"tasks": rows, "missing": missing}, indent=2))
    else:
        print_rows(rows, form)
    end_with(found.missing)


@task.command()
@click.argument("name", metavar="TASK|SERVER")
@click.option("--cell", "cells", multiple=True, help="Only ask this cell; may be repeated.")
@operator_options
def show(name: str, cells: tuple[str, ...], config_path: str | None, state_dir: str, form: str) -> None:
    """One task, by its id or its server's."""
    with open_operator(config_path, state_dir) as operator:
        cell, row, faults = find_one(operator, cells, name)
    document = task_document(cell, row, faults)
    if form == "json":
        click.echo(json.dumps(document, indent=2))
        return
    for key, value in document.items():
        click.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")


@task.command()
@click.argument("name", metavar="TASK|SERVER")
@click.option("--cell", "cells", multiple=True, help="Only ask this cell; may be repeated.")
@operator_options
def retry(name: str, cells: tuple[str, ...], config_path: str | None, state_dir: str, form: str) -> None:
    """Begin a parked task again, at its step, with a new deadline."""
    _order(TASK_RETRY, "begun again", name, cells, config_path, state_dir, form)


@task.command()
@click.argument("name", metavar="TASK|SERVER")
@click.option("--cell", "cells", multiple=True, help="Only ask this cell; may be repeated.")
@operator_options
def abort(name: str, cells: tuple[str, ...], config_path: str | None, state_dir: str, form: str) -> None:
    """End a task before it is done, where its kind allows it: a build ends in ERROR once its host has destroyed what
    it may have begun. A delete is never aborted."""
    _order(TASK_ABORT, "being ended", name, cells, config_path, state_dir, form)


@task.command()
@click.argument("name", metavar="TASK|SERVER")
@click.option("--cell", "cells", multiple=True, help="Only ask this cell; may be repeated.")
@operator_options
def complete(name: str, cells: tuple[str, ...], config_path: str | None, state_dir: str, form: str) -> None:
    """Have a live migration come to its end that does not by itself: by post-copy where that is permitted ([conductor]
    live_migration_permit_post_copy), else the server is paused until it has moved."""
    _order(TASK_COMPLETE, "being completed", name, cells, config_path, state_dir, form)


def find(operator: Operator, cells: tuple[str, ...], request: TaskListRequest) -> Found:
    """Ask all cells, or those named, at once. Raises CommandError for a cell that the root does not know."""
    found = Found()
    names = _cells(operator, cells, found)
    outcomes = Pool(CELLS_AT_ONCE).map(lambda cell: _of_cell(operator, cell, request), names)
    for cell, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, Missing):
            found.missing.append(outcome)
            continue
        found.tasks += [(cell, row) for row in outcome.tasks]
        found.faults.update(outcome.faults)
    return found


def find_one(operator: Operator, cells: tuple[str, ...], name: str) -> tuple[str, Task, dict[str, str]]:
    """The task of this id or server. Raises CommandError for none, and says which cells have not answered."""
    found = find(operator, cells, TaskListRequest(limit=1, found=name))
    if found.tasks:
        cell, row = found.tasks[0]
        return cell, row, found.faults
    silent = "".join(f"; {gap.reason}" for gap in found.missing)
    raise CommandError(f"no task {name}, nor a task of a server {name}, is under way{silent}")


def task_line(cell: str, row: Task, faults: dict[str, str]) -> dict[str, Any]:
    """A task as a line of the list, and in ``--format json``."""
    silent = [host for host in row.body.named_hosts if host not in row.body.destroyed]
    return {
        "id": row.id, "cell": cell, "kind": row.kind, "action": row.body.action or None, "step": row.step,
        "state": row.state, "attempt": row.attempt, "server": row.instance_uuid, "hosts": " ".join(silent) or None,
        "step_began": _clock(row.body.step_began_at_us), "deadline": _clock(row.deadline_at_us),
        "fault": faults.get(row.instance_uuid),
    }  # fmt: skip


def task_document(cell: str, row: Task, faults: dict[str, str]) -> dict[str, Any]:
    """A task as ``show`` prints it."""
    body = row.body
    return {
        **task_line(cell, row, faults),
        "begun": _clock(row.created_at_us), "operation": row.operation_id, "request": row.request_id,
        "source": body.source, "destination": body.destination, "candidates": body.candidates,
        "refused": [f"{host}: {reason}" for host, reason in body.refused.items()],
        "claims_owed": [f"{name.task_id}/{name.attempt} at {name.host}" for name in body.release],
    }  # fmt: skip


def _order(
    method: Any, done: str, name: str, cells: tuple[str, ...], config_path: str | None, state_dir: str, form: str
) -> None:
    with open_operator(config_path, state_dir) as operator:
        cell, row, faults = find_one(operator, cells, name)
        order = TaskOrder(instance_uuid=row.instance_uuid, task_id=row.id, operation_id=str(uuid4()))
        reply: TaskReply = ask(operator, cell, method, order)
    now = reply.task or row
    if form == "json":
        click.echo(json.dumps(task_document(cell, now, faults), indent=2))
        return
    click.echo(f"task {now.id} of cell {cell} is {done}: {now.kind} of server {now.instance_uuid}, step {now.step}")


def _cells(operator: Operator, cells: tuple[str, ...], found: Found) -> list[str]:
    """The cells to ask. Without the root those that are linked are asked, and the root is missing."""
    try:
        known = [info.name for info in dial_cells(operator) if info.name != ROOT_CELL]
    except CommandError as error:
        found.missing.append(Missing(ROOT_CELL, f"the cells are not all known: {error.message}"))
        return list(cells) or [cell for cell in operator.cells() if cell != ROOT_CELL]
    strange = [cell for cell in cells if cell not in (ROOT_CELL, *known)]
    if strange:
        raise CommandError(f"cell {strange[0]} is not known, those known are {', '.join(known) or '(none)'}")
    # Moves between cells are the root's tasks, and first: they say what those in the cells do.
    return list(dict.fromkeys(cells)) or [ROOT_CELL, *known]


def _of_cell(operator: Operator, cell: str, request: TaskListRequest) -> TaskListReply | Missing:
    """All pages of one cell, at most PAGES_MAX."""
    whole = TaskListReply(tasks=[])
    after = ""
    try:
        for _ in range(PAGES_MAX):
            page: TaskListReply = operator.ask_cell(
                cell,
                TASK_LIST,
                TaskListRequest(
                    after=after, limit=request.limit, state=request.state, kind=request.kind,
                    instance_uuid=request.instance_uuid, found=request.found,
                ),
            )  # fmt: skip
            whole.tasks += page.tasks
            whole.faults.update(page.faults)
            if page.next is None or request.found is not None:
                return whole
            after = page.next
    except (CommandError, ServiceError, BusError) as error:
        return Missing(cell, f"cell {cell}: {error}")
    return Missing(cell, f"cell {cell}: more than {PAGES_MAX * request.limit} tasks")


def _clock(at_us: int) -> str | None:
    """UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_us / 1e6)) if at_us else None
