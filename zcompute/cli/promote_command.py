"""``zcompute db promote``: another server becomes a cell's primary, by the configuration of one of its conductors."""

from pathlib import Path

import click
from msgspec.structs import replace

from zcompute.cli.exits import CommandError, UsageRefused
from zcompute.cli.up.layout import CONDUCTOR, Paths
from zcompute.config import Config, ConfigError, DatabaseConfig, load
from zcompute.db.drivers import named_targets
from zcompute.db.errors import InvalidUrl, PromotionRefused, StoreError
from zcompute.db.failover.promote import Asked, Promoted, Promotion, administered
from zcompute.db.secrets import file_secret
from zcompute.db.url import MariaDbTarget, configured_url, replica_urls

LEASE_MS = 600  # a conductor's, where its configuration says nothing


@click.command("promote")
@click.option("--config", "config_path", metavar="FILE", help="A conductor's file.")
@click.option("--state-dir", metavar="DIR", help="Of an embedded region, with --cell, instead of --config.")
@click.option("--cell", help="The cell; with --config: refuse when it is another one's.")
@click.option("--to", metavar="URL", help="This server (its URL, or host:port), if it has what any other has.")
@click.option("--user", default="root", show_default=True, help="An administrator of all its servers.")
@click.option("--password-file", type=click.Path(exists=True, dir_okay=False), help="Of that user; else as configured.")
@click.option("--accept-loss", is_flag=True, help="Go on although acknowledged changes may be lost, which are listed.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def promote(
    config_path: str | None, state_dir: str | None, cell: str | None, to: str | None, user: str,
    password_file: str | None, accept_loss: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Make a replica the primary of its cell, after the primary was lost for good.

    Nothing that was acknowledged is lost, or it is refused: every replica that could acknowledge must answer, and must
    not have been started again since. May be repeated, and after a run that was cut short. Conductors find the new
    primary by themselves. See docs/operating/failover.md. Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
    """
    config, database = _read(_config_of(config_path, state_dir, cell), cell)
    try:
        targets = named_targets([configured_url(database), *replica_urls(database)])
        silent = _silent(database)
        wanted = None if to is None else _name_of(to, targets)
    except InvalidUrl as error:
        raise UsageRefused(str(error)) from error
    if len(targets) < 2:
        raise UsageRefused("expected a MariaDB with [[database.replicas]], found no other server to promote")
    what = Asked(
        config.service.cell, database.durability, config.conductor.lease_ms or LEASE_MS, wanted, accept_loss, dry_run,
        silent,
    )  # fmt: skip
    try:
        password = file_secret(password_file).password if password_file else None
        admin = {
            name: administered(target, user, password if password is not None else next(target.passwords()))
            for name, target in targets.items()
        }
        done = Promotion(admin, what, click.echo).run()
    except PromotionRefused as refused:
        for reason in refused.reasons:
            click.echo(f"refused: {reason}", err=True)
        raise CommandError("nothing was promoted") from refused
    except (StoreError, OSError, ValueError) as error:
        raise CommandError(f"not finished, run it again: {error}") from error
    if done is not None:
        _tell(done, database)


def _config_of(config_path: str | None, state_dir: str | None, cell: str | None) -> str:
    if config_path is not None:
        return config_path
    if state_dir is None or cell is None:
        raise UsageRefused("expected --config FILE, or --state-dir DIR and --cell NAME")
    return str(Paths(Path(state_dir)).config(f"{cell}-{CONDUCTOR}-1"))


def _read(path: str, cell: str | None) -> tuple[Config, DatabaseConfig]:
    try:
        config = load(path)
    except ConfigError as error:
        raise UsageRefused(str(error)) from error
    if config.database is None:
        raise UsageRefused(f"{path}: expected a section [database] with a url, as conductors have")
    if cell not in (None, config.service.cell):
        raise UsageRefused(f"--cell {cell}: {path} is of cell {config.service.cell}")
    return config, config.database


def _silent(database: DatabaseConfig) -> set[str]:
    """The servers that are configured not to acknowledge. Raises InvalidUrl."""
    quiet = [one for one in database.replicas if not one.acknowledges]
    return set(named_targets(replica_urls(replace(database, replicas=quiet))))


def _name_of(to: str, targets: dict[str, MariaDbTarget]) -> str:
    """The server of a URL, or of its name. Raises InvalidUrl."""
    name = next(iter(named_targets([to]))) if "://" in to else to
    if name not in targets:
        raise UsageRefused(f"--to {to}: expected one of {', '.join(targets)}")
    return name


def _tell(done: Promoted, database: DatabaseConfig) -> None:
    click.echo(f"primary {done.primary}, term {done.term}; follow it: {', '.join(done.followers) or 'nobody'}")
    for name, reason in done.left.items():
        click.echo(f"{name}: {reason}")
    if done.left:
        click.echo("how to rebuild a server: docs/operating/failover.md, section Rebuilding")
    if database.durability == "replicated" and not done.followers:
        click.echo("nothing is acknowledged until a replica that may acknowledge follows it: durability is replicated")
    click.echo("put its settings in the servers' files now: read_only, rpl_semi_sync_master_* (failover.md)")
