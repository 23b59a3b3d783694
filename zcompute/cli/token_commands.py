"""``zcompute cell|host token|tokens|revoke-token|enroll``: the same four commands for both groups."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from zcompute.cli.cell_commands import (
    ask,
    cell,
    dial_cells,
    dry_run_option,
    open_operator,
    operator_options,
    say_changed,
)
from zcompute.cli.exits import UsageRefused
from zcompute.cli.operator import Operator
from zcompute.cli.tables import print_rows
from zcompute.cli.tokens import LIFETIME_HOURS, NewToken, enrol, new_token, read_token, write_token
from zcompute.config import Config, ConfigError, load
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.messages.cluster import Empty, MapReply
from zcompute.objects.messages.topology import (
    CellCreateRequest,
    CellReply,
    EnrolmentListReply,
    EnrolmentListRequest,
    EnrolmentReply,
    EnrolmentRevokeRequest,
)
from zcompute.objects.methods import CELL_CREATE, ENROLMENT_CREATE, ENROLMENT_LIST, ENROLMENT_REVOKE, MAP_GET

PAGE_ROWS = 500
PAGES_MAX = 100


def token_options(command: Callable[..., None]) -> Callable[..., None]:
    """How a token may be used, and where it goes."""
    for option in (
        click.option("--token-file", metavar="FILE", help="Write the token there, mode 0600, and do not print it."),
        click.option("--uses", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many may join."),
        click.option(
            "--lifetime-hours",
            type=click.FloatRange(min=0, min_open=True, max=720),
            default=LIFETIME_HOURS,
            show_default=True,
            help="The token counts for so long.",
        ),
    ):
        command = option(command)
    return command


def make_token(operator: Operator, home: str, fresh: NewToken, token_file: str | None) -> dict[str, Any]:
    """Have ``home``'s conductors take a token; what to print. Raises CommandError."""
    reply: EnrolmentReply = ask(operator, home, ENROLMENT_CREATE, fresh.request)
    found: MapReply = ask(operator, home, MAP_GET, Empty())
    conductors = [found.map.conductors[name] for name in sorted(found.map.conductors)]
    row = reply.enrolment
    document = {
        "token_id": row.id,
        "role": row.role,
        "cell": row.cell,
        "hosts": row.hosts,
        "uses": row.uses_max,
        "expires": _time(row.expires_at_us),
    }
    if fresh.request.dry_run:
        return document
    token = fresh.token(row, conductors)
    if token_file is None:
        return {**document, "token": token.text}
    write_token(token_file, token)
    return {**document, "token_file": token_file}


def print_document(document: dict[str, Any], form: str) -> None:
    """As JSON, or a line for each."""
    if form == "json":
        click.echo(json.dumps(document, indent=2))
        return
    for key, value in document.items():
        click.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat(timespec="seconds")


@cell.command()
@click.argument("name")
@token_options
@dry_run_option
@operator_options
def create(
    name: str, uses: int, lifetime_hours: float, token_file: str | None, dry_run: bool, config_path: str | None,
    state_dir: str, form: str,
) -> None:  # fmt: skip
    """Make the cell's row at the root, or bring a deleted cell back, with a token for its first conductors.

    For a cell that is there already nothing is made: `zcompute cell token` gives another token.
    """
    with open_operator(config_path, state_dir) as operator:
        reply: CellReply = ask(operator, ROOT_CELL, CELL_CREATE, CellCreateRequest(name=name, dry_run=dry_run))
        more: dict[str, Any] = {}
        if reply.changed and not dry_run:
            fresh = new_token("conductor", name, [], uses, lifetime_hours, dry_run)
            more = make_token(operator, ROOT_CELL, fresh, token_file)
    say_changed(reply, "created", dry_run, form, more)


@cell.command("token")
@click.argument("name")
@token_options
@dry_run_option
@operator_options
def cell_token(
    name: str, uses: int, lifetime_hours: float, token_file: str | None, dry_run: bool, config_path: str | None,
    state_dir: str, form: str,
) -> None:  # fmt: skip
    """Another token with which conductors of cell NAME may join."""
    with open_operator(config_path, state_dir) as operator:
        fresh = new_token("conductor", name, [], uses, lifetime_hours, dry_run)
        print_document(make_token(operator, ROOT_CELL, fresh, token_file), form)


@cell.command("enroll")
@click.option("--token-file", required=True, metavar="FILE", help="The token; - reads it from standard input.")
@click.option("--config", "config_path", required=True, metavar="FILE", help="The conductor's configuration.")
@click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True)
def cell_enroll(token_file: str, config_path: str, form: str) -> None:
    """On a new conductor's host: make its key, have it let in at the root, fill the cell's keyring.

    May be repeated: the same key is enrolled once. Exit codes: 0 enrolled, 1 refused or not reached, 2 wrong usage.
    """
    config = _config(config_path)
    enrolled = enrol(config, "conductor", [], read_token(token_file))
    _say_enrolled(enrolled.service_id, enrolled.public_key, enrolled.reply.conductors, form, "root")


