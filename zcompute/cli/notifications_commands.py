"""``zcompute notifications``: what is told of a cell's changes."""

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click
import gevent
import msgspec
from gevent.event import Event

from zcompute.bus import BusConfigError, BusError, Endpoint
from zcompute.cells.notifications import NotificationTail, heads, start_tails
from zcompute.cli import notifications_text
from zcompute.cli.exits import CommandError, UsageRefused
from zcompute.cli.operator import conductors_of, operator_config, own_identity
from zcompute.config import Config
from zcompute.objects.base import unpack
from zcompute.objects.methods import TOPIC_MAP
from zcompute.objects.notification import Notification, cursor_text, document, parse_cursor

TIMEOUT_MS = 10_000
FROM_START = "start"
POLL_S = 0.02
CURSOR_S = 10.0


class Printer:
    """Writes what is followed to standard output, a line each; ends at ``limit`` notifications."""

    def __init__(self, form: str, limit: int) -> None:
        self.count = 0
        self.done = Event()
        self._json = form == "json"
        self._limit = limit

    def take(self, cell: str, partition: int, n: int, body: bytes) -> None:
        """One notification."""
        if self.done.is_set():
            gevent.sleep(float("inf"))  # behind the limit: nothing more is seen, so the cursor stays
        shown = document(cell, partition, n, unpack(body, Notification))
        self._write(msgspec.json.encode(shown).decode() if self._json else notification_line(shown))
        self.count += 1
        if self._limit and self.count >= self._limit:
            self.done.set()

    def gap(self, cell: str, partition: int, first: int, last: int) -> None:
        """Notifications that the retention has taken."""
        found = {"cell": cell, "partition": partition, "from": first, "to": last}
        text = f"{cell} {partition}/{first}-{last} gap: behind the retention"
        self._write(msgspec.json.encode({"gap": found}).decode() if self._json else text)

    def cursor(self, cell: str, seen: Mapping[int, int]) -> None:
        """Where to go on from."""
        text = cursor_text(cell, seen)
        self._write(msgspec.json.encode({"cursor": text}).decode() if self._json else f"cursor: {text}")

    def _write(self, line: str) -> None:
        try:
            click.echo(line)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read it has gone
            self.done.set()


def notification_line(shown: dict[str, Any]) -> str:
    """One notification in words."""
    data = shown["payload"].get("data", {})
    at = datetime.fromtimestamp(shown["created_at_us"] / 1e6, UTC).isoformat(timespec="milliseconds")
    subject = shown["instance_uuid"] or data.get("host", "")
    states = "/".join(str(data[name]) for name in ("state", "task_state", "power_state") if name in data)
    return f"{shown['cell']} {shown['partition']}/{shown['n']} {at} {shown['event_type']} {subject} {states}".rstrip()


def _endpoint(config: Config) -> Endpoint:
    try:
        endpoint = Endpoint(own_identity(config), topics=(TOPIC_MAP,))
        for peer in conductors_of(config):
            endpoint.dial(peer.address, peer.public_key)
    except BusConfigError as error:
        raise UsageRefused(str(error)) from error
    return endpoint


def _cells_of(endpoint: Endpoint, wanted: Sequence[str], conductors: set[str], ends_at: float) -> list[str]:
    """The cells to follow: those that were named, or all that there are, the root among them.

    Waits until each of those that were named, or else every one of ``conductors``, is linked. Raises CommandError for
    a cell that is not reached.
    """
    while True:
        links = endpoint.links(role="conductor")
        peers = [link.peer for link in links if link.peer is not None]
        cells = {peer.cell for peer in peers}
        if wanted and cells.issuperset(wanted):
            return sorted(set(wanted))
        if not wanted and conductors <= {peer.service_id for peer in peers}:
            return sorted(cells)
        if time.monotonic() > ends_at:
            if wanted or not cells:
                missing = ", ".join(sorted(set(wanted) - cells))
                raise CommandError(f"no conductor of {f'cell {missing}' if wanted else 'any cell'} is reached")
            return sorted(cells)
        gevent.sleep(POLL_S)


