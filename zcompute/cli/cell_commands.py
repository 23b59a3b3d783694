"""``zcompute cell ...``: the cells of a region, asked of the root's conductors over the bus."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click
import gevent
import msgspec

from zcompute.bus import register_error
from zcompute.bus.errors import BusError
from zcompute.cli import cell_verify
from zcompute.cli.audit_kinds import KINDS as AUDIT_KINDS
from zcompute.cli.audit_kinds import Finding
from zcompute.cli.exits import FAILED, MORE_LEFT, USAGE, CommandError
from zcompute.cli.operator import Missing, Operator, operator_config
from zcompute.cli.tables import print_rows
from zcompute.config import PeerConfig
from zcompute.db.revisions import Revisions
from zcompute.objects.cell import CELL_DISABLED, CELL_DRAINING, CELL_ENABLED, ROOT_CELL, CellInfo
from zcompute.objects.errors import SERVICE_ERRORS, CellNotFound, ServiceError
from zcompute.objects.messages.cluster import Empty, MapReply
from zcompute.objects.messages.region import CellListReply
from zcompute.objects.messages.topology import (
    CellDeleteRequest,
    CellReply,
    CellStateRequest,
    CellStatus,
    CellStatusRequest,
)
from zcompute.objects.methods import CELL_DELETE, CELL_LIST, CELL_STATE, CELL_STATUS, MAP_GET, UPKEEP_SCHEMA

TIMEOUT_MS = 20_000
VERIFY_TIMEOUT_MS = 600_000
LINK_WAIT_MS = 2_000
DRAIN_POLL_S = 1.0
ROWS_SHOWN_MAX = 200


def operator_options(command: Callable[..., None]) -> Callable[..., None]:
    """Where the operator's configuration is, and how the answer is printed."""
    for option in (
        click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True),
        click.option("--state-dir", default="./var", show_default=True, help="An embedded region."),
        click.option("--config", "config_path", metavar="FILE", help="The operator's configuration."),
    ):
        command = option(command)
    return command


dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would change.")


def open_operator(config_path: str | None, state_dir: str, timeout_ms: int = TIMEOUT_MS) -> Operator:
    """The operator on the bus, linked with whomever is reached soon. Raises UsageRefused."""
    for error in SERVICE_ERRORS:
        register_error(error)
    operator = Operator(operator_config(config_path, state_dir), timeout_ms)
    operator.wait_links(min(LINK_WAIT_MS, timeout_ms))
    return operator


def ask(operator: Operator, cell: str, method: Any, request: Any) -> Any:
    """One answer of any conductor of a cell; what it refuses is a sentence. Raises CommandError."""
    try:
        return operator.ask_cell(cell, method, request)
    except ServiceError as error:
        raise CommandError(error.message) from error


class VerifyNotMade(CommandError):
    """Something that is compared cannot be read, so nothing can be said."""

    exit_code = USAGE


def dial_cells(operator: Operator) -> list[CellInfo]:
    """Have the operator dial the conductors of every cell as the root knows them, beside those it has configured; the
    cells. Raises CommandError."""
    reply: CellListReply = ask(operator, ROOT_CELL, CELL_LIST, Empty())
    told = [info for row in reply.cells for info in row.conductors]
    operator.dial_more(
        PeerConfig(id=info.service_id, address=info.address, public_key=info.public_key) for info in told
    )
    operator.wait_links(LINK_WAIT_MS)
    return reply.cells


@click.group()
def cell() -> None:
    """Create, look at, open, close, drain, delete and verify cells.

    Exit codes: 0 done, 1 refused or not reached (it says why), 2 wrong usage, 9 drained as far as the time allowed.
    """


@cell.command("list")
@operator_options
def list_cells(config_path: str | None, state_dir: str, form: str) -> None:
    """The cells, what state they are in, and how many conductors each has."""
    with open_operator(config_path, state_dir) as operator:
        reply: CellListReply = ask(operator, ROOT_CELL, CELL_LIST, Empty())
    rows = [
        {"name": row.name, "state": row.state, "conductors": len(row.conductors), "map_version": row.map_version}
        for row in reply.cells
    ]
    print_rows(rows, form)


