"""``zcompute server list`` and ``zcompute service list``: tables of what the API says."""

import json
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.table import Table

from zcompute.cli.client import ApiClient, pages
from zcompute.cli.exits import UsageRefused
from zcompute.objects.instance import VM_SOFT_DELETED
from zcompute.objects.server_status import OF_VM_STATE

SERVER_COLUMNS = {
    "id": "id",
    "name": "name",
    "status": "status",
    "task": "OS-EXT-STS:task_state",
    "host": "OS-EXT-SRV-ATTR:host",
    "created": "created",
}
SERVICE_COLUMNS = {"binary": "binary", "host": "host", "zone": "zone", "status": "status", "state": "state"}


def _client(state_dir: str, url: str | None, token: str | None) -> ApiClient:
    if url and token:
        return ApiClient(url, token)
    if url or token:
        raise UsageRefused("--url and --token go together; without both, --state-dir names an embedded region")
    from zcompute.cli.up.region import Region

    return Region.load(state_dir).client()


def _print(rows: list[dict[str, Any]], columns: dict[str, str], form: str) -> None:
    picked = [{name: row.get(key) for name, key in columns.items()} for row in rows]
    if form == "json":
        click.echo(json.dumps(picked, indent=2))
        return
    console = Console()
    table = Table()
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="fold")
    for row in picked:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    if not console.is_terminal:
        console.width = max(console.width, 160)
    console.print(table)
    click.echo(f"{len(picked)} rows")


def _options(command: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option("--format", "form", default="table", type=click.Choice(["table", "json"]), show_default=True),
        click.option("--token", envvar="ZCOMPUTE_TOKEN", help="Token for --url."),
        click.option("--url", envvar="ZCOMPUTE_URL", help="The API of any region, http://host:port."),
        click.option("--state-dir", default="./var", show_default=True, help="An embedded region."),
    ):
        command = option(command)
    return command


@click.group()
def server() -> None:
    """Look at servers."""


@server.command("list")
@_options
@click.option("--status", help="Only servers of this status (ACTIVE, BUILD, ERROR, SOFT_DELETED, ...).")
def server_list(status: str | None, form: str, token: str | None, url: str | None, state_dir: str) -> None:
    """List the servers of all projects, newest first."""
    client = _client(state_dir, url, token)
    path = "/v2.1/servers/detail?all_tenants=1" + (f"&status={quote(status)}" if status else "")
    path += "&soft_deleted=1" if status and status.upper() == OF_VM_STATE[VM_SOFT_DELETED] else ""
    _print(pages(client, path, "servers"), SERVER_COLUMNS, form)


@click.group()
def service() -> None:
    """Look at services."""


@service.command("list")
@_options
def service_list(form: str, token: str | None, url: str | None, state_dir: str) -> None:
    """List the services of all cells and the root."""
    client = _client(state_dir, url, token)
    _print(client.get("/v2.1/os-services")["services"], SERVICE_COLUMNS, form)
