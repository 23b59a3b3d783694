"""``zcompute upgrade check|finalize``: whether all of a cell is of the new release, and the raising of its level."""

from collections.abc import Iterable

import click

from zcompute.bus import EndpointStat
from zcompute.cli.backup_commands import place_of
from zcompute.cli.exits import FAILED, CommandError
from zcompute.cli.operator import Missing, Operator, operator_config
from zcompute.db import level as levels
from zcompute.db import migrate
from zcompute.db.errors import StoreError
from zcompute.db.schema import KIND_CELL
from zcompute.objects.stored import NEWEST_LEVEL, speaks

TIMEOUT_MS = 20_000
LINK_WAIT_MS = 2_000
OK, WARNING, FAILURE = 0, 1, 2
SPEAKERS = frozenset({"conductor", "compute", "scheduler", "api"})


def behind(stats: Iterable[EndpointStat], cell: str, level: str) -> dict[str, str]:
    """Services of the cell, and APIs linked with it, that do not speak the level: with their release. Pure."""
    found: dict[str, str] = {}
    for stat in stats:
        if stat.cell != cell:
            continue
        if not speaks(stat.release, level):
            found[stat.service_id] = stat.release
        for link in stat.links:
            of_cell = link.cell == cell or link.role == "api"
            if link.service_id and link.role in SPEAKERS and of_cell and not speaks(link.release, level):
                found[link.service_id] = link.release or "(not told)"
    return found


def unseen(stats: Iterable[EndpointStat], cell: str, agents: dict[str, str]) -> dict[str, str]:
    """Hosts whose agent is linked with no conductor of the cell, so that nobody knows its release. Pure."""
    linked = {link.service_id for stat in stats if stat.cell == cell for link in stat.links if link.role == "compute"}
    return {host: agent for host, agent in agents.items() if agent not in linked}


class Findings:
    """What keeps the level from being raised (``failures``), and what an operator should know (``warnings``)."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.warnings: list[str] = []

    @property
    def code(self) -> int:
        return FAILURE if self.failures else WARNING if self.warnings else OK


def _look(config_path: str, operator_path: str | None, state_dir: str) -> tuple[Findings, str, str]:
    """The findings, the database's URL and the cell. Raises CommandError's tree."""
    url, kind, cell = place_of(config_path)
    findings = Findings()
    try:
        schema = migrate.status(url)
        agents = levels.hosts_expected(url) if kind == KIND_CELL else {}
        with migrate.connected(url) as connection:
            older = levels.older_conductors(connection, NEWEST_LEVEL)
        if schema.expand:
            findings.failures.append(f"the schema is not expanded: {', '.join(schema.expand)} are to be run")
        if schema.contract:
            findings.warnings.append(f"contract revisions are to be run afterwards: {', '.join(schema.contract)}")
        if schema.level != NEWEST_LEVEL:
            findings.warnings.append(f"the release level is {schema.level}, to be raised to {NEWEST_LEVEL}")
    except StoreError as error:
        raise CommandError(str(error)) from error
    findings.failures += [f"conductor {name} does not speak level {NEWEST_LEVEL}" for name in older]
    with Operator(operator_config(operator_path, state_dir), TIMEOUT_MS) as operator:
        operator.wait_links(LINK_WAIT_MS)
        stats, missing = operator.stats(operator.conductors(cell))
    _judge(findings, stats, missing, cell, agents)
    return findings, url, cell


def _judge(
    findings: Findings, stats: list[EndpointStat], missing: list[Missing], cell: str, agents: dict[str, str]
) -> None:
    if not any(stat.cell == cell for stat in stats):
        findings.failures.append(f"no conductor of cell {cell} answers")
        return
    findings.failures += [f"{one.service} does not answer: {one.reason}" for one in missing]
    for name, release in sorted(behind(stats, cell, NEWEST_LEVEL).items()):
        findings.failures.append(f"{name} is of release {release}, which does not speak level {NEWEST_LEVEL}")
    for host, agent in sorted(unseen(stats, cell, agents).items()):
        findings.failures.append(f"host {host}: its agent {agent} is not linked, nobody knows its release")


def _say(findings: Findings) -> None:
    for text in findings.failures:
        click.echo(f"failure: {text}")
    for text in findings.warnings:
        click.echo(f"warning: {text}")


_options = [
    click.option("--config", "config_path", required=True, metavar="FILE", help="A conductor's file of the cell."),
    click.option("--operator", "operator_path", metavar="FILE", help="The operator's configuration."),
    click.option("--state-dir", default="./var", show_default=True, help="An embedded region."),
]


@click.group()
def upgrade() -> None:
    """Check an upgrade, and end it: raise the release level."""


@upgrade.command()
@_options[0]
@_options[1]
@_options[2]
def check(config_path: str, operator_path: str | None, state_dir: str) -> None:
    """Is all of the cell new? Exit codes: 0 nothing is to be done, 1 warnings, 2 failures (also: cannot be told)."""
    try:
        findings, _, _ = _look(config_path, operator_path, state_dir)
    except CommandError as error:
        click.echo(f"failure: {error.message}")
        raise click.exceptions.Exit(FAILURE) from error
    _say(findings)
    if not findings.code:
        click.echo("everything is of this release")
    raise click.exceptions.Exit(findings.code)


@upgrade.command()
@_options[0]
@_options[1]
@_options[2]
def finalize(config_path: str, operator_path: str | None, state_dir: str) -> None:
    """Raise the cell's release level once every service speaks it; those that do not are named. There is no way back.

    Exit codes: 0 raised, or raised before; 1 refused; 2 wrong usage.
    """
    findings, url, cell = _look(config_path, operator_path, state_dir)
    if findings.failures:
        _say(findings)
        raise click.exceptions.Exit(FAILED)
    try:
        raised = levels.raise_level(url)
    except StoreError as error:
        raise CommandError(str(error)) from error
    click.echo(f"cell {cell}: release level {NEWEST_LEVEL}{'' if raised else ', as before'}")
