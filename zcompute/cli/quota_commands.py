"""``zcompute quota``: what projects may have and have, as the root says; and whether the books are right."""

import json
from collections.abc import Callable
from typing import Any

import click
import msgspec

from zcompute.bus import BusError, register_error
from zcompute.cli.exits import FAILED, MORE_LEFT, CommandError, UsageRefused
from zcompute.cli.operator import Missing, Operator, operator_config
from zcompute.cli.upkeep_passes import until_all_asked
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.quotas import (
    Discrepancy,
    QuotaDefaultReply,
    QuotaDefaultSetRequest,
    QuotaReconcileReply,
    QuotaReconcileRequest,
    QuotaReply,
    QuotaRequest,
    QuotaSetRequest,
    QuotaUsageReply,
    QuotaUsageRequest,
)
from zcompute.objects.methods import (
    QUOTA_DEFAULT,
    QUOTA_GET,
    QUOTA_RECONCILE,
    QUOTA_SET,
    QUOTA_SET_DEFAULT,
    QUOTA_USAGE,
)
from zcompute.objects.partition import PARTITIONS
from zcompute.objects.quota import RESOURCES, UNLIMITED, Amount, Limits, ProjectUsage

TIMEOUT_MS = 10_000
RECONCILE_TIMEOUT_MS = 600_000
LINK_WAIT_MS = 2_000
PAGE_PROJECTS = 1_000
STEP_ROWS = 5_000
STEPS_MAX = 100_000


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True),
        click.option("--state-dir", default="./var", show_default=True, help="An embedded region."),
        click.option("--config", "config_path", help="The operator's configuration."),
    ):
        command = option(command)
    return command


def _asking(config_path: str | None, state_dir: str, act: Callable[[Operator], Any], timeout_ms: int) -> Any:
    for error in SERVICE_ERRORS:
        register_error(error)
    with Operator(operator_config(config_path, state_dir), timeout_ms) as operator:
        operator.wait_links(LINK_WAIT_MS)
        try:
            return act(operator)
        except BusError as error:
            raise CommandError(str(error)) from error


def _ask(config_path: str | None, state_dir: str, method: Any, request: Any) -> Any:
    return _asking(config_path, state_dir, lambda operator: operator.ask_cell(ROOT_CELL, method, request), TIMEOUT_MS)


@click.group()
def quota() -> None:
    """What projects may have and have. Exit codes: 0 done, 1 refused or no answer, 2 wrong usage or configuration;
    those of `reconcile` are its own."""


@quota.command()
@click.argument("project", required=False)
@_options
def show(project: str | None, config_path: str | None, state_dir: str, form: str) -> None:
    """Limits and usage of PROJECT; without one the default, which holds for projects without a limit of their own."""
    if project is None:
        default: QuotaDefaultReply = _ask(config_path, state_dir, QUOTA_DEFAULT, Empty())
        _print(default.limits, default.own, None, form)
        return
    reply: QuotaReply = _ask(config_path, state_dir, QUOTA_GET, QuotaRequest(project_id=project))
    _print(reply.limits, reply.own, reply.used, form)


def _set_options(command: Callable[..., None]) -> Callable[..., None]:
    limit = click.IntRange(min=UNLIMITED)
    for option in (
        click.option("--instances", type=limit, help="Servers; -1: no limit."),
        click.option("--cores", type=limit, help="Virtual cores; -1: no limit."),
        click.option("--ram", "ram_mb", type=limit, help="Memory in MiB; -1: no limit."),
        click.option("--unset", multiple=True, type=click.Choice(RESOURCES), help="Give it back to the default."),
    ):
        command = option(command)
    return command


@quota.command("set")
@click.argument("project", required=False)
@click.option("--default", "of_default", is_flag=True, help="The default instead of a project's own limits.")
@click.option("--force", is_flag=True, help="Also below what is used: nothing new then, until enough is deleted.")
@_set_options
@_options
def set_limits(
    project: str | None, of_default: bool, force: bool, instances: int | None, cores: int | None, ram_mb: int | None,
    unset: tuple[str, ...], config_path: str | None, state_dir: str, form: str,
) -> None:  # fmt: skip
    """Set limits of PROJECT, or with --default of all projects that have none of their own."""
    if (project is None) != of_default:
        raise UsageRefused("expected a project, or --default: exactly one of them")
    limits = Limits(instances=instances, cores=cores, ram_mb=ram_mb)
    if limits == Limits() and not unset:
        raise UsageRefused("expected --instances, --cores, --ram or --unset")
    if project is None:
        wanted = QuotaDefaultSetRequest(limits=limits, unset=list(unset))
        default: QuotaDefaultReply = _ask(config_path, state_dir, QUOTA_SET_DEFAULT, wanted)
        _print(default.limits, default.own, None, form)
        return
    request = QuotaSetRequest(project_id=project, limits=limits, unset=list(unset), force=force)
    reply: QuotaReply = _ask(config_path, state_dir, QUOTA_SET, request)
    _print(reply.limits, reply.own, reply.used, form)


