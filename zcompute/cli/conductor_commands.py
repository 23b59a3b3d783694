"""``zcompute conductor``: run one; and what the running ones are doing: list, show, advise."""

import time
from collections.abc import Sequence
from typing import Any

import click

from zcompute.cli.bus_commands import end_with, print_json, print_table, refused_text
from zcompute.cli.conductor_advice import Advice, advise
from zcompute.cli.exits import CommandError, UsageRefused
from zcompute.cli.operator import Missing, Operator, conductors_of, operator_config
from zcompute.objects.conductor_stat import WINDOW_S_MAX, ConductorStat, ConductorStatRequest
from zcompute.objects.methods import CONDUCTOR_STAT

TIMEOUT_MS = 5_000
LINK_WAIT_MS = 1_000
ROWS_SHOWN = 200
WINDOW_S = 30
Row = dict[str, Any]


def conductor_row(stat: ConductorStat) -> Row:
    """One conductor; of its lanes the worst."""
    return {
        "conductor": stat.service_id,
        "cell": stat.cell,
        "state": stat.state if not stat.database_lost_ms else f"{stat.state}, database lost",
        "lives": stat.lives,
        "age_s": stat.age_ms // 1000,
        "partitions": stat.partitions,
        "links": stat.links,
        "queued": stat.queued,
        "oldest_ms": stat.oldest_ms,
        "batch_rows": max((lane.batch_rows_p50 for lane in stat.lanes), default=0),
        "commit_p50_ms": max((lane.commit_ms_p50 for lane in stat.lanes), default=0.0),
        "commit_p99_ms": max((lane.commit_ms_p99 for lane in stat.lanes), default=0.0),
        "cpu_%": round(100 * stat.cpu_share),
        "wait_%": round(100 * stat.cpu_wait_share),
        "database_%": round(100 * max((lane.commit_share for lane in stat.lanes), default=0.0)),
        "refused": refused_text(stat.refused),
    }


def lane_rows(stat: ConductorStat) -> list[Row]:
    """A row per lane."""
    return [
        {
            "lane": lane.number,
            "id": lane.lane,
            "partitions": lane.partitions,
            "queued": lane.queued_decisions,
            "queued_rows": lane.queued_rows,
            "oldest_ms": lane.oldest_ms,
            "flying": lane.flying_decisions,
            "flying_ms": lane.flying_ms,
            "trying_ms": lane.trying_ms,
            "batches": lane.batches,
            "rows": lane.rows,
            "batch_rows": lane.batch_rows_p50,
            "batch_changes": lane.batch_decisions_p50,
            "commit_p50_ms": lane.commit_ms_p50,
            "commit_p99_ms": lane.commit_ms_p99,
            "database_%": round(100 * lane.commit_share),
            "retries": lane.retries,
            "reconnects": lane.reconnects,
        }
        for lane in stat.lanes
    ]


def replica_rows(stat: ConductorStat) -> list[Row]:
    """A row per replica of its cell's database, as this conductor sees it."""
    return [
        {
            "replica": one.name,
            "conductor": stat.service_id,
            "state": one.state,
            "since_s": one.since_ms // 1000,
            "behind_ms": one.behind_ms,
            "in_flight": one.in_flight,
            "reads": one.reads,
            "waits": one.waits,
            "failures": one.failures,
        }
        for one in stat.reads.replicas
    ]


def reason_lines(stat: ConductorStat) -> list[str]:
    """Why replicas take no reads, and what is wrong with those that do; a sentence each."""
    lines = []
    for one in stat.reads.replicas:
        said = ": ".join(filter(None, [one.reason, one.trouble]))
        if said:
            verb = "takes reads, but" if one.state == "serving" else "takes no reads:"
            lines.append(f"{one.name} at {stat.service_id} {verb} {said}")
    return lines


def primary_text(stat: ConductorStat) -> str:
    """Which server is the primary, in which term, and whether it holds its durability mode."""
    found = stat.database
    term = f" term {found.term}" if found.term else ""
    ackers = ""
    if found.ackers >= 0 and found.durability == "replicated":
        ackers = f", {found.ackers} of {found.ackers_known} ackers"
    return f"{found.primary or 'not known'}{term}, durability {found.durability}{ackers}" + (
        f": {found.problem}" if found.problem else ""
    )


def read_text(stat: ConductorStat) -> str:
    """The reads of clients by what they need, and the part that read rows at the primary."""
    parts = [
        f"{need} {count} ({stat.reads.at_primary.get(need, 0)} at the primary)"
        for need, count in sorted(stat.reads.by_need.items())
    ]
    return ", ".join(parts) or "none"


def pool_rows(stat: ConductorStat) -> list[Row]:
    """A row per pool of the bus' workers."""
    return [
        {"pool": one.pool, "workers_max": one.workers_max, "running": one.running, "queued": one.queued,
         "oldest_ms": one.oldest_ms}
        for one in stat.pools
    ]  # fmt: skip


