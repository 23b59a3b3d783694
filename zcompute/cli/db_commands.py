"""``zcompute db init|upgrade|status``: a cell's database, by the configuration of one of its conductors."""

import click

from zcompute.cli.backup_commands import backup, restore
from zcompute.cli.bus_commands import end_with, print_json, print_table
from zcompute.cli.conductor_commands import (
    ROWS_SHOWN,
    ask_conductors,
    ask_options,
    primary_text,
    read_text,
    reason_lines,
    replica_rows,
)
from zcompute.cli.exits import FAILED, CommandError, UsageRefused
from zcompute.cli.promote_command import promote
from zcompute.cli.upkeep_commands import archive, migrate_data, purge
from zcompute.config import Config, ConfigError, load
from zcompute.db import migrate, seed
from zcompute.db.errors import InvalidUrl, StoreError
from zcompute.db.failover.finding import primary_url
from zcompute.db.schema import KIND_CELL, KIND_ROOT
from zcompute.objects.cell import ROOT_CELL

_config_option = click.option("--config", "config_path", required=True, metavar="FILE", help="A conductor's file.")


def _read(path: str) -> tuple[Config, str, str]:
    """The configuration, the URL of the cell's primary and its kind. Raises CommandError's tree."""
    try:
        config = load(path)
    except ConfigError as error:
        raise UsageRefused(str(error)) from error
    if config.database is None:
        raise UsageRefused(f"{path}: expected a section [database] with a url, as conductors have")
    kind = KIND_ROOT if config.service.cell == ROOT_CELL else KIND_CELL
    try:
        return config, primary_url(config.database, config.service.cell), kind
    except InvalidUrl as error:
        raise UsageRefused(str(error)) from error
    except StoreError as error:
        raise CommandError(str(error)) from error


def _upgrade(config_path: str, *, offline: bool = False) -> tuple[str, str]:
    config, url, kind = _read(config_path)
    try:
        migrate.upgrade(url, kind, config.service.cell, offline=offline)
        now = migrate.status(url)
    except StoreError as error:
        raise CommandError(str(error)) from error
    click.echo(f"{kind} database of cell {config.service.cell}: schema {now.current}")
    return url, kind


@click.group()
def db() -> None:
    """Create, upgrade and look at a cell's database."""


db.add_command(archive)
db.add_command(purge)
db.add_command(migrate_data)
db.add_command(backup)
db.add_command(restore)
db.add_command(promote)


@db.command()
@_config_option
@click.option("--flavors/--no-flavors", default=False, help="Also insert m1.tiny to m1.large (root cell only).")
def init(config_path: str, flavors: bool) -> None:
    """Create the schema in an empty database. Safe to repeat. Run it before the cell's conductors start."""
    url, kind = _upgrade(config_path)
    if not flavors:
        return
    if kind != KIND_ROOT:
        raise UsageRefused("--flavors: flavors are in the root cell's database, and this is another cell's")
    try:
        click.echo(f"{seed.flavors(url)} flavors inserted")
    except StoreError as error:
        raise CommandError(str(error)) from error


@db.command()
@_config_option
@click.option("--expand", "phase", flag_value="expand", help="Add what this release needs (the default).")
@click.option("--contract", "phase", flag_value="contract", help="Take away what no release in use needs.")
@click.option("--status", "phase", flag_value="status", help="Only say what is to be run.")
@click.option("--gone", multiple=True, metavar="ID", help="--contract: a conductor that will never come back.")
@click.option("--offline", is_flag=True, help="The cell is stopped: tables may be locked for long.")
def upgrade(config_path: str, phase: str | None, gone: tuple[str, ...], offline: bool) -> None:
    """Bring the schema to this release, in two phases. Safe to repeat, and after a run that was cut short.

    --expand runs while the cell works, and what the release before does goes on. --contract runs after `zcompute
    upgrade finalize`; it is refused, with the reasons, while an older release may need what goes. Exit codes: 0 done
    (with --status: nothing to run), 1 refused or failed (with --status: something is to be run), 2 wrong usage.
    """
    if gone and phase != "contract":
        raise UsageRefused("--gone: goes with --contract only")
    if phase == "status":
        _show_pending(config_path)
    elif phase == "contract":
        config, url, kind = _read(config_path)
        try:
            migrate.contract(url, kind, config.service.cell, gone=gone, offline=offline)
            now = migrate.status(url)
        except StoreError as error:
            raise CommandError(str(error)) from error
        click.echo(f"{kind} database of cell {config.service.cell}: contracted to {now.contract_current}")
    else:
        _upgrade(config_path, offline=offline)


def _show_pending(config_path: str) -> None:
    config, url, kind = _read(config_path)
    try:
        found = migrate.status(url)
        reasons = migrate.why_not_contract(url) if found.contract else []
    except StoreError as error:
        raise CommandError(str(error)) from error
    click.echo(f"{kind} database of cell {config.service.cell}: release level {found.level or 'none'}")
    click.echo(f"expand: at {found.current or 'nothing'}, to run: {', '.join(found.expand) or 'nothing'}")
    click.echo(f"contract: at {found.contract_current or 'nothing'}, to run: {', '.join(found.contract) or 'nothing'}")
    for reason in reasons:
        click.echo(f"contract would be refused: {reason}")
    if found.expand or found.contract:
        raise click.exceptions.Exit(FAILED)


@db.command()
@_config_option
def status(config_path: str) -> None:
    """Show where the schema stands. Exit code 0: current; 1: not."""
    _, url, _ = _read(config_path)
    try:
        found = migrate.status(url)
    except StoreError as error:
        raise CommandError(str(error)) from error
    click.echo(f"kind {found.kind}, cell {found.cell}, schema {found.current}, this release needs {found.head}")
    if not found.is_current:
        raise CommandError("the schema is not current: run `zcompute db upgrade`")


@db.command("replicas")
@click.option("--cell", help="This cell only.")
@ask_options
def db_replicas(
    cell: str | None, state_dir: str, config_path: str | None, form: str, window_s: int, timeout_ms: int
) -> None:
    """The replicas as each conductor sees them: state, how far behind, reads, and why one takes none.

    docs/operating/replicas.md says what the values mean. Exit codes: 0 every replica takes reads, 1 one does not or a
    conductor has not answered, 2 wrong usage or configuration.
    """
    stats, missing = ask_conductors((), state_dir, config_path, window_s, timeout_ms, cell)
    if form == "json":
        databases = {stat.service_id: stat.database for stat in stats}
        print_json({"reads": {stat.service_id: stat.reads for stat in stats}, "primary": databases, "missing": missing})
    else:
        print_table([row for stat in stats for row in replica_rows(stat)], "replica", ROWS_SHOWN)
        for stat in stats:
            click.echo(f"{stat.service_id}: primary {primary_text(stat)}")
            click.echo(f"{stat.service_id}: reads {read_text(stat)}")
            for line in reason_lines(stat):
                click.echo(line)
    end_with(missing)
    out = {one.name for stat in stats for one in stat.reads.replicas if one.state != "serving"}
    if out:
        raise CommandError(f"take no reads: {', '.join(sorted(out))}")
