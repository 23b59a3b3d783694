"""What reading instances from MariaDB costs: ``python -m loadtest.rows [--json FILE]``.

CPU of this process and of the server, microseconds a row, by PyMySQL's result and the codec, and by the rows' own
reader; alone, and joined (ten reads by key in flight).
"""

from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import click  # noqa: E402
import gevent  # noqa: E402

from loadtest.report import write_json  # noqa: E402
from zcompute.cli.up.process import cpu_ms  # noqa: E402
from zcompute.conductor.service import GARBAGE_THRESHOLDS  # noqa: E402
from zcompute.db import migrate  # noqa: E402
from zcompute.db.drivers import open_store  # noqa: E402
from zcompute.db.native.connection import Connection  # noqa: E402
from zcompute.db.native.literal import tuple_literal  # noqa: E402
from zcompute.db.native.session import NativeSession  # noqa: E402
from zcompute.db.private import PrivateMariaDB  # noqa: E402
from zcompute.db.replicas.need import PRIMARY  # noqa: E402
from zcompute.db.replicas.reading import Reading  # noqa: E402
from zcompute.db.session import Session  # noqa: E402
from zcompute.db.tables import INSTANCES, TableCodec  # noqa: E402
from zcompute.db.url import MariaDbTarget, parse_url  # noqa: E402
from zcompute.db.view import SessionView, by_key  # noqa: E402
from zcompute.objects.flavor import Flavor  # noqa: E402
from zcompute.objects.instance import Instance, ServerSpec  # noqa: E402
from zcompute.objects.messages.instances import InstanceQuery  # noqa: E402

ROWS = 10_000
STATEMENT_ROWS = 500
PAGE = 100
RUN_S = 2.0
IN_FLIGHT = 10
READ_S_MAX = 10.0


class ByPyMysql:
    """A session that reads as PyMySQL does: its packets, its tuples, then the codec."""

    def __init__(self, session: NativeSession) -> None:
        self._session = session

    def objects(self, table: TableCodec[Any], sql: str, **values: Any) -> list[Any]:
        return [table.from_row(row) for row in self._session.select(sql, **values)]


def fill(connection: Connection) -> None:
    """ROWS active instances of ten projects."""
    flavor = Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1)
    for at in range(0, ROWS, STATEMENT_ROWS):
        made = [
            Instance(
                uuid=uuid_of(n), project_id=f"p{n % 10}", user_id="u", name=f"server-{n}", flavor=flavor,
                spec=ServerSpec(image_ref=uuid_of(0), hostname=f"server-{n}"), created_at_us=n, updated_at_us=n,
                launched_at_us=n, vm_state="active", task_state=None, host=f"host-{n % 100}", power_state=1,
            )
            for n in range(at, at + STATEMENT_ROWS)
        ]  # fmt: skip
        rows = [tuple_literal(INSTANCES.to_row(each, INSTANCES.home_of(each))) for each in made]
        connection.query(
            f"INSERT INTO instances ({', '.join(INSTANCES.columns)}) VALUES ".encode() + b",".join(rows)  # noqa: S608
        )


def uuid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def measured(read: Callable[[], int], server: PrivateMariaDB) -> dict[str, float]:
    """Run for RUN_S; ``read`` returns how many rows it has read."""
    read()
    pid = server.pid or 0
    rows = reads = 0
    began_s, cpu_s, server_ms = time.monotonic(), time.process_time(), cpu_ms(pid) or 0.0
    while time.monotonic() - began_s < RUN_S:
        rows += read()
        reads += 1
    cpu_s, server_ms = time.process_time() - cpu_s, (cpu_ms(pid) or 0.0) - server_ms
    return {
        "cpu_us_a_row": round(cpu_s * 1e6 / rows, 1),
        "server_us_a_row": round(server_ms * 1e3 / rows, 1),
        "rows_per_second": round(rows / (time.monotonic() - began_s)),
    }


def measure(url: str, server: PrivateMariaDB) -> dict[str, dict[str, float]]:
    """Every way of reading."""
    target = parse_url(url)
    if not isinstance(target, MariaDbTarget):
        raise TypeError(url)
    connection = Connection(target)
    fill(connection)
    connection.query(b"ANALYZE TABLE instances")
    own = NativeSession(connection)
    ways: list[tuple[str, Any]] = [("pymysql", ByPyMysql(own)), ("own", own)]
    store = open_store(url)
    joined = Reading(store)
    query, keys = InstanceQuery(project_id="p1", limit=PAGE), [(uuid_of(n * 7),) for n in range(IN_FLIGHT)]
    row = by_key(INSTANCES)

    def together(get: Callable[[tuple[str]], object]) -> int:
        gevent.joinall([gevent.spawn(get, key) for key in keys], raise_error=True)
        return len(keys)

    found = {}
    for name, session in ways:
        found |= _alone(name, session, query, keys, server)
    found["get, 10 in flight, each by itself"] = measured(
        lambda: together(lambda key: store.fetch(INSTANCES, [key])), server
    )
    found["get, 10 in flight, joined"] = measured(
        lambda: together(lambda key: joined.get(PRIMARY, time.monotonic() + READ_S_MAX, row, key)), server
    )
    connection.cut()
    store.close()
    return found


def _alone(
    name: str, session: Session, query: InstanceQuery, keys: list[tuple[str]], server: PrivateMariaDB
) -> dict[str, dict[str, float]]:
    view = SessionView(session)
    return {
        f"page of {PAGE}, {name}": measured(lambda: len(view.list_instances(query)), server),
        f"get, {name}": measured(lambda: len(view.fetch(INSTANCES, keys[:1])), server),
    }


@click.command()
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the figures to this file.")
def main(json_path: str | None) -> None:
    """Measure, and print."""
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    place = Path(tempfile.mkdtemp(prefix="zcompute-rows-"))
    server = PrivateMariaDB(place / "data", durable=False)
    try:
        server.start()
        url = server.create_database("rows")
        migrate.upgrade(url, "cell", "c1")
        found = measure(url, server)
    finally:
        server.stop()
        shutil.rmtree(place, ignore_errors=True)
    for name, figures in found.items():
        click.echo(f"{name}: {', '.join(f'{key} {value}' for key, value in figures.items())}")
    if json_path:
        flat = {f"{name}: {key}": value for name, figures in found.items() for key, value in figures.items()}
        write_json(json_path, "rows", flat)


if __name__ == "__main__":
    main()
