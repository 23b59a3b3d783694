"""``zcompute bus stat`` and ``zcompute bus ping``: what the bus is doing, asked over the bus itself."""

import time
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from zcompute.bus import EndpointStat
from zcompute.cli import exits
from zcompute.cli.operator import Missing, Operator, Pinged, operator_config

TIMEOUT_MS = 5_000
LINK_WAIT_MS = 1_000
ROWS_SHOWN = 200
PINGS_MAX = 1_000
Row = dict[str, Any]


def link_rows(stat: EndpointStat) -> list[Row]:
    """A row per link: who waits for whom, since when, and what was refused."""
    return [
        {
            "service": stat.service_id,
            "peer": link.service_id or link.address,
            "state": link.state,
            "open": link.open_calls,
            "serving": link.serving_calls,
            "queued": link.queued,
            "oldest_ms": link.oldest_ms,
            "blocked_ms": link.blocked_ms,
            "unacked": link.reports_unacked,
            "credit": link.report_credit,
            "owed": link.reports_owed,
            "inbox": link.inbox,
            "sent_kb": link.bytes_sent // 1000,
            "received_kb": link.bytes_received // 1000,
            "refused": refused_text(link.refused),
        }
        for link in stat.links
    ]


def lane_rows(stat: EndpointStat) -> list[Row]:
    """A row per link and lane with reports that are not answered: which lane of whom is slow."""
    return [
        {
            "service": stat.service_id,
            "peer": link.service_id or link.address,
            "lane": lane.lane,
            "unacked": lane.unacked,
            "credit": lane.credit,
            "owed": lane.owed,
        }
        for link in stat.links
        for lane in link.lanes
    ]


def stream_rows(stat: EndpointStat) -> list[Row]:
    """A row per stream published by the service, then one per stream that it follows at a peer."""
    published = [
        {
            "service": stat.service_id,
            "peer": "",
            "stream": f"{stream.topic}/{stream.key}",
            "followers": stream.followers,
            "kept": stream.events,
            "kept_kb": stream.bytes // 1000,
            "first": stream.first,
            "next": stream.next,
            "waiting": 0,
            "gaps": 0,
        }
        for stream in stat.streams
    ]
    followed = [
        {
            "service": stat.service_id,
            "peer": link.service_id or link.address,
            "stream": f"{stream.topic}/{stream.key}" + ("" if stream.answered else " (no answer)"),
            "followers": 0,
            "kept": 0,
            "kept_kb": 0,
            "first": 0,
            "next": stream.cursor,
            "waiting": stream.waiting,
            "gaps": stream.gaps,
        }
        for link in stat.links
        for stream in link.followed
    ]
    return published + followed


def method_rows(stat: EndpointStat) -> list[Row]:
    """A row per method served."""
    return [
        {
            "service": stat.service_id,
            "method": method.method,
            "version": method.version,
            "pool": method.pool,
            "arrived": method.arrived,
            "queued": method.queued,
            "running": method.running,
            "oldest_ms": method.oldest_ms,
            "ended": method.ended,
            "errors": method.errors,
            "expired": method.expired,
            "cancelled": method.cancelled,
            "refused": refused_text(method.refused),
        }
        for method in stat.methods
    ]


def pool_rows(stat: EndpointStat) -> list[Row]:
    """A row per pool of workers."""
    return [
        {
            "service": stat.service_id,
            "pool": pool.pool,
            "workers_max": pool.workers_max,
            "running": pool.running,
            "queued": pool.queued,
            "oldest_ms": pool.oldest_ms,
        }
        for pool in stat.pools
    ]


def service_rows(stat: EndpointStat) -> list[Row]:
    """One row: the service."""
    refused = {
        name.removeprefix("refused_"): count for name, count in stat.counters.items() if name.startswith("refused_")
    }
    return [
        {
            "service": stat.service_id,
            "role": stat.role,
            "cell": stat.cell,
            "release": stat.release,
            "age_s": stat.age_ms // 1000,
            "links": stat.links_known,
            "up": stat.links_up,
            "blocked": stat.links_blocked,
            "open": stat.open_calls,
            "serving": stat.serving_calls,
            "queued": stat.queued,
            "published": stat.streams_published,
            "followed": stat.streams_followed,
            "oldest_ms": max((link.oldest_ms for link in stat.links), default=0),
            "refused": refused_text(refused),
        }
    ]


VIEWS = {
    "link": link_rows,
    "lane": lane_rows,
    "stream": stream_rows,
    "method": method_rows,
    "pool": pool_rows,
    "service": service_rows,
}


