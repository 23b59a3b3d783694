"""``zcompute cell remap``: have the root map again what it has forgotten of a cell, after it was restored."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec

import zcompute.cli.token_commands  # noqa: F401  # the group's commands about tokens
from zcompute.bus.errors import BusError
from zcompute.cli.cell_commands import ask, cell, dial_cells, dry_run_option, open_operator, operator_options
from zcompute.cli.exits import FAILED, MORE_LEFT, USAGE, CommandError
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import Instance
from zcompute.objects.messages.topology import (
    CellMappingsReply,
    CellMappingsRequest,
    CensusReply,
    CensusRequest,
    Remapped,
    RemapReply,
    RemapRequest,
)
from zcompute.objects.methods import CELL_MAPPINGS, INSTANCE_CENSUS, MAPPING_REMAP
from zcompute.objects.remap import LEFT, MAPPED, OUTCOMES

TIMEOUT_MS = 600_000
PAGE_ROWS = 500
PAGES_MAX = 20_000
ROWS_SHOWN_MAX = 200

Ask = Callable[[str, Any, Any], Any]  # (cell, method, request) -> reply of any conductor of that cell


class RemapNotMade(CommandError):
    """Somebody who has to be asked does not answer; what was mapped until then is."""

    exit_code = USAGE


def unmapped(asked: Ask, name: str) -> Iterator[tuple[int, list[Instance]]]:
    """Page by page: how many servers the cell has there, and those that the root does not have in that cell.

    The cell is asked first: the root maps a server before its cell has it.
    """
    after = ""
    for _ in range(PAGES_MAX):
        there: CensusReply = asked(name, INSTANCE_CENSUS, CensusRequest(after=after, limit=PAGE_ROWS))
        if there.instances:
            uuids = [instance.uuid for instance in there.instances]
            known: CellMappingsReply = asked(ROOT_CELL, CELL_MAPPINGS, CellMappingsRequest(cell=name, uuids=uuids))
            mapped = {row.uuid: row.generation for row in known.mappings if row.cell == name}
            pending = {row.uuid for row in known.build_requests}
            yield len(uuids), [
                instance for instance in there.instances
                if instance.uuid not in pending and mapped.get(instance.uuid, 0) < instance.mapping_generation
            ]  # fmt: skip
        if len(there.instances) < PAGE_ROWS:
            return
        after = there.instances[-1].uuid


class Walk:
    """Through the cell's servers once. ``rows_max`` servers are mapped at most, beyond it ``more`` is set."""

    def __init__(self, asked: Ask, name: str, *, dry_run: bool, unconfirmed: bool, rows_max: int) -> None:
        self._asked = asked
        self._name = name
        self._dry_run = dry_run
        self._unconfirmed = unconfirmed
        self._rows_max = rows_max
        self.looked_at = 0
        self.more = False
        self.servers: list[Remapped] = []

    def run(self) -> None:
        """Raises what ``asked`` raises; running it again goes on with what is left."""
        for looked_at, forgotten in unmapped(self._asked, self._name):
            self.looked_at += looked_at
            while forgotten:
                room = self._rows_max - self.count(MAPPED)
                if not room:
                    self.more = True
                    return
                self._remap(forgotten[:room])
                forgotten = forgotten[room:]

    def count(self, outcome: str) -> int:
        return sum(one.outcome == outcome for one in self.servers)

    def _remap(self, forgotten: list[Instance]) -> None:
        by_project: dict[str, list[str]] = defaultdict(list)
        for instance in forgotten:
            by_project[instance.project_id].append(instance.uuid)
        for project_id, uuids in sorted(by_project.items()):
            request = RemapRequest(
                cell=self._name, project_id=project_id, uuids=uuids, unconfirmed=self._unconfirmed,
                dry_run=self._dry_run,
            )  # fmt: skip
            reply: RemapReply = self._asked(ROOT_CELL, MAPPING_REMAP, request)
            self.servers += reply.servers


@cell.command()
@click.argument("name")
@click.option("--unconfirmed", is_flag=True, help="Also servers that no host has reported since the cell's restore.")
@click.option("--max-rows", default=1_000_000, show_default=True, type=click.IntRange(min=1), metavar="N")
@dry_run_option
@operator_options
def remap(
    name: str, unconfirmed: bool, max_rows: int, dry_run: bool, config_path: str | None, state_dir: str, form: str
) -> None:  # fmt: skip
    """Map and charge again the servers of a cell that the root has forgotten, after a restore of an older backup of
    the root. What was deleted since stays deleted; running it again changes nothing.

    Exit codes: 0 the root knows them all (a dry run: would know), 1 some are left to be looked at, 2 it could not be
    made, 9 more is left than --max-rows.
    """
    try:
        with open_operator(config_path, state_dir, TIMEOUT_MS) as operator:
            dial_cells(operator)
            walk = Walk(
                lambda of, method, request: ask(operator, of, method, request), name,
                dry_run=dry_run, unconfirmed=unconfirmed, rows_max=max_rows,
            )  # fmt: skip
            walk.run()
    except (CommandError, ServiceError, BusError) as error:
        raise RemapNotMade(f"it could not be made: {error}") from error
    _show(name, walk, dry_run, form)
    if any(one.outcome in LEFT for one in walk.servers):
        raise click.exceptions.Exit(FAILED)
    if walk.more:
        raise click.exceptions.Exit(MORE_LEFT)


def _show(name: str, walk: Walk, dry_run: bool, form: str) -> None:
    if form == "json":
        document = {
            "cell": name, "dry_run": dry_run, "looked_at": walk.looked_at, "mapped": walk.count(MAPPED),
            "more": walk.more, "servers": msgspec.to_builtins(walk.servers),
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
        return
    for one in walk.servers[:ROWS_SHOWN_MAX]:
        click.echo(f"{one.uuid} {one.outcome} {one.detail}".rstrip())
    for outcome in sorted({one.outcome for one in walk.servers}):
        click.echo(f"{outcome}: {OUTCOMES[outcome]}")
    done = "would be mapped" if dry_run else "mapped"
    click.echo(
        f"{walk.looked_at} servers looked at, {walk.count(MAPPED)} {done}" + (", more is left" if walk.more else "")
    )
