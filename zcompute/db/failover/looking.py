"""A look at each of a cell's servers, all at once, by the conductors' own user."""

from collections.abc import Mapping
from typing import Any

import gevent

from zcompute.db.durability import unmet
from zcompute.db.errors import StoreError
from zcompute.db.failover.choice import Sighting
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.url import MariaDbTarget

LOOK_S_MAX = 1.0  # for an answer; whoever takes longer is not there
SERVERS_MAX = 9

_WHO = b"SELECT @@server_id, @@GLOBAL.read_only, cell, term FROM cell_state WHERE id = 1"
_SETTINGS = (
    b"SELECT @@GLOBAL.rpl_semi_sync_master_enabled, @@GLOBAL.rpl_semi_sync_master_wait_no_slave, "
    b"@@GLOBAL.rpl_semi_sync_master_wait_point, @@GLOBAL.rpl_semi_sync_master_timeout"
)
_STATUS = b"SHOW GLOBAL STATUS WHERE Variable_name IN ('Rpl_semi_sync_master_status', 'Rpl_semi_sync_master_clients')"


class Servers:
    """A cell's servers, each on a connection that is kept. One look at a time."""

    def __init__(self, targets: Mapping[str, MariaDbTarget]) -> None:
        self._targets = dict(targets)
        self._connections: dict[str, Connection] = {}

    @property
    def names(self) -> list[str]:
        """In the order of the configuration."""
        return list(self._targets)

    def look(self) -> list[Sighting]:
        """Every server, within LOOK_S_MAX or a little more."""
        looks = {name: gevent.spawn(self._look, name) for name in self._targets}
        gevent.joinall(list(looks.values()), timeout=2 * LOOK_S_MAX)
        found = []
        for name, look in looks.items():
            if not look.ready():
                look.kill(block=False)
            found.append(look.value if look.successful() and look.value else Sighting(name, problem="no answer"))
        return found

    def close(self) -> None:
        """Drop every connection."""
        for name in list(self._connections):
            self._drop(name)

    def _drop(self, name: str) -> None:
        connection = self._connections.pop(name, None)
        if connection is not None:
            connection.cut()

    def _look(self, name: str) -> Sighting:
        try:
            connection = self._connections.get(name)
            if connection is None or not connection.is_open:
                connection = Connection(self._targets[name], timeout_s=LOOK_S_MAX, connect_timeout_s=LOOK_S_MAX)
                self._connections[name] = connection
            return sighting_of(name, connection)
        except (StoreError, ServerError) as error:
            self._drop(name)
            return Sighting(name, problem=str(error))
        except BaseException:
            self._drop(name)
            raise


def sighting_of(name: str, connection: Connection) -> Sighting:
    """Ask one server. Raises ServerError, ConnectionLost."""
    rows: list[tuple[Any, ...]] = connection.rows(_WHO)
    if not rows:
        return Sighting(name, problem="its database has no cell in it")
    server_id, read_only, cell, term = rows[0]
    if read_only:
        return Sighting(name, int(server_id), False, cell, int(term))
    enabled, waits, point, timeout_ms = connection.rows(_SETTINGS)[0]
    status = dict(connection.rows(_STATUS))
    on = status.get("Rpl_semi_sync_master_status") == "ON"
    missing = unmet(bool(enabled), bool(waits), str(point), int(timeout_ms), on)
    ackers = int(status.get("Rpl_semi_sync_master_clients", -1))
    return Sighting(name, int(server_id), True, cell, int(term), unmet=missing, ackers=ackers)
