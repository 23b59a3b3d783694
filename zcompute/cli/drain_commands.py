"""``zcompute host drain`` and ``zcompute host evacuate``: every server off a host, so many at a time."""

import json
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zcompute.cli.cell_commands import open_operator, operator_options
from zcompute.cli.draining import COLD, EVACUATION, LIVE, Look
from zcompute.cli.exits import MORE_LEFT, CommandError
from zcompute.cli.host_find import find_host
from zcompute.cli.host_moving import ASK_MS_MAX, Drain, Outcome, check_host
from zcompute.objects.messages.hosts import HostEnableRequest
from zcompute.objects.methods import HOST_ENABLE

PARALLEL_DEFAULT, PARALLEL_MAX = 4, 64
TIMEOUT_S_DEFAULT, TIMEOUT_S_MAX = 4 * 3600, 7 * 24 * 3600
LEFT_SHOWN_MAX = 100
DISABLED_REASON = "drained by an operator"


def moving_options(command: Any) -> Any:
    """What both commands take."""
    options: list[Callable[[Any], Any]] = [
        click.argument("name"),
        click.option("--parallel", default=PARALLEL_DEFAULT, show_default=True, help="Moves at once.",
                     type=click.IntRange(1, PARALLEL_MAX)),
        click.option("--timeout", "timeout_s", default=TIMEOUT_S_DEFAULT, show_default=True, help="Seconds.",
                     type=click.IntRange(1, TIMEOUT_S_MAX)),
        click.option("--dry-run", is_flag=True, help="Only say what would be asked for."),
        click.option("--cell", help="The host's cell, where several have one of this name."),
        operator_options,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option("--live", is_flag=True, help="Servers that run are moved without a stop.")
@moving_options
def drain(live: bool, **options: Any) -> None:
    """Take every server off host NAME, which takes no new ones from then on.

    Servers that run are migrated cold, or live with --live; those that are stopped cold. What this command has migrated
    cold it confirms; moves that others have begun are theirs. It may be stopped and begun again at any time: it goes on
    where it was, and what is under way goes on without it. The host stays disabled: `zcompute host enable`.

    Exit codes: 0 the host is empty, 1 servers are left (each is named, with the reason), or the host is not up,
    9 the time was over: run it again.
    """
    move_off(LIVE if live else COLD, **options)


@click.command()
@moving_options
def evacuate(**options: Any) -> None:
    """Build every server of host NAME elsewhere. The host must be forced down.

    Exit codes as of `zcompute host drain`.
    """
    move_off(EVACUATION, **options)


def move_off(
    way: str,
    name: str,
    parallel: int,
    timeout_s: int,
    dry_run: bool,
    cell: str | None,
    config_path: str | None,
    state_dir: str,
    form: str,
) -> None:
    """Both commands. Raises CommandError; ends with MORE_LEFT, or FAILED."""
    console = Console(stderr=True)
    with open_operator(config_path, state_dir, (timeout_s + 60) * 1000) as operator:
        home, row = find_host(operator, name, cell)
        check_host(row, way)
        moving = Drain(operator, home, name, way, parallel, timeout_s)
        if dry_run:
            print_plan(home, name, moving.plan(), form)
            return
        if way != EVACUATION and not row.disabled:
            request = HostEnableRequest(host=name, enabled=False, reason=DISABLED_REASON)
            operator.ask_cell(home, HOST_ENABLE, request, ASK_MS_MAX)
        shows = form == "text" and console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        try:
            with Progress(*columns, console=console, disable=not shows) as progress:
                outcome = moving.run(progress)
        except KeyboardInterrupt:
            again = "evacuate" if way == EVACUATION else "drain"
            raise CommandError(
                f"stopped. What is under way goes on; `zcompute host {again} {name}` goes on with the rest"
            ) from None
    print_outcome(outcome, form)
    if outcome.timed_out:
        raise SystemExit(MORE_LEFT)
    if outcome.on_host:
        raise CommandError(f"{outcome.on_host} servers are left on host {name}")


def print_plan(cell: str, host: str, look: Look, form: str) -> None:
    """What the first look would ask for."""
    asks = [{"uuid": instance.uuid, "name": instance.name, "action": ask.action} for instance, ask in look.asks]
    left = [{"uuid": uuid, "name": look.names[uuid], "reason": reason} for uuid, reason in look.left.items()]
    if form == "json":
        document = {"cell": cell, "host": host, "asks": asks, "under_way": look.under_way, "left": left}
        click.echo(json.dumps(document, indent=2))
        return
    for each in asks:
        click.echo(f"{each['uuid']} {each['name']}: {each['action']}")
    for each in left:
        click.echo(f"{each['uuid']} {each['name']}: left: {each['reason']}")
    click.echo(f"host {host} of cell {cell}: {look.on_host} servers, {look.under_way} with a task under way")


def print_outcome(outcome: Outcome, form: str) -> None:
    """What it came to."""
    if form == "json":
        left = [
            {"uuid": uuid, "name": name, "reason": outcome.left.get(uuid, "under way")}
            for uuid, name in outcome.names.items()
        ]
        document = {
            "cell": outcome.cell, "host": outcome.host, "moved": outcome.servers - outcome.on_host, "left": left,
            "timed_out": outcome.timed_out,
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
        return
    for uuid, name in list(outcome.names.items())[:LEFT_SHOWN_MAX]:
        click.echo(f"{uuid} {name}: {outcome.left.get(uuid, 'under way')}")
    moved = outcome.servers - outcome.on_host
    state = "is empty" if not outcome.on_host else f"still has {outcome.on_host} servers"
    click.echo(f"host {outcome.host} of cell {outcome.cell} {state}: {moved} moved")
