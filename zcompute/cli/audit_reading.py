"""Takes the audit's snapshots: databases read directly, the API over HTTP, the fake hosts' files. Writes nothing."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import gevent

from zcompute.cli import exits
from zcompute.cli.audit_snapshot import ApiServer, CellRows, HostDomains, RootRows, Snapshot
from zcompute.cli.client import ApiClient, pages
from zcompute.cli.exits import CommandError
from zcompute.compute.virt.fake_log import domain_log_path, parse_lines
from zcompute.db.drivers import open_store
from zcompute.db.store import Store
from zcompute.db.tables import (
    BUILD_REQUESTS,
    CLAIMS,
    CROSS_MOVES,
    GROUP_PLACEMENTS,
    HOSTS,
    IMAGES,
    INSTANCE_ACTIONS,
    INSTANCES,
    MAPPINGS,
    NOTIFIER_CURSORS,
    ROOT_OUTBOX,
    TASKS,
    USAGES,
    TableCodec,
)
from zcompute.objects.base import VersionedObject
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.cross_move import CROSS_RUNNING
from zcompute.objects.image import UNFINISHED
from zcompute.objects.quota import RESOURCES, Amount

PAGE_ROWS = 5000
PAGES_MAX = 2000
READ_S_MAX = 60.0
PROJECTS_MAX = 200  # whose totals are compared
SERVERS_PATH = "/v2.1/servers/detail?all_tenants=1&soft_deleted=1"

T = TypeVar("T")
R = TypeVar("R")
Row = TypeVar("Row", bound=VersionedObject)


class AuditNotMade(CommandError):
    """Something that the audit compares cannot be read, so nothing can be said."""

    exit_code = exits.USAGE


def read_table(store: Store, table: TableCodec[Row], where: Mapping[str, Any] | None = None) -> list[Row]:
    """All rows of a table whose columns equal ``where``, page by page. Raises AuditNotMade for more than PAGES_MAX
    pages."""
    rows: list[Row] = []
    after: tuple[Any, ...] | None = None
    for _ in range(PAGES_MAX):
        page = store.scan(table, where=where, limit=PAGE_ROWS, after=after)
        rows.extend(page)
        if len(page) < PAGE_ROWS:
            return rows
        after = table.key_of(page[-1])
    raise AuditNotMade(f"table {table.name} has more than {PAGE_ROWS * PAGES_MAX} rows")


def read_root(store: Store) -> RootRows:
    """The root's tables; what is taken away first is read first, so that a server on its way is not missed."""
    return RootRows(
        cross_moves=read_table(store, CROSS_MOVES, {"state": CROSS_RUNNING}),
        images=read_table(store, IMAGES, {"status": sorted(UNFINISHED)}),
        build_requests=read_table(store, BUILD_REQUESTS),
        mappings=read_table(store, MAPPINGS),
        usages=read_table(store, USAGES),
        cursors=read_table(store, NOTIFIER_CURSORS),  # before what was told: they follow it
        told=store.read_told(),
        now_us=store.now_us(),
    )


def read_cell(store: Store) -> CellRows:
    """A cell's tables."""
    return CellRows(
        actions=read_table(store, INSTANCE_ACTIONS, {"finished_at_us": None}),
        tasks=read_table(store, TASKS),
        outbox=read_table(store, ROOT_OUTBOX),
        placements=read_table(store, GROUP_PLACEMENTS),
        claims=read_table(store, CLAIMS),
        hosts=read_table(store, HOSTS),
        instances=read_table(store, INSTANCES),
        cursors=read_table(store, NOTIFIER_CURSORS),  # before what was told: they follow it
        told=store.read_told(),
        now_us=store.now_us(),
    )


def read_host(directory: Path, host: str) -> HostDomains:
    """A fake host's log."""
    try:
        data = domain_log_path(directory, host).read_bytes()
    except FileNotFoundError:
        data = b""
    lines, _, unreadable = parse_lines(data)
    return HostDomains(lines, unreadable)


def read_api(client: ApiClient) -> dict[str, ApiServer]:
    """All servers of all projects as the API lists them."""
    rows = pages(client, SERVERS_PATH, "servers")
    return {row["id"]: ApiServer(row["id"], row["status"], row.get("OS-EXT-SRV-ATTR:host")) for row in rows}


def read_used(client: ApiClient, projects: Sequence[str]) -> dict[str, Amount]:
    """What each project uses, by the word of its owner at the root."""
    used: dict[str, Amount] = {}
    for project in projects:
        detail = client.get(f"/v2.1/os-quota-sets/{quote(project, safe='')}/detail")["quota_set"]
        in_use = {name: int(detail[name]["in_use"]) for name in RESOURCES}
        used[project] = Amount(instances=in_use["instances"], cores=in_use["cores"], ram_mb=in_use["ram"])
    return used


def read_all(reads: Sequence[Callable[[], T]]) -> list[T]:
    """Make all reads at once, at most READ_S_MAX; raises the first error, AuditNotMade when the time is over."""
    failures: list[Exception] = []

    def caught(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except Exception as error:  # noqa: BLE001  # raised below, in the caller's greenlet
            failures.append(error)
            return None

    readers = [gevent.spawn(caught, read) for read in reads]
    gevent.joinall(readers, timeout=READ_S_MAX)
    if failures:
        gevent.killall(readers)
        raise failures[0]
    if not all(reader.ready() for reader in readers):
        gevent.killall(readers)
        raise AuditNotMade(f"API and databases were not read within {READ_S_MAX:.0f} s")
    return [reader.value for reader in readers]


class RegionReader:
    """Everything of one region, read again and again. ``stores`` by cell, the root among them."""

    def __init__(
        self, stores: Mapping[str, Store], hosts: tuple[str, ...], hosts_dir: Path, connect: Callable[[], ApiClient]
    ) -> None:
        self._stores = stores
        self._hosts = hosts
        self._hosts_dir = hosts_dir
        self._connect = connect

    @classmethod
    def open(
        cls, urls: Mapping[str, str], hosts: tuple[str, ...], hosts_dir: Path, connect: Callable[[], ApiClient]
    ) -> "RegionReader":
        """Open the databases at ``urls`` (by cell). Raises StoreError."""
        return cls({cell: open_store(url) for cell, url in urls.items()}, hosts, hosts_dir, connect)

    def take(self) -> Snapshot:
        """One snapshot; databases and the API are read at the same time. Raises what reading raises,
        AuditNotMade when it takes longer than READ_S_MAX."""
        reads: dict[str, Callable[[], Any]] = {cell: partial(read_cell, store) for cell, store in self._stores.items()}
        reads[ROOT_CELL] = partial(read_root, self._stores[ROOT_CELL])
        projects = [total.project_id for total in self._stores[ROOT_CELL].project_usages("", PROJECTS_MAX)]
        before = self._asked(lambda client: read_used(client, projects))
        done = read_all([lambda: self._asked(read_api), *reads.values()])
        after = self._asked(lambda client: read_used(client, projects))
        rows = dict(zip(reads, done[1:], strict=True))
        return Snapshot(
            root=rows.pop(ROOT_CELL),
            cells=rows,
            hosts={host: read_host(self._hosts_dir, host) for host in self._hosts},
            api=done[0],
            used={project: amount for project, amount in before.items() if after[project] == amount},
        )

    def close(self) -> None:
        """Close the databases."""
        for store in self._stores.values():
            store.close()

    def _asked(self, read: Callable[[ApiClient], R]) -> R:
        client = self._connect()
        try:
            return read(client)
        finally:
            client.close()
