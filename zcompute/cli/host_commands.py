"""``zcompute host list|show|disable|enable|force-down``: the hosts of cells, and the operator's word that one takes no
new servers, or is down for certain."""

import json
from typing import Any

import click

from zcompute.bus import register_error
from zcompute.cli.cell_commands import ask, dial_cells, open_operator, operator_options
from zcompute.cli.cell_verify import hosts_of
from zcompute.cli.drain_commands import drain, evacuate
from zcompute.cli.exits import UsageRefused
from zcompute.cli.host_find import find_host
from zcompute.cli.operator import Operator, operator_config
from zcompute.cli.tables import print_rows
from zcompute.cli.token_commands import add_host_commands
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.host import Host
from zcompute.objects.messages.hosts import (
    HostEnableReply,
    HostEnableRequest,
    HostForceDownReply,
    HostForceDownRequest,
)
from zcompute.objects.methods import HOST_ENABLE, HOST_FORCE_DOWN

TIMEOUT_MS = 10_000
FENCE_TIMEOUT_MS = 40_000  # beyond [fencing] timeout_s, whose limit is 25
LINK_WAIT_MS = 1_000


@click.group()
def host() -> None:
    """List hosts; take them out, force them down, and let them work again."""


add_host_commands(host)
host.add_command(drain)
host.add_command(evacuate)


@host.command("force-down")
@click.argument("name")
@click.option("--off", is_flag=True, help="Let the host work again.")
@click.option("--fence", is_flag=True, help="Only once the cell's fence command ([fencing]) says that it is off.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--cell", help="The host's cell, where several have one of this name.")
@click.option("--config", "config_path", help="The operator's configuration.")
@click.option("--state-dir", default="./var", show_default=True, help="An embedded region.")
@click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True)
def force_down(
    name: str,
    off: bool,
    fence: bool,
    dry_run: bool,
    cell: str | None,
    config_path: str | None,
    state_dir: str,
    form: str,
) -> None:
    """Say that host NAME is down for certain: powered off, or fenced.

    Deletes stop waiting for it, builds on it end in ERROR, and it gets nothing new. When it comes back it stays in
    quarantine, told only to destroy what was deleted meanwhile, until --off. Never force a host down that may still
    run: silence alone is no proof; --fence has the cell's conductor make sure, and changes nothing when it cannot.
    """
    if fence and off:
        raise UsageRefused("--fence makes sure that a host is off: expected it without --off")
    for error in SERVICE_ERRORS:
        register_error(error)
    with Operator(operator_config(config_path, state_dir), FENCE_TIMEOUT_MS if fence else TIMEOUT_MS) as operator:
        operator.wait_links(LINK_WAIT_MS)
        home, _ = find_host(operator, name, cell)
        request = HostForceDownRequest(host=name, forced_down=not off, fence=fence, dry_run=dry_run)
        reply: HostForceDownReply = ask(operator, home, HOST_FORCE_DOWN, request)
    what = "is forced down" if reply.host.forced_down else "is not forced down"
    _print_change(home, reply, dry_run, form, what, {"forced_down": reply.host.forced_down})


@host.command()
@click.argument("name")
@click.option("--reason", help="Why; shown with the host.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--cell", help="The host's cell, where several have one of this name.")
@operator_options
def disable(
    name: str, reason: str | None, dry_run: bool, cell: str | None, config_path: str | None, state_dir: str, form: str
) -> None:
    """Host NAME takes no new servers. Those that it has go on."""
    set_enabled(name, HostEnableRequest(host=name, enabled=False, reason=reason, dry_run=dry_run), cell,
                config_path, state_dir, form)  # fmt: skip


@host.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--cell", help="The host's cell, where several have one of this name.")
@operator_options
def enable(name: str, dry_run: bool, cell: str | None, config_path: str | None, state_dir: str, form: str) -> None:
    """Host NAME takes new servers again."""
    set_enabled(name, HostEnableRequest(host=name, enabled=True, dry_run=dry_run), cell, config_path, state_dir, form)


def set_enabled(
    name: str, request: HostEnableRequest, cell: str | None, config_path: str | None, state_dir: str, form: str
) -> None:
    """Ask the host's cell, and print what it says."""
    with open_operator(config_path, state_dir) as operator:
        home, _ = find_host(operator, name, cell)
        reply: HostEnableReply = ask(operator, home, HOST_ENABLE, request)
    what = "is disabled" if reply.host.disabled else "is enabled"
    _print_change(home, reply, request.dry_run, form, what, {
        "disabled": reply.host.disabled, "disabled_reason": reply.host.disabled_reason,
    })  # fmt: skip


@host.command("list")
@click.option("--cell", "cells", multiple=True, help="Only hosts of this cell; may be repeated.")
@operator_options
def list_hosts(cells: tuple[str, ...], config_path: str | None, state_dir: str, form: str) -> None:
    """The hosts of all cells that are linked, or of those named."""
    with open_operator(config_path, state_dir) as operator:
        dial_cells(operator)
        names = list(cells) or [linked for linked in operator.cells() if linked != ROOT_CELL]
        rows = [
            host_document(name, row)
            for name in names
            for row in hosts_of(lambda of, method, request: ask(operator, of, method, request), name)
        ]
    print_rows(rows, form)


@host.command()
@click.argument("name")
@click.option("--cell", help="The host's cell, where several have one of this name.")
@operator_options
def show(name: str, cell: str | None, config_path: str | None, state_dir: str, form: str) -> None:
    """One host."""
    with open_operator(config_path, state_dir) as operator:
        document = host_document(*find_host(operator, name, cell))
    if form == "json":
        click.echo(json.dumps(document, indent=2))
        return
    for key, value in document.items():
        click.echo(f"{key}: {value}")


def host_document(cell: str, row: Host) -> dict[str, Any]:
    """A host as ``--format json`` prints it."""
    return {
        "name": row.name, "cell": cell, "state": row.state, "zone": row.availability_zone,
        "forced_down": row.forced_down, "disabled": row.disabled, "disabled_reason": row.disabled_reason,
        "instances": row.instances,
        "vcpus": f"{row.used.vcpus}/{row.total.vcpus}", "memory_mb": f"{row.used.memory_mb}/{row.total.memory_mb}",
        "disk_gb": f"{row.used.disk_gb}/{row.total.disk_gb}", "agent": row.service_id, "epoch": row.agent_epoch,
    }  # fmt: skip


def _print_change(
    cell: str,
    reply: HostForceDownReply | HostEnableReply,
    dry_run: bool,
    form: str,
    what: str,
    fields: dict[str, Any],
) -> None:
    row = reply.host
    if form == "json":
        document = {
            "cell": cell, "host": row.name, **fields, "state": row.state, "instances": row.instances,
            "changed": reply.changed, "dry_run": dry_run,
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
        return
    news = "would change" if dry_run and reply.changed else "changed" if reply.changed else "was so already"
    click.echo(f"host {row.name} of cell {cell} {what} ({news}): state {row.state}, {row.instances} instances claimed")