@cell.command()
@click.argument("name")
@operator_options
def show(name: str, config_path: str | None, state_dir: str, form: str) -> None:
    """One cell: state, servers, conductors, free room."""
    with open_operator(config_path, state_dir) as operator:
        status: CellStatus = ask(operator, ROOT_CELL, CELL_STATUS, CellStatusRequest(name=name))
    document = status_document(status)
    if form == "json":
        click.echo(json.dumps(document, indent=2))
        return
    for key, value in document.items():
        click.echo(f"{key}: {value if not isinstance(value, dict | list) else json.dumps(value)}")


def status_document(status: CellStatus) -> dict[str, Any]:
    """The status as ``--format json`` prints it."""
    capacity = status.capacity
    return {
        "name": status.cell.name,
        "state": status.cell.state,
        "servers": status.mappings,
        "servers_at_least": status.mappings >= status.counted_max,
        "being_handed_over": status.pending,
        "conductors": [
            {"id": info.service_id, "address": info.address, "linked": info.service_id in status.linked}
            for info in status.cell.conductors
        ],
        "hosts_with_room": capacity.hosts if capacity else None,
        "free": msgspec.to_builtins(capacity.free) if capacity else None,
        "zones": {part.zone: part.hosts for part in capacity.zones} if capacity else {},
    }


def _state_command(name: str, state: str, text: str) -> None:
    @cell.command(name, help=text)
    @click.argument("name")
    @dry_run_option
    @operator_options
    def command(name: str, dry_run: bool, config_path: str | None, state_dir: str, form: str) -> None:
        with open_operator(config_path, state_dir) as operator:
            request = CellStateRequest(name=name, state=state, dry_run=dry_run)
            reply: CellReply = ask(operator, ROOT_CELL, CELL_STATE, request)
        say_changed(reply, state, dry_run, form)


_state_command("enable", CELL_ENABLED, "Let a cell take new servers.")
_state_command("disable", CELL_DISABLED, "Have a cell take no new servers; those that are there stay.")


@cell.command()
@click.argument("name")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=None, metavar="SECONDS", help="Until empty.")
@dry_run_option
@operator_options
def drain(name: str, wait_s: float | None, dry_run: bool, config_path: str | None, state_dir: str, form: str) -> None:
    """Have a cell take no new servers, and see whether it is empty.

    Exit codes: 0 closed (with --wait: and empty), 9 servers are left when the time is over, 1 refused or not reached.
    """
    timeout_ms = TIMEOUT_MS + int((wait_s or 0) * 1000)
    with open_operator(config_path, state_dir, timeout_ms) as operator:
        request = CellStateRequest(name=name, state=CELL_DRAINING, dry_run=dry_run)
        reply: CellReply = ask(operator, ROOT_CELL, CELL_STATE, request)
        until = time.monotonic() + (wait_s or 0)
        while True:
            status: CellStatus = ask(operator, ROOT_CELL, CELL_STATUS, CellStatusRequest(name=name))
            left = status.mappings + status.pending
            if not left or dry_run or time.monotonic() >= until:
                break
            gevent.sleep(min(DRAIN_POLL_S, max(0.0, until - time.monotonic())))
    at_least = max(status.mappings, status.pending) >= status.counted_max
    say_changed(reply, CELL_DRAINING, dry_run, form, {"servers_left": left, "servers_left_at_least": at_least})
    if wait_s is not None and left and not dry_run:
        raise click.exceptions.Exit(MORE_LEFT)


@cell.command()
@click.argument("name")
@dry_run_option
@operator_options
def delete(name: str, dry_run: bool, config_path: str | None, state_dir: str, form: str) -> None:
    """Delete a cell that is disabled or drained, has no servers, and whose conductors are stopped.

    What is left is said. Keys that it enrolled by tokens are shut out; those in keyring files are yours to revoke.
    """
    with open_operator(config_path, state_dir) as operator:
        with suppress(CellNotFound):  # or deleted by now: the owner says which
            for status in each_status(operator, name).values():
                if status.linked:
                    raise CommandError(f"cell {name} is not empty: conductors still run: {', '.join(status.linked)}")
        reply: CellReply = ask(operator, ROOT_CELL, CELL_DELETE, CellDeleteRequest(name=name, dry_run=dry_run))
    say_changed(reply, "deleted", dry_run, form)


