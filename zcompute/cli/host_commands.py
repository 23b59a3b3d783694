"""``zcompute host force-down``: the operator's word that a host is down for certain."""

import json

import click

from zcompute.bus import register_error
from zcompute.cli.exits import CommandError
from zcompute.cli.operator import Operator, operator_config
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import SERVICE_ERRORS, HostNotFound
from zcompute.objects.messages.hosts import HostForceDownReply, HostForceDownRequest
from zcompute.objects.methods import HOST_FORCE_DOWN

TIMEOUT_MS = 10_000
LINK_WAIT_MS = 1_000


@click.group()
def host() -> None:
    """Force hosts down, and let them work again."""


@host.command("force-down")
@click.argument("name")
@click.option("--off", is_flag=True, help="Let the host work again.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--cell", help="The host's cell, where several have one of this name.")
@click.option("--config", "config_path", help="The operator's configuration.")
@click.option("--state-dir", default="./var", show_default=True, help="An embedded region.")
@click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True)
def force_down(
    name: str, off: bool, dry_run: bool, cell: str | None, config_path: str | None, state_dir: str, form: str
) -> None:
    """Say that host NAME is down for certain: powered off, or fenced.

    Deletes stop waiting for it, builds on it end in ERROR, and it gets nothing new. When it comes back it stays in
    quarantine, told only to destroy what was deleted meanwhile, until --off. Never force a host down that may still
    run: silence alone is no proof.
    """
    for error in SERVICE_ERRORS:
        register_error(error)
    with Operator(operator_config(config_path, state_dir), TIMEOUT_MS) as operator:
        operator.wait_links(LINK_WAIT_MS)
        home, reply = _find(operator, name, cell, not off)
        if not dry_run:
            request = HostForceDownRequest(host=name, forced_down=not off)
            reply = operator.ask_cell(home, HOST_FORCE_DOWN, request)
    _show(home, reply, dry_run, form)


def _find(operator: Operator, name: str, cell: str | None, forced_down: bool) -> tuple[str, HostForceDownReply]:
    """The host's cell, and what would change. Raises CommandError for none, or more than one."""
    request = HostForceDownRequest(host=name, forced_down=forced_down, dry_run=True)
    cells = [cell] if cell else [linked for linked in operator.cells() if linked != ROOT_CELL]
    found: list[tuple[str, HostForceDownReply]] = []
    for asked in cells:
        try:
            found.append((asked, operator.ask_cell(asked, HOST_FORCE_DOWN, request)))
        except HostNotFound:
            continue
    if len(found) > 1:
        raise CommandError(f"cells {', '.join(asked for asked, _ in found)} have a host {name}: name one with --cell")
    if not found:
        raise CommandError(f"host {name} is not known in cells {', '.join(cells) or '(none is linked)'}")
    return found[0]


def _show(cell: str, reply: HostForceDownReply, dry_run: bool, form: str) -> None:
    row = reply.host
    if form == "json":
        fields = {
            "cell": cell, "host": row.name, "forced_down": row.forced_down, "state": row.state,
            "instances": row.instances, "changed": reply.changed, "dry_run": dry_run,
        }  # fmt: skip
        click.echo(json.dumps(fields, indent=2))
        return
    what = "is forced down" if row.forced_down else "is not forced down"
    news = "would change" if dry_run and reply.changed else "changed" if reply.changed else "was so already"
    click.echo(f"host {row.name} of cell {cell} {what} ({news}): state {row.state}, {row.instances} instances claimed")