def refused_text(refused: dict[str, int]) -> str:
    """Reasons with their counts, the most frequent first."""
    return " ".join(f"{reason}={count}" for reason, count in sorted(refused.items(), key=lambda item: -item[1]))


def worst_first(rows: list[Row]) -> list[Row]:
    """What waits longest comes first, then the longest queue; the rest stays in order."""
    return sorted(rows, key=lambda row: (-row.get("oldest_ms", 0), -row.get("queued", 0), -row.get("waiting", 0)))


def print_table(rows: list[Row], what: str, rows_max: int) -> None:
    """The first rows_max rows, and how many there are."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 240)
    table = Table()
    for name in rows[0] if rows else ():
        right = isinstance(rows[0][name], int)
        table.add_column(name, no_wrap=True, overflow="fold", justify="right" if right else "left")
    shown = rows[:rows_max]
    for row in shown:
        table.add_row(*(str(value) for value in row.values()))
    if rows:
        console.print(table)
    click.echo(f"{len(rows)} {what}s, {len(shown)} shown")


def print_json(document: Any) -> None:
    """Indented JSON to standard output."""
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def end_with(missing: list[Missing]) -> None:
    """Say what is missing; nothing missing ends well. Raises Exit with FAILED."""
    for gap in missing:
        click.echo(f"missing: {gap.reason}", err=True)
    if missing:
        raise click.exceptions.Exit(exits.FAILED)


def _options(command: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option(
            "--timeout-ms", default=TIMEOUT_MS, type=click.IntRange(100, 60_000), show_default=True, help="For it all."
        ),
        click.option("--format", "form", default="table", type=click.Choice(["table", "json"]), show_default=True),
        click.option("--config", "config_path", metavar="FILE", help="The operator's configuration."),
        click.option("--state-dir", default="./var", show_default=True, help="An embedded region."),
    ):
        command = option(command)
    return command


@click.group()
def bus() -> None:
    """Look into the bus: queues, calls in flight, credit, refusals; docs/operating/bus.md says what they mean."""


@bus.command("stat")
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
@click.option(
    "--by", "view", default="link", type=click.Choice(list(VIEWS)), show_default=True, help="What a row stands for."
)
@click.option("--rows", default=ROWS_SHOWN, type=click.IntRange(1), show_default=True, help="Rows of the table.")
@_options
def bus_stat(
    services: tuple[str, ...], view: str, rows: int, state_dir: str, config_path: str | None, form: str, timeout_ms: int
) -> None:
    """Show what services of the bus are doing, what waits longest first; without SERVICE, every conductor.

    A service that listens on nothing (compute, scheduler, api) is asked through a conductor. JSON has everything.
    Exit codes: 0 all answered, 1 some did not (said on standard error), 2 wrong usage or configuration.
    """
    with Operator(operator_config(config_path, state_dir), timeout_ms) as operator:
        operator.wait_links(min(LINK_WAIT_MS, timeout_ms))
        stats, missing = operator.stats(services)
    if form == "json":
        print_json({"endpoints": stats, "missing": missing})
    else:
        print_table(worst_first([row for stat in stats for row in VIEWS[view](stat)]), view, rows)
    end_with(missing)


@bus.command("ping")
@click.argument("service")
@click.option("--count", default=1, type=click.IntRange(1, PINGS_MAX), show_default=True)
@click.option("--interval-ms", default=1_000, type=click.IntRange(0, 60_000), show_default=True)
@_options
def bus_ping(
    service: str, count: int, interval_ms: int, state_dir: str, config_path: str | None, form: str, timeout_ms: int
) -> None:
    """Ask SERVICE whether it is there, COUNT times, and print the round trips.

    Exit codes: 0 every ping was answered, 1 one was not, 2 wrong usage or configuration.
    """
    pings: list[Pinged] = []
    whole_ms = timeout_ms + (count - 1) * interval_ms
    with Operator(operator_config(config_path, state_dir), whole_ms) as operator:
        operator.wait_links(min(LINK_WAIT_MS, timeout_ms))
        for number in range(count):
            if number:
                time.sleep(interval_ms / 1000)
            pings.append(operator.ping(service))
            if form == "table":
                click.echo(ping_line(pings[-1]))
    if form == "json":
        print_json(pings)


def ping_line(pinged: Pinged) -> str:
    """One ping in words."""
    reply = pinged.reply
    line = (
        f"{reply.service_id}: {pinged.round_trip_us / 1000:.2f} ms, {reply.role} of cell {reply.cell}, "
        f"release {reply.release}, up {reply.age_ms / 1000:.0f} s"
    )
    if pinged.via:
        line += f", through {pinged.via} ({reply.relay_us / 1000:.2f} ms behind it)"
    return line