def ask_options(command: click.decorators.FC) -> click.decorators.FC:
    """The options of every command that asks conductors."""
    for option in (
        click.option("--timeout-ms", default=TIMEOUT_MS, type=click.IntRange(100, 60_000), show_default=True),
        click.option(
            "--window", "window_s", default=WINDOW_S, type=click.IntRange(1, WINDOW_S_MAX), show_default=True,
            help="Shares and medians over so many of the last seconds.",
        ),
        click.option("--format", "form", default="table", type=click.Choice(["table", "json"]), show_default=True),
        click.option("--config", "config_path", metavar="FILE", help="The operator's configuration."),
        click.option("--state-dir", default="./var", show_default=True, help="An embedded region."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@click.option("--config", "config_path", metavar="FILE", help="TOML file of the conductor to run.")
@click.pass_context
def conductor(context: click.Context, config_path: str | None) -> None:
    """Run one conductor (with --config and no command), or look at those that run.

    docs/operating/conductors.md says what the values mean. A conductor refuses to start beside a compute of the same
    host, unless allow_beside_compute is set.
    """
    if context.invoked_subcommand is not None:
        if config_path is not None:
            raise UsageRefused("--config before a command is the conductor's to run: put it behind the command")
        return
    if config_path is None:
        raise UsageRefused("expected --config FILE to run a conductor, or a command: list, show, advise")
    from zcompute.cli.services import run_conductor

    run_conductor(config_path)


@conductor.command("list")
@ask_options
def conductor_list(state_dir: str, config_path: str | None, form: str, window_s: int, timeout_ms: int) -> None:
    """Every conductor: what it owns, what waits, how its batches go, what CPU it takes.

    Exit codes: 0 all answered, 1 some did not (said on standard error), 2 wrong usage or configuration.
    """
    stats, missing = ask_conductors((), state_dir, config_path, window_s, timeout_ms)
    if form == "json":
        print_json({"conductors": stats, "missing": missing})
    else:
        print_table([conductor_row(stat) for stat in stats], "conductor", ROWS_SHOWN)
    end_with(missing)


@conductor.command("show")
@click.argument("name")
@ask_options
def conductor_show(
    name: str, state_dir: str, config_path: str | None, form: str, window_s: int, timeout_ms: int
) -> None:
    """One conductor with its lanes and pools. Exit codes as of list."""
    stats, missing = ask_conductors((name,), state_dir, config_path, window_s, timeout_ms)
    if form == "json":
        print_json({"conductors": stats, "missing": missing})
    elif stats:
        _show(stats[0])
    end_with(missing)


def _show(stat: ConductorStat) -> None:
    for name, value in conductor_row(stat).items():
        click.echo(f"{name:>14}  {value}")
    for name, value in (
        ("incarnation", stat.incarnation),
        ("map_version", stat.map_version),
        ("decisions", stat.decisions),
        ("waiting", f"{stat.waiting_decisions} for rows, the oldest {stat.waiting_oldest_ms} ms"),
        ("cached_rows", stat.cached_rows),
        ("lease_held", stat.lease_held),
        ("database_lost", f"{stat.database_lost_ms} ms"),
        ("fellows", " ".join(stat.fellows)),
        ("primary", primary_text(stat)),
        ("reads", read_text(stat)),
        ("positions", f"{stat.reads.positions} asked for {stat.reads.positions_shared} reads"),
    ):
        click.echo(f"{name:>14}  {value}")
    print_table(lane_rows(stat), "lane", ROWS_SHOWN)
    print_table(pool_rows(stat), "pool", ROWS_SHOWN)
    if stat.reads.replicas:
        print_table(replica_rows(stat), "replica", ROWS_SHOWN)
        for line in reason_lines(stat):
            click.echo(line)


@conductor.command("advise")
@click.option("--cell", help="This cell only.")
@click.option("--watch", "watch_s", type=click.IntRange(1, 3600), help="Again every so many seconds, until Ctrl-C.")
@ask_options
def conductor_advise(
    cell: str | None,
    watch_s: int | None,
    state_dir: str,
    config_path: str | None,
    form: str,
    window_s: int,
    timeout_ms: int,
) -> None:
    """Say for each cell whether it wants a conductor more, one less, or a faster database, with the figures.

    Verdicts: add, remove, keep, split (16 are the most), database (more conductors would not help), uneven (one is
    full, others are not), unknown. Exit codes: 0 advice for every cell, 1 not of all, 2 wrong usage or configuration.
    """
    while True:
        stats, missing = ask_conductors((), state_dir, config_path, window_s, timeout_ms, cell)
        advices = advices_of(stats, missing, cell)
        if form == "json":
            print_json({"advice": advices, "missing": missing})
        else:
            for advice in advices:
                click.echo(advice.sentence)
        if watch_s is None:
            break
        time.sleep(watch_s)
    if not advices:
        raise CommandError("no conductor has answered")
    end_with(missing)


def advices_of(stats: Sequence[ConductorStat], missing: Sequence[Missing], cell: str | None = None) -> list[Advice]:
    """Advice for each cell of which a conductor has answered, of those missing whom its own conductors name."""
    advices = []
    absent = {one.service for one in missing}
    for name in sorted({stat.cell for stat in stats}):
        if cell not in (None, name):
            continue
        own = [stat for stat in stats if stat.cell == name]
        fellows = {fellow for stat in own for fellow in stat.fellows}
        silent = fellows - {stat.service_id for stat in own}
        advices.append(advise(name, own, sorted(silent | (absent & fellows))))
    return advices


def ask_conductors(
    names: tuple[str, ...], state_dir: str, config_path: str | None, window_s: int, timeout_ms: int,
    cell: str | None = None,
) -> tuple[list[ConductorStat], list[Missing]]:  # fmt: skip
    """What the conductors say of themselves (all of those configured, without ``names``), and who did not answer."""
    config = operator_config(config_path, state_dir)
    known = [peer.id for peer in conductors_of(config)]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageRefused(f"{', '.join(unknown)}: expected one of the configured conductors, {', '.join(known)}")
    with Operator(config, timeout_ms) as operator:
        operator.wait_links(min(LINK_WAIT_MS, timeout_ms))
        found, missing = operator.ask_each(names or known, CONDUCTOR_STAT, ConductorStatRequest(window_s=window_s))
    stats = [stat for stat in found if cell in (None, stat.cell)]
    return sorted(stats, key=lambda stat: (stat.cell, stat.service_id)), missing
