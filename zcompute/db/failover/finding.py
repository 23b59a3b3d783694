"""Where a cell's primary is now, for those who look once: operators' commands, and a service's first check."""

from zcompute.config import DatabaseConfig
from zcompute.db.drivers import named_targets
from zcompute.db.errors import PrimaryNotFound
from zcompute.db.failover.choice import choose_primary
from zcompute.db.failover.looking import Servers
from zcompute.db.url import urls_of


def primary_url(config: DatabaseConfig, cell: str) -> str:
    """The URL of the server that is the cell's primary, as conductors would choose it.

    ``[database] url`` where it is the only one, and where no server has this cell in it: what is wrong there, or that
    it is empty, is for those to say who use it. Raises PrimaryNotFound, InvalidUrl.
    """
    urls = urls_of(config)
    targets = named_targets(urls)
    if len(targets) < 2:
        return urls[0]
    servers = Servers(targets)
    try:
        seen = servers.look()
    finally:
        servers.close()
    if not any(one.cell == cell for one in seen):
        return urls[0]
    choice = choose_primary(seen, cell, 0, None)
    if choice.name is None:
        raise PrimaryNotFound(f"cell {cell} has no primary now: {choice.reason}")
    return urls[list(targets).index(choice.name)]
