"""Rows as a table for people, or as JSON for programs."""

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

WIDTH_MIN = 160  # where nobody looks: lines are not to be broken


def print_rows(rows: Sequence[dict[str, Any]], form: str) -> None:
    """To standard output; ``form`` is ``json`` for a list of objects, anything else for a table."""
    if form == "json":
        click.echo(json.dumps(list(rows), indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_MIN)
    table = Table()
    for name in rows[0] if rows else ():
        table.add_column(name, no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    if rows:
        console.print(table)
    click.echo(f"{len(rows)} rows")
