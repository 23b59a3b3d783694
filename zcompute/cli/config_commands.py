"""``zcompute config sample|reference|check``."""

import click

from zcompute.cli import config_text
from zcompute.cli.exits import UsageRefused
from zcompute.config import ConfigError, load


@click.group()
def config() -> None:
    """Print or check configuration."""


@config.command()
def sample() -> None:
    """Print a documented configuration file."""
    click.echo(config_text.sample(), nl=False)


@config.command()
def reference() -> None:
    """Print the configuration reference (docs/configuration.md)."""
    click.echo(config_text.reference(), nl=False)


@config.command()
@click.argument("file")
def check(file: str) -> None:
    """Check FILE: unknown keys and wrong types are refused with file, key and reason."""
    try:
        read = load(file)
    except ConfigError as error:
        raise UsageRefused(str(error)) from error
    click.echo(f"{file}: in order, service {read.service.id} of cell {read.service.cell}")
