"""``zcompute notifications``: what is told of a cell's changes."""

import click

from zcompute.cli import notifications_text


@click.group()
def notifications() -> None:
    """Follow what is told of a cell's changes; docs/notifications.md has every event."""


@notifications.command()
def reference() -> None:
    """Print the page on notifications (docs/notifications.md)."""
    click.echo(notifications_text.reference(), nl=False)
