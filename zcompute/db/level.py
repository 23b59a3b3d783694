"""The cell's committed release level: who must speak it before it is raised, and the raising itself.

Blocking: for operators' commands.
"""

import sqlalchemy as sa

from zcompute.db import migrate, schema
from zcompute.db.errors import LevelRefused
from zcompute.objects.stored import LEVELS, NEWEST_LEVEL


def level_of(url: str) -> str:
    """The committed level. Raises ConnectionLost, InvalidUrl."""
    return migrate.status(url).level


def older_conductors(connection: sa.Connection, level: str) -> list[str]:
    """Registered conductors that are alive and do not speak the level."""
    found = migrate.registered_levels(connection)
    return sorted(name for name, speaks, alive in found if alive and speaks < int(level))


def hosts_expected(url: str) -> dict[str, str]:
    """By host of a cell the agent that serves it; those that are forced down are not waited for."""
    hosts = schema.TABLES["hosts"]
    with migrate.connected(url) as connection:
        rows = connection.execute(sa.select(hosts.c.name, hosts.c.service_id).where(~hosts.c.forced_down))
        return {row.name: row.service_id for row in rows}


def raise_level(url: str, level: str = NEWEST_LEVEL) -> bool:
    """Raise it, and the map's version, so that every conductor reads it; False when it is raised already.

    Raises LevelRefused for a level below the present one, or while a conductor that is alive does not speak it: in the
    same transaction, so that none registers between the look and the raising.
    """
    state = schema.cell_state
    with migrate.connected(url) as connection, connection.begin():
        present = str(connection.scalar(sa.select(state.c.release).with_for_update()))
        if present == level:
            return False
        if level not in LEVELS or present not in LEVELS or int(present) > int(level):
            raise LevelRefused(f"the committed release level is {present}, expected one below {level}")
        if older := older_conductors(connection, level):
            raise LevelRefused(f"conductors {', '.join(older)} do not speak level {level}: upgrade them first")
        connection.execute(sa.update(state).values(release=level, map_version=state.c.map_version + 1))
        return True
