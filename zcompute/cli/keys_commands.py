"""``zcompute keys create|list|rotate|revoke``: who may be on the bus. Conductors take an edit within seconds.

Keyrings are edited before key files are, so that a new key is known wherever it is used.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from zcompute.cli import key_files
from zcompute.cli.exits import CommandError, UsageRefused
from zcompute.config import ConfigError
from zcompute.keys import KeyFile, KeyringRow, old_until

ROLES = ("api", "compute", "conductor", "operator", "scheduler")
OVERLAP_HOURS = 24
COLUMNS = ("name", "role", "cell", "hosts", "public_key", "state")
KEY_CHARS = 40
LISTEN = re.compile(r"tcp://[^/]+:[1-9][0-9]{0,4}")

_name = click.argument("name")
_keyrings = click.option(
    "--keyring",
    "keyrings",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A keyring of conductors; once for each cell where the key counts.",
)
_key_file = click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The service's own key file, mode 0600.",
)
_public_key = click.option("--public-key", default="", metavar="KEY", help="A public key that was made elsewhere.")
_format = click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke keys. Exit codes: 0 done, 1 nothing changed (it says why), 2 wrong usage or
    files that others may touch."""


@keys.command()
@_name
@click.option("--role", required=True, type=click.Choice(ROLES))
@click.option("--cell", required=True, help="Its cell; root for what belongs to none.")
@click.option("--host", "hosts", multiple=True, help="A host that a compute speaks for; once for each.")
@_keyrings
@_key_file
@_public_key
@_format
def create(
    name: str, role: str, cell: str, hosts: Sequence[str], keyrings: list[Path], key_file: Path | None,
    public_key: str, form: str,
) -> None:  # fmt: skip
    """Let a new service in: its key pair into KEY-FILE, its public key into the keyrings."""
    if (role == "compute") != bool(hosts):
        raise UsageRefused("--host: a compute names its hosts, other roles have none")
    if key_file is not None and key_file.exists():
        raise key_files.KeyRefused(f"{key_file} is there already: rotate its key, or choose another file")
    public, secret = _pair(key_file, public_key)
    if key_file is not None:
        key_files.require_strict_directory(key_file.parent)
    row = KeyringRow(name=name, public_key=public, role=role, cell=cell, hosts=sorted(set(hosts)))
    key_files.edit_keyrings(list(keyrings), lambda keyring: key_files.with_row(keyring, row))
    if key_file is not None:
        key_files.store_keys(key_file, KeyFile(public_key=public, secret_key=secret))
    _say({"name": name, "public_key": public}, keyrings, key_file, form)


@keys.command("list")
@_keyrings
@_format
def list_keys(keyrings: list[Path], form: str) -> None:
    """Show who may connect, and how many keys are revoked. No secret is read."""
    rows, revoked = [], set()
    for path in keyrings:
        if not path.exists():
            raise UsageRefused(f"{path}: there is no such file")
        keyring = key_files.load_keyring(path)
        revoked.update(keyring.revoked)
        rows += [found for found in (_shown(row) for row in keyring.keys) if found not in rows]
    if form == "json":
        click.echo(json.dumps({"keys": rows, "revoked": sorted(revoked)}, indent=2))
        return
    table = Table()
    for column in COLUMNS:
        table.add_column(column, no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*(_cell_text(row[column]) for column in COLUMNS))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)
    console.print(table)
    click.echo(f"{len(rows)} keys, {len(revoked)} revoked")


