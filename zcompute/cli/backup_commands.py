"""``zcompute db backup|restore``: one cell's database, by the configuration of one of its conductors."""

from datetime import UTC, datetime
from pathlib import Path

import click

from zcompute.cli.exits import CommandError, UsageRefused
from zcompute.config import ConfigError, load
from zcompute.db.errors import InvalidUrl, StoreError
from zcompute.db.failover.finding import primary_url
from zcompute.db.schema import KIND_CELL, KIND_ROOT
from zcompute.objects.cell import ROOT_CELL

_config_option = click.option("--config", "config_path", required=True, metavar="FILE", help="A conductor's file.")


def place_of(config_path: str) -> tuple[str, str, str]:
    """The URL of the cell's primary, its kind and its cell. Raises CommandError's tree."""
    try:
        config = load(config_path)
    except ConfigError as error:
        raise UsageRefused(str(error)) from error
    if config.database is None:
        raise UsageRefused(f"{config_path}: expected a section [database] with a url, as conductors have")
    cell = config.service.cell
    try:
        return primary_url(config.database, cell), KIND_ROOT if cell == ROOT_CELL else KIND_CELL, cell
    except InvalidUrl as error:
        raise UsageRefused(str(error)) from error
    except StoreError as error:
        raise CommandError(str(error)) from error


@click.command()
@_config_option
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def backup(config_path: str, file: Path) -> None:
    """Write a backup of the cell's database, as of one moment, to FILE (new). The cell works on meanwhile."""
    from zcompute.db import backup as backups

    url, kind, cell = place_of(config_path)
    if file.exists():
        raise UsageRefused(f"{file} is there already: name a new file")
    try:
        rows = backups.backup(url, kind, cell, file)
    except (StoreError, OSError) as error:
        raise CommandError(f"no backup was made: {error}") from error
    click.echo(f"{kind} database of cell {cell}: {sum(rows.values())} rows, {file.stat().st_size} bytes in {file}")


@click.command()
@_config_option
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def restore(config_path: str, file: Path) -> None:
    """Fill the cell's EMPTY database from a backup. Stop the cell's conductors before, start them afterwards.

    What happened after the backup is not in it: agents then report all they have, nothing is destroyed by itself, and
    `zcompute audit` says which servers only hosts know.
    """
    from zcompute.db import backup as backups

    url, kind, cell = place_of(config_path)
    try:
        done = backups.restore(url, kind, cell, file)
    except (StoreError, OSError) as error:
        raise CommandError(f"not restored: {error}") from error
    taken = datetime.fromtimestamp(done.taken_at_us / 1e6, UTC).isoformat(timespec="seconds")
    click.echo(f"{kind} database of cell {cell}: {sum(done.rows.values())} rows of {taken}, history {done.history}")
    click.echo("start the cell's conductors, then run `zcompute audit`")