def _begin_at(
    endpoint: Endpoint, cell: str, begin: Mapping[str, Mapping[int, int]], from_start: bool, timeout_ms: int
) -> Mapping[int, int]:
    if cell in begin or from_start:
        return begin.get(cell, {})
    try:
        return heads(endpoint, cell, timeout_ms)
    except BusError as error:
        raise CommandError(f"cell {cell}: {error}") from error


def _cursors(texts: Sequence[str], cells: Sequence[str]) -> dict[str, dict[int, int]]:
    """Where to begin, by cell. Raises UsageRefused."""
    found: dict[str, dict[int, int]] = {}
    for text in texts:
        try:
            cell, cursor = parse_cursor(text)
        except ValueError as error:
            raise UsageRefused(f"--from: {error}") from error
        if cell in found or (cells and cell not in cells):
            known = f"--cell says {', '.join(cells)}" if cells else "there is another one"
            raise UsageRefused(f"--from is a cursor of cell {cell}, {known}")
        found[cell] = cursor
    return found


@click.group()
def notifications() -> None:
    """Follow what is told of a cell's changes; docs/notifications.md has every event."""


@notifications.command()
def reference() -> None:
    """Print the page on notifications (docs/notifications.md)."""
    click.echo(notifications_text.reference(), nl=False)


@notifications.command()
@click.option(
    "--from",
    "begin",
    multiple=True,
    metavar="CURSOR",
    help="Go on behind this cursor, of each cell one; 'start': all there are.",
)
@click.option("--cell", "cells", multiple=True, help="A cell to follow, root among them; default: all, or --from's.")
@click.option("--limit", default=0, type=click.IntRange(0), help="End after so many; 0: never.")
@click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True)
@click.option("--timeout-ms", default=TIMEOUT_MS, type=click.IntRange(100, 60_000), show_default=True)
@click.option("--config", "config_path", metavar="FILE", help="The operator's configuration.")
@click.option("--state-dir", default="./var", show_default=True, help="An embedded region.")
def tail(
    begin: tuple[str, ...],
    cells: tuple[str, ...],
    limit: int,
    form: str,
    timeout_ms: int,
    config_path: str | None,
    state_dir: str,
) -> None:
    """Print notifications as they come, until interrupted; a cursor to go on from every 10 s and at the end.

    Follows the root and all cells, unless told otherwise; a cursor is of one cell. Without --from it begins with what
    is told from now on. Per cell and partition the order is that of the changes; a line with the same (cell,
    partition, n) as another is that notification again.
    Exit codes: 0 interrupted or at the limit, 1 no conductor is reached, 2 wrong usage or configuration.
    """
    from_start = FROM_START in begin
    cursors = _cursors([text for text in begin if text != FROM_START], cells)
    config = operator_config(config_path, state_dir)
    conductors = {peer.id for peer in conductors_of(config)}
    endpoint = _endpoint(config)
    try:
        ends_at = time.monotonic() + timeout_ms / 1000
        followed = _cells_of(endpoint, cells or tuple(cursors), conductors, ends_at)
        printer = Printer(form, limit)
        tails = [
            NotificationTail(
                endpoint,
                cell,
                _begin_at(endpoint, cell, cursors, from_start, timeout_ms),
                partial(printer.take, cell),
                partial(printer.gap, cell),
            )
            for cell in followed
        ]
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, printer.done.set)
        start_tails(endpoint, tails)
        told = {each.cell: dict(each.seen) for each in tails}
        _print_cursors(printer, tails, {})
        while not printer.done.wait(CURSOR_S):
            _print_cursors(printer, tails, told)
        _print_cursors(printer, tails, {})
    finally:
        endpoint.close()


def _print_cursors(printer: Printer, tails: Sequence[NotificationTail], told: dict[str, dict[int, int]]) -> None:
    """Those that have moved since they were ``told``."""
    for each in tails:
        if told.get(each.cell) != each.seen:
            told[each.cell] = dict(each.seen)
            printer.cursor(each.cell, each.seen)