def each_status(operator: Operator, name: str) -> dict[str, CellStatus]:
    """What each root conductor says of a cell, by its id. Raises CellNotFound, CommandError where one is silent."""
    found: dict[str, CellStatus] = {
        conductor: operator.ask_one(conductor, CELL_STATUS, CellStatusRequest(name=name))
        for conductor in operator.conductors(ROOT_CELL)
    }
    if not found:
        raise CommandError("no conductor of the root is reached")
    return found


@cell.command()
@click.argument("name")
@operator_options
def verify(name: str, config_path: str | None, state_dir: str, form: str) -> None:
    """Compare what the root knows of a cell with what the cell is: servers both ways, hosts, conductors, keys, links,
    capacity, releases, schema. Exit codes: 0 everything holds, 1 findings, 2 it could not be made."""
    try:
        with open_operator(config_path, state_dir, VERIFY_TIMEOUT_MS) as operator:
            verified = _verify(operator, name)
    except (CommandError, ServiceError, BusError) as error:
        raise VerifyNotMade(f"the cell could not be verified: {error}") from error
    _show_verified(name, verified, form)
    if verified.findings:
        raise click.exceptions.Exit(FAILED)


def _verify(operator: Operator, name: str) -> cell_verify.Verified:
    statuses = each_status(operator, name)
    dial_cells(operator)

    def asked(of: str, method: Any, request: Any) -> Any:
        return ask(operator, of, method, request)

    cell_map: MapReply = asked(name, MAP_GET, Empty())
    hosts = {host.name: host for host in cell_verify.hosts_of(asked, name)}
    verified = cell_verify.verify_servers(asked, ROOT_CELL, name, hosts, gevent.sleep)
    verified.findings += cell_verify.verify_membership(name, cell_map.map, statuses, hosts.values())
    stats, missing = operator.stats(operator.conductors(name))
    verified.findings += cell_verify.verify_releases(stats, name)
    verified.findings += cell_verify.verify_schemas(name, _schemas(operator, name), Revisions())
    verified.findings += [_unanswered(one) for one in missing]
    return verified


def _schemas(operator: Operator, name: str) -> dict[str, list[str]]:
    """At which revisions each conductor of the cell sees its database; one that does not answer is told by its stat."""
    found: dict[str, list[str]] = {}
    for conductor in operator.conductors(name):
        answers, _ = operator.ask_each([conductor], UPKEEP_SCHEMA, Empty())
        if answers:
            found[conductor] = answers[0].applied
    return found


def _unanswered(one: Missing) -> Finding:
    return Finding(cell_verify.NO_ANSWER, one.service, one.reason)


def _show_verified(name: str, verified: cell_verify.Verified, form: str) -> None:
    rows = [
        {"kind": finding.kind, "subject": finding.subject, "detail": finding.detail} for finding in verified.findings
    ]
    counts = {"mappings": verified.mappings, "servers": verified.instances, "hosts": verified.hosts}
    if form == "json":
        document = {
            "cell": name, "holds": not rows, "complete": verified.complete, "compared": counts, "findings": rows,
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
        return
    click.echo("compared: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    if not rows:
        click.echo("everything holds")
        return
    print_rows(rows[:ROWS_SHOWN_MAX], form)
    meanings = {**AUDIT_KINDS, **cell_verify.KINDS}
    for kind in sorted({finding.kind for finding in verified.findings}):
        click.echo(f"{kind}: {meanings[kind]}")


def say_changed(reply: CellReply, what: str, dry_run: bool, form: str, more: dict[str, Any] | None = None) -> None:
    """What became of a cell, and what more there is to say."""
    row: CellInfo = reply.cell
    if form == "json":
        fields = {"name": row.name, "state": row.state, "changed": reply.changed, "dry_run": dry_run, **(more or {})}
        click.echo(json.dumps(fields, indent=2))
        return
    news = "would change" if dry_run and reply.changed else "changed" if reply.changed else "was so already"
    click.echo(f"cell {row.name} is {what} ({news})")
    for key, value in (more or {}).items():
        click.echo(f"{key}: {value}")