def tokens_of(operator: Operator, home: str) -> list[dict[str, Any]]:
    """The tokens that a cell's conductors know, without secrets: they have none."""
    rows: list[dict[str, Any]] = []
    after = ""
    for _ in range(PAGES_MAX):
        page: EnrolmentListReply = ask(
            operator, home, ENROLMENT_LIST, EnrolmentListRequest(after=after, limit=PAGE_ROWS)
        )
        rows += [
            {
                "id": row.id, "role": row.role, "cell": row.cell, "hosts": ", ".join(row.hosts[:3]),
                "uses": f"{len(row.enrolled)}/{row.uses_max}", "expires": _time(row.expires_at_us),
                "revoked": row.revoked, "joined": ", ".join(key.service_id for key in row.enrolled[:5]),
            }
            for row in page.enrolments
        ]  # fmt: skip
        if len(page.enrolments) < PAGE_ROWS:
            break
        after = page.enrolments[-1].id
    return rows


def revoke_at(operator: Operator, home: str, token_id: str, dry_run: bool) -> dict[str, Any]:
    """Revoke a token at a cell's conductors. Raises CommandError."""
    request = EnrolmentRevokeRequest(id=token_id, dry_run=dry_run)
    reply: EnrolmentReply = ask(operator, home, ENROLMENT_REVOKE, request)
    shut_out = [key.service_id for key in reply.enrolment.enrolled]
    return {"token_id": token_id, "changed": reply.changed, "dry_run": dry_run, "shut_out": shut_out}


@cell.command("tokens")
@operator_options
def cell_tokens(config_path: str | None, state_dir: str, form: str) -> None:
    """The tokens for conductors of cells, how often each was used and by whom. No secret is shown: none is kept."""
    with open_operator(config_path, state_dir) as operator:
        print_rows(tokens_of(operator, ROOT_CELL), form)


@cell.command("revoke-token")
@click.argument("token_id")
@dry_run_option
@operator_options
def cell_revoke_token(token_id: str, dry_run: bool, config_path: str | None, state_dir: str, form: str) -> None:
    """Have a token let nobody in any more, and shut out, within seconds, the conductors that it let in."""
    with open_operator(config_path, state_dir) as operator:
        print_document(revoke_at(operator, ROOT_CELL, token_id, dry_run), form)


def add_host_commands(host: click.Group) -> None:
    """The same for hosts, at the conductors of their cell."""

    @host.command("token")
    @click.argument("names", nargs=-1, required=True)
    @click.option("--cell", "cell_name", required=True, help="The hosts' cell.")
    @token_options
    @dry_run_option
    @operator_options
    def host_token(
        names: tuple[str, ...], cell_name: str, uses: int, lifetime_hours: float, token_file: str | None,
        dry_run: bool, config_path: str | None, state_dir: str, form: str,
    ) -> None:  # fmt: skip
        """A token with which the agent of hosts NAMES may join a cell."""
        with open_operator(config_path, state_dir) as operator:
            dial_cells(operator)
            fresh = new_token("compute", cell_name, sorted(set(names)), uses, lifetime_hours, dry_run)
            print_document(make_token(operator, cell_name, fresh, token_file), form)

    @host.command("enroll")
    @click.option("--token-file", required=True, metavar="FILE", help="The token; - reads it from standard input.")
    @click.option("--config", "config_path", required=True, metavar="FILE", help="The agent's configuration.")
    @click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True)
    def host_enroll(token_file: str, config_path: str, form: str) -> None:
        """On a new hypervisor: make the agent's key and have it let in at its cell. May be repeated.

        Exit codes: 0 enrolled, 1 refused or not reached, 2 wrong usage."""
        config = _config(config_path)
        enrolled = enrol(config, "compute", [row.name for row in config.compute.hosts], read_token(token_file))
        _say_enrolled(enrolled.service_id, enrolled.public_key, enrolled.reply.conductors, form, "conductors")

    @host.command("tokens")
    @click.option("--cell", "cell_name", required=True, help="The cell.")
    @operator_options
    def host_tokens(cell_name: str, config_path: str | None, state_dir: str, form: str) -> None:
        """The tokens for hosts of a cell, how often each was used and by whom."""
        with open_operator(config_path, state_dir) as operator:
            dial_cells(operator)
            print_rows(tokens_of(operator, cell_name), form)

    @host.command("revoke-token")
    @click.argument("token_id")
    @click.option("--cell", "cell_name", required=True, help="The cell.")
    @dry_run_option
    @operator_options
    def host_revoke_token(
        token_id: str, cell_name: str, dry_run: bool, config_path: str | None, state_dir: str, form: str
    ) -> None:
        """Have a token let nobody in any more, and shut out, within seconds, the agents that it let in."""
        with open_operator(config_path, state_dir) as operator:
            dial_cells(operator)
            print_document(revoke_at(operator, cell_name, token_id, dry_run), form)


def _config(path: str) -> Config:
    try:
        return load(path)
    except ConfigError as error:
        raise UsageRefused(str(error)) from error


def _say_enrolled(service_id: str, public_key: str, conductors: list[Any], form: str, key: str) -> None:
    """With whom the service is to speak: those lines of ``[bus]`` in its configuration."""
    places = [{"id": c.service_id, "address": c.address, "public_key": c.public_key} for c in conductors]
    if form == "json":
        click.echo(json.dumps({"id": service_id, "public_key": public_key, key: places}, indent=2))
        return
    click.echo(f"{service_id} is enrolled; [bus] of its configuration needs:")
    click.echo(f"{key} = [")
    for place in places:
        click.echo("  { " + ", ".join(f'{name} = "{value}"' for name, value in place.items()) + " },")
    click.echo("]")
