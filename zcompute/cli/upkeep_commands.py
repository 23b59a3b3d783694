"""``zcompute db archive|purge|migrate-data``: asked of a cell's conductors, each of which does it for what it owns."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from zcompute.bus import register_error
from zcompute.cli.exits import FAILED, MORE_LEFT, CommandError, UsageRefused
from zcompute.cli.operator import Operator, operator_config
from zcompute.cli.upkeep_passes import Done, Migrated, migrate_through_owners, through_owners, until_all_asked
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.interface import Method
from zcompute.objects.messages.upkeep import UpkeepRequest
from zcompute.objects.methods import UPKEEP_ARCHIVE, UPKEEP_MIGRATE_DATA, UPKEEP_PURGE

TIMEOUT_MS = 600_000
LINK_WAIT_MS = 2_000


def parse_date(text: str) -> int:
    """UTC microseconds of a date or a time. Raises UsageRefused."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageRefused(f"--before: expected a date as 2026-01-31 or 2026-01-31T12:00:00, found {text!r}") from error
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    if when > datetime.now(UTC):
        raise UsageRefused(f"--before: expected a date in the past, found {text}")
    return int(when.timestamp() * 1_000_000)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True),
        click.option("--state-dir", default="./var", show_default=True, help="An embedded region."),
        click.option("--config", "config_path", help="The operator's configuration."),
        click.option("--cell", required=True, help="The cell; root for the root cell's own rows."),
        click.option("--dry-run", is_flag=True, help="Only say what would be done."),
        click.option("--max-rows", default=10_000, show_default=True, type=click.IntRange(min=1), metavar="N"),
    ):
        command = option(command)
    return command


def _run(
    cell: str, config_path: str | None, state_dir: str, one_pass: Callable[[Callable[..., Any], list[str]], bool]
) -> None:
    for error in SERVICE_ERRORS:
        register_error(error)
    with Operator(operator_config(config_path, state_dir), TIMEOUT_MS) as operator:
        operator.wait_links(LINK_WAIT_MS)
        if not operator.conductors(cell):
            raise CommandError(f"no conductor of cell {cell} is linked: cells are {', '.join(operator.cells())}")

        def ask(name: str, method: Method, request: UpkeepRequest) -> Any:
            answers, missing = operator.ask_each([name], method, request)
            return missing[0] if missing else answers[0]

        until_all_asked(lambda: one_pass(ask, operator.conductors(cell)))


def _upkeep(
    method: Method, word: str, before: str, max_rows: int, dry_run: bool, cell: str, config_path: str | None,
    state_dir: str, form: str,
) -> None:  # fmt: skip
    request = UpkeepRequest(rows_max=max_rows, before_us=parse_date(before), dry_run=dry_run)
    done = Done()

    def one_pass(ask: Callable[..., Any], conductors: list[str]) -> bool:
        nonlocal done
        done = through_owners(lambda name, step: ask(name, method, step), conductors, request, done)
        return not done.unasked

    _run(cell, config_path, state_dir, one_pass)
    if form == "json":
        document = {
            "cell": cell, "rows": done.rows, "by_table": done.by_table, "more": done.more, "dry_run": dry_run,
            "partitions_not_asked": done.unasked, "missing": [[one.service, one.reason] for one in done.missing],
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
    else:
        tables = ", ".join(f"{count} of {table}" for table, count in sorted(done.by_table.items()))
        least = "at least " if dry_run and done.more else ""
        click.echo(f"{least}{done.rows} rows {'would be ' if dry_run else ''}{word}{f': {tables}' if tables else ''}")
        for one in done.missing:
            click.echo(f"no answer from {one.service}: {one.reason}", err=True)
        if done.unasked:
            click.echo(f"{done.unasked} partitions were not looked at: their owner was not asked", err=True)
        click.echo("more is left: run it again" if done.more else "nothing more is left" if not done.unasked else "")
    if done.unasked:
        raise click.exceptions.Exit(FAILED)
    if done.more:
        raise click.exceptions.Exit(MORE_LEFT)


@click.command()
@click.option("--before", required=True, metavar="DATE", help="What ended before, UTC: 2026-01-31[T12:00:00].")
@_options
def archive(**given: Any) -> None:
    """Put aside deleted servers with their history (in the root cell: old operations) into the archive table.

    Exit codes: 0 nothing more is left, 9 more is left, 1 not all partitions were reached, 2 wrong usage.
    """
    _upkeep(UPKEEP_ARCHIVE, "archived", **given)


@click.command()
@click.option("--before", required=True, metavar="DATE", help="What was archived before, UTC.")
@_options
def purge(**given: Any) -> None:
    """Delete for good what was archived before DATE. Exit codes: as of archive."""
    _upkeep(UPKEEP_PURGE, "purged", **given)


@click.command("migrate-data")
@_options
def migrate_data(max_rows: int, dry_run: bool, cell: str, config_path: str | None, state_dir: str, form: str) -> None:
    """Bring stored rows to the committed release level, as far as N rows, and say how far that is.

    Exit codes: 0 nothing remains, 9 more remains, 1 not all partitions were reached, 2 wrong usage.
    """
    found = Migrated()

    def one_pass(ask: Callable[..., Any], conductors: list[str]) -> bool:
        nonlocal found
        found = migrate_through_owners(
            lambda name, step: ask(name, UPKEEP_MIGRATE_DATA, step), conductors, max_rows, dry_run, found
        )
        return not found.unasked

    _run(cell, config_path, state_dir, one_pass)
    rows, totals = found.rows, found.totals
    if form == "json":
        progress = [
            {"name": p.name, "done": p.done, "total": p.total, "remaining": p.remaining} for p in totals.values()
        ]
        click.echo(json.dumps({"cell": cell, "rows": rows, "progress": progress}, indent=2))
    else:
        for one in totals.values():
            click.echo(f"{one.name}: {one.done} of {one.total} done, {one.remaining} remaining")
        click.echo(f"{rows} rows written")
    for lost in found.missing:
        click.echo(f"no answer from {lost.service}: {lost.reason}", err=True)
    if found.unasked:
        click.echo(f"{found.unasked} partitions were not looked at", err=True)
        raise click.exceptions.Exit(FAILED)
    if any(one.remaining for one in totals.values()):
        raise click.exceptions.Exit(MORE_LEFT)