@quota.command()
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(min=1), help="Projects at most.")
@_options
def usage(limit: int, config_path: str | None, state_dir: str, form: str) -> None:
    """What every project with servers uses, in the order of the projects.

    Exit codes: 0 all are shown, 9 there are more than --limit, 1 no answer, 2 wrong usage or configuration.
    """

    def read(operator: Operator) -> list[ProjectUsage]:
        found: list[ProjectUsage] = []
        while len(found) <= limit:
            after = found[-1].project_id if found else ""
            request = QuotaUsageRequest(after=after, limit=PAGE_PROJECTS)
            page: QuotaUsageReply = operator.ask_cell(ROOT_CELL, QUOTA_USAGE, request)
            found += page.usages
            if len(page.usages) < PAGE_PROJECTS:
                break
        return found

    found: list[ProjectUsage] = _asking(config_path, state_dir, read, TIMEOUT_MS)
    shown = found[:limit]
    if form == "json":
        rows = [{"project": u.project_id, **_amount(u.used)} for u in shown]
        click.echo(json.dumps({"projects": rows, "more": len(found) > limit}, indent=2))
    else:
        for one in shown:
            click.echo(f"{one.project_id}: {one.instances} instances, {one.cores} cores, {one.ram_mb} MiB")
        click.echo(f"{len(shown)} projects" + (", there are more" if len(found) > limit else ""))
    if len(found) > limit:
        raise click.exceptions.Exit(MORE_LEFT)


@quota.command()
@click.option("--dry-run", is_flag=True, help="Only say what is wrong.")
@click.option("--absent", is_flag=True, help="Let go also of servers of which their cell has no row at all.")
@click.option("--max-rows", default=1_000_000, show_default=True, type=click.IntRange(min=1), metavar="N")
@_options
def reconcile(
    dry_run: bool, absent: bool, max_rows: int, config_path: str | None, state_dir: str, form: str
) -> None:  # fmt: skip
    """Compare every usage row with the root's mappings and build requests and with the cells' servers, and repair.

    Exit codes: 0 the books are right (now), 1 something is wrong and was not repaired, or not all could be looked at
    (it says which), 9 more is left to look at, 2 wrong usage or configuration.
    """
    walk = _Walk(dry_run=dry_run, absent=absent, rows_max=max_rows)
    _asking(config_path, state_dir, walk.run, RECONCILE_TIMEOUT_MS)
    left = [one for one in walk.found if not one.repaired]
    if form == "json":
        document = {
            "rows": walk.rows, "found": msgspec.to_builtins(walk.found), "more": walk.more, "dry_run": dry_run,
            "silent_cells": sorted(walk.silent), "partitions_not_asked": PARTITIONS - len(walk.partitions),
            "missing": [[one.service, one.reason] for one in walk.missing],
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
    else:
        for one in walk.found:
            click.echo(f"{one.kind} {one.subject} project={one.project_id} {one.detail} "
                       f"{'repaired' if one.repaired else 'not repaired'}")  # fmt: skip
        for cell in sorted(walk.silent):
            click.echo(f"cell {cell} did not answer: nothing is said of its servers", err=True)
        for lost in walk.missing:
            click.echo(f"no answer from {lost.service}: {lost.reason}", err=True)
        click.echo(f"{walk.rows} servers looked at, {len(walk.found)} wrong, {len(walk.found) - len(left)} repaired")
    if left or walk.missing or walk.silent or (len(walk.partitions) < PARTITIONS and not walk.more):
        raise click.exceptions.Exit(FAILED)
    if walk.more:
        raise click.exceptions.Exit(MORE_LEFT)


class _Walk:
    """One conductor after the other, step by step; pass by pass while partitions move between them. ``rows`` and what
    is not repaired are of the last pass."""

    def __init__(self, *, dry_run: bool, absent: bool, rows_max: int) -> None:
        self._dry_run = dry_run
        self._absent = absent
        self._rows_max = rows_max
        self.rows = 0
        self.more = False
        self.found: list[Discrepancy] = []
        self.partitions: set[int] = set()
        self.silent: set[str] = set()
        self.missing: list[Missing] = []

    def run(self, operator: Operator) -> None:
        """Raises CommandError."""
        until_all_asked(lambda: self._pass(operator))

    def _pass(self, operator: Operator) -> bool:
        """Whether there is nothing that a further pass could still look at."""
        conductors = operator.conductors(ROOT_CELL)
        if not conductors:
            raise CommandError("no conductor of the root cell is linked")
        self.rows, self.silent, self.missing = 0, set(), []
        self.found = [one for one in self.found if one.repaired]
        self._look(operator, conductors)
        return self.more or len(self.partitions) >= PARTITIONS

    def _look(self, operator: Operator, conductors: list[str]) -> None:
        for name in conductors:
            partition, after = 0, ""
            for _ in range(STEPS_MAX):
                if self.rows >= self._rows_max:
                    self.more = True
                    return
                request = QuotaReconcileRequest(
                    rows_max=min(STEP_ROWS, self._rows_max - self.rows), partition=partition, after_uuid=after,
                    dry_run=self._dry_run, absent=self._absent,
                )  # fmt: skip
                answers, missing = operator.ask_each([name], QUOTA_RECONCILE, request)
                if missing:
                    self.missing += missing
                    break
                reply: QuotaReconcileReply = answers[0]
                self.rows += reply.rows
                self.found += reply.found
                self.partitions.update(reply.partitions)
                self.silent.update(reply.silent)
                if not reply.more:
                    break
                partition, after = reply.partition, reply.after_uuid


def _amount(used: Amount) -> dict[str, int]:
    return {name: used.of(name) for name in RESOURCES}


def _print(limits: Limits, own: Limits, used: Amount | None, form: str) -> None:
    in_force = dict(limits.by_name())
    set_here = {"cores": own.cores, "instances": own.instances, "ram": own.ram_mb}
    if form == "json":
        document: dict[str, Any] = {"limits": in_force, "own": set_here}
        if used is not None:
            document["used"] = _amount(used)
        click.echo(json.dumps(document, indent=2))
        return
    for name in RESOURCES:
        limit = "no limit" if in_force[name] == UNLIMITED else str(in_force[name])
        source = "" if set_here[name] is None else " (set)"
        click.echo(f"{name}: {f'{used.of(name)} of ' if used is not None else ''}{limit}{source}")