@keys.command()
@_name
@_keyrings
@_key_file
@_public_key
@click.option("--listen", default="", metavar="ADDRESS", help="Conductors: tcp://host:port, the second port.")
@click.option(
    "--overlap-hours",
    type=click.FloatRange(min=0),
    default=None,
    help=f"How long the old key counts beside the new one; 0: until --finish. [{OVERLAP_HOURS}; conductors: 0]",
)
@click.option("--finish", is_flag=True, help="End the overlap: only the new key counts.")
@_format
def rotate(
    name: str, keyrings: list[Path], key_file: Path | None, public_key: str, listen: str,
    overlap_hours: float | None, finish: bool, form: str,
) -> None:  # fmt: skip
    """Give NAME a new key while the old one still counts; then, with --finish, only the new one.

    A conductor takes its new server key while it runs: it opens the second port, and everybody follows the map.
    Other services take theirs at their next start.
    """
    if finish:
        if key_file is not None:
            found = key_files.load_keys(key_file)
            if key_files.settled(found) != found:
                key_files.store_keys(key_file, key_files.settled(found))
        key_files.edit_keyrings(list(keyrings), lambda keyring: key_files.finished(keyring, name))
        _say({"name": name, "finished": True}, keyrings, key_file, form)
        return
    former = key_files.row_of(key_files.load_keyring(keyrings[0]), name)
    if (former.role == "conductor") != bool(listen):
        raise UsageRefused("--listen: a conductor needs a second port for its next key, others listen nowhere")
    if listen and key_file is None:
        raise UsageRefused("--key-file: run this where the conductor's key file is")
    hours = (0 if listen else OVERLAP_HOURS) if overlap_hours is None else overlap_hours
    until = (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds") if hours else ""
    public, secret = _pair(key_file, public_key)
    new = _new_keys(key_file, public, secret, listen) if key_file is not None else None
    key_files.edit_keyrings(list(keyrings), lambda keyring: key_files.rotated(keyring, name, public, until))
    if key_file is not None and new is not None:
        try:
            key_files.store_keys(key_file, new)
        except CommandError:  # the secret is nowhere: a key that nobody has must not stay the newest
            key_files.edit_keyrings(list(keyrings), lambda keyring: key_files.with_former(keyring, former))
            raise
    _say({"name": name, "public_key": public, "old_until": until or "finished"}, keyrings, key_file, form)


@keys.command()
@_name
@_keyrings
@_format
def revoke(name: str, keyrings: list[Path], form: str) -> None:
    """Shut NAME out for good: its links go down within 5 s, its keys never get in again."""
    key_files.edit_keyrings(list(keyrings), lambda keyring: key_files.revoked(keyring, name))
    _say({"name": name, "revoked": True}, keyrings, None, form)


def _pair(key_file: Path | None, public_key: str) -> tuple[str, str]:
    """A new pair for the key file, or the given public key alone."""
    if (key_file is None) == (not public_key):
        raise UsageRefused("give --key-file (a pair is made) or --public-key (it was made elsewhere)")
    if public_key and len(public_key) != KEY_CHARS:
        raise UsageRefused(f"--public-key: expected {KEY_CHARS} characters of z85, found {len(public_key)}")
    return key_files.new_pair() if key_file is not None else (public_key, "")


def _new_keys(path: Path, public: str, secret: str, listen: str) -> KeyFile:
    found = key_files.load_keys(path)
    if not listen:
        return KeyFile(public_key=public, secret_key=secret)
    if listen == found.listen:
        raise UsageRefused(f"--listen: the conductor listens on {listen} already: choose another port")
    if not LISTEN.fullmatch(listen):
        raise UsageRefused(f"--listen: expected tcp://host:port, found {listen!r}")
    return key_files.with_next(found, public, secret, listen)


def _shown(row: KeyringRow) -> dict[str, Any]:
    state = "active"
    if row.old_public_key:
        try:
            until = old_until(row)
        except ConfigError as error:
            raise UsageRefused(str(error)) from error
        state = "rotating" if until is None else f"rotating until {until.isoformat(timespec='seconds')}"
        state = "active" if until is not None and until <= datetime.now(UTC) else state
    return {
        "name": row.name,
        "role": row.role,
        "cell": row.cell,
        "hosts": list(row.hosts),
        "public_key": row.public_key,
        "state": state,
    }


def _cell_text(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return ", ".join(value[:3]) + (f" and {len(value) - 3} more" if len(value) > 3 else "")


def _say(done: dict[str, Any], keyrings: Sequence[Path], key_file: Path | None, form: str) -> None:
    done = {**done, "keyrings": [str(path) for path in keyrings], "key_file": str(key_file) if key_file else None}
    if form == "json":
        click.echo(json.dumps(done, indent=2))
        return
    for name, value in done.items():
        if value is not None:
            click.echo(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
