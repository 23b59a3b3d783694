"""``zcompute notifications``: what is told of a cell's changes."""

import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click
import gevent
import msgspec
from gevent.event import Event

from zcompute.bus import BusConfigError, BusError, Endpoint
from zcompute.cells.notifications import NotificationTail, heads
from zcompute.cli import notifications_text
from zcompute.cli.exits import CommandError, UsageRefused
from zcompute.cli.operator import conductors_of, operator_config, own_identity
from zcompute.config import Config
from zcompute.objects.base import unpack
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.methods import TOPIC_MAP
from zcompute.objects.notification import Notification, cursor_text, document, parse_cursor

TIMEOUT_MS = 10_000
FROM_START = "start"
POLL_S = 0.02
CURSOR_S = 10.0


class Printer:
    """Writes what is followed to standard output, a line each; ends at ``limit`` notifications."""

    def __init__(self, cell: str, form: str, limit: int) -> None:
        self.count = 0
        self.done = Event()
        self._cell = cell
        self._json = form == "json"
        self._limit = limit

    def take(self, partition: int, n: int, body: bytes) -> None:
        """One notification."""
        if self.done.is_set():
            gevent.sleep(float("inf"))  # behind the limit: nothing more is seen, so the cursor stays
        shown = document(self._cell, partition, n, unpack(body, Notification))
        self._write(msgspec.json.encode(shown).decode() if self._json else notification_line(shown))
        self.count += 1
        if self._limit and self.count >= self._limit:
            self.done.set()

    def gap(self, partition: int, first: int, last: int) -> None:
        """Notifications that the retention has taken."""
        found = {"cell": self._cell, "partition": partition, "from": first, "to": last}
        text = f"{self._cell} {partition}/{first}-{last} gap: behind the retention"
        self._write(msgspec.json.encode({"gap": found}).decode() if self._json else text)

    def cursor(self, seen: Mapping[int, int]) -> None:
        """Where to go on from."""
        text = cursor_text(self._cell, seen)
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


def _cell_of(endpoint: Endpoint, wanted: str, ends_at: float) -> str:
    """The cell to follow: the one that was named, or the only one there is. Waits until it is linked."""
    while True:
        cells = {link.peer.cell for link in endpoint.links(role="conductor") if link.up and link.peer is not None}
        cells.discard(ROOT_CELL)
        if wanted in cells:
            return wanted
        if time.monotonic() > ends_at:
            if wanted or not cells:
                raise CommandError(f"no conductor of {f'cell {wanted}' if wanted else 'any cell'} is reached")
            if len(cells) > 1:
                raise UsageRefused(f"--cell: expected one out of {', '.join(sorted(cells))}, found none")
            return cells.pop()
        if not wanted and len(cells) == 1 and all(link.up for link in endpoint.links(role="conductor")):
            return cells.pop()
        gevent.sleep(POLL_S)


def _begin_at(endpoint: Endpoint, cell: str, begin: str, timeout_ms: int) -> Mapping[int, int]:
    if begin == FROM_START:
        return {}
    if begin:
        return _parsed(begin)[1]
    try:
        return heads(endpoint, cell, timeout_ms)
    except BusError as error:
        raise CommandError(f"cell {cell}: {error}") from error


def _parsed(begin: str) -> tuple[str, dict[int, int]]:
    try:
        return parse_cursor(begin)
    except ValueError as error:
        raise UsageRefused(f"--from: {error}") from error


@click.group()
def notifications() -> None:
    """Follow what is told of a cell's changes; docs/notifications.md has every event."""


@notifications.command()
def reference() -> None:
    """Print the page on notifications (docs/notifications.md)."""
    click.echo(notifications_text.reference(), nl=False)


@notifications.command()
@click.option("--from", "begin", default="", metavar="CURSOR", help="Go on behind this cursor; 'start': all there are.")
@click.option("--cell", default="", help="The cell to follow, where there are several.")
@click.option("--limit", default=0, type=click.IntRange(0), help="End after so many; 0: never.")
@click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True)
@click.option("--timeout-ms", default=TIMEOUT_MS, type=click.IntRange(100, 60_000), show_default=True)
@click.option("--config", "config_path", metavar="FILE", help="The operator's configuration.")
@click.option("--state-dir", default="./var", show_default=True, help="An embedded region.")
def tail(
    begin: str, cell: str, limit: int, form: str, timeout_ms: int, config_path: str | None, state_dir: str
) -> None:
    """Print notifications as they come, until interrupted; a cursor to go on from every 10 s and at the end.

    Without --from it begins with what is told from now on. Per partition the order is that of the changes; a line
    with the same (cell, partition, n) as another is that notification again.
    Exit codes: 0 interrupted or at the limit, 1 no conductor is reached, 2 wrong usage or configuration.
    """
    if begin not in ("", FROM_START):
        named = _parsed(begin)[0]
        if cell not in ("", named):
            raise UsageRefused(f"--from is a cursor of cell {named}, --cell says {cell}")
        cell = named
    endpoint = _endpoint(operator_config(config_path, state_dir))
    try:
        cell = _cell_of(endpoint, cell, time.monotonic() + timeout_ms / 1000)
        printer = Printer(cell, form, limit)
        cursor = _begin_at(endpoint, cell, begin, timeout_ms)
        following = NotificationTail(endpoint, cell, cursor, printer.take, printer.gap)
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, printer.done.set)
        following.start()
        told = dict(following.seen)
        printer.cursor(told)
        while not printer.done.wait(CURSOR_S):
            if following.seen != told:
                told = dict(following.seen)
                printer.cursor(told)
        printer.cursor(following.seen)
    finally:
        endpoint.close()
