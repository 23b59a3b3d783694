"""Which session is a lane's: it holds a lock by the lane's name, so a session is ended for what it is.

A connection's number is no name: numbers begin anew with the server, and after its restart the one that a lane had
belongs to somebody else. The server itself knows who holds a lock (IS_USED_LOCK), and frees it when the session has
ended, after the rollback of what it had open (THD::cleanup in MariaDB): so whoever gets a lane's lock also knows that
nothing of the lane's former session is under way.
"""

from collections.abc import Callable

from pymysql.constants import ER

from zcompute.db.errors import DatabaseBusy
from zcompute.db.native.connection import Connection, ServerError, store_error
from zcompute.db.url import MariaDbTarget

WAIT_S = 2  # for a session that was told to end


def lane_lock(lane_id: int) -> str:
    """The lock's name, as SQL: locks are the server's, and it may have several databases with a lane 1."""
    return f"CONCAT('zcompute.lane.', MD5(CONCAT(DATABASE(), '.', {lane_id:d})))"


def take_lane(target: MariaDbTarget, lane_id: int, ask: Callable[[str], object]) -> None:
    """Make a session the lane's, and end the one that was. ``ask`` runs a SELECT of one value in that session.

    Raises DatabaseBusy when the former one has not ended in time, ConnectionLost.
    """
    if ask(f"SELECT GET_LOCK({lane_lock(lane_id)}, 0)") == 1:
        return
    kill_lane(target, lane_id)
    if ask(f"SELECT GET_LOCK({lane_lock(lane_id)}, {WAIT_S})") != 1:
        raise DatabaseBusy(f"lane {lane_id}: its former session has not ended within {WAIT_S} s")


def kill_lane(target: MariaDbTarget, lane_id: int) -> None:
    """End the session that is the lane's, if any is. Raises ConnectionLost, DatabaseBusy.

    It is asked for and ended over one connection, so the server cannot have restarted between the two.
    """
    connection = Connection(target)
    try:
        number = connection.rows(f"SELECT IS_USED_LOCK({lane_lock(lane_id)})".encode())[0][0]
        if number is not None:
            connection.query(b"KILL CONNECTION %d" % number)
    except ServerError as error:
        if error.code != ER.NO_SUCH_THREAD:
            raise store_error(error) from error
    finally:
        connection.cut()
