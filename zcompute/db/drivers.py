"""Opens a database with the driver that fits it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from zcompute.db.durability import LOCAL, REPLICATED
from zcompute.db.errors import InvalidUrl
from zcompute.db.native.store import NativeStore
from zcompute.db.portable.store import open_portable
from zcompute.db.replicas.reading import Reading, over_replicas
from zcompute.db.secrets import Secret
from zcompute.db.store import Store
from zcompute.db.url import MariaDbTarget, parse_url, refuse


def open_store(
    url: str, driver: str = "auto", reread: Callable[[], str] | None = None, durability: str = LOCAL
) -> Store:
    """Open the database at ``url``, without connecting yet.

    URLs: ``mysql://user:password@127.0.0.1:3306/name?unix_socket=/path`` and ``sqlite:////path/file.db``. Drivers:
    ``native`` (MariaDB only), ``portable``, ``auto`` (native where it can). ``reread`` gives the URL as it is now, for
    its password, when the server refuses the present one. ``durability`` is one of zcompute.db.durability's modes;
    ``replicated`` needs the native driver. Raises InvalidUrl.
    """
    target = parse_url(url)
    if isinstance(target, MariaDbTarget) and target.secret is None and reread is not None:
        target = replace(target, secret=Secret(target.password, partial(_password_of, reread)))
    if driver not in ("auto", "native", "portable"):
        raise refuse(url, f"driver {driver!r} is none of auto, native, portable")
    if isinstance(target, MariaDbTarget) and driver != "portable":
        return NativeStore(url, target, replicated=durability == REPLICATED)
    if durability == REPLICATED:
        raise refuse(url, "durability replicated needs MariaDB and the native driver")
    if driver == "native":
        raise refuse(url, "the native driver speaks to MariaDB only; use portable or auto")
    return open_portable(url, target)


def open_reading(
    store: Store, url: str, replicas: Sequence[str], lag_ms_max: int, reread: Callable[[], list[str]] | None = None
) -> Reading:
    """Reads of this store's database over its replicas, at these URLs; ``reread`` gives them as they are now, for a
    password that is refused. Without replicas all reads go to the store. Raises InvalidUrl."""
    primary = parse_url(url)
    if not replicas or not isinstance(primary, MariaDbTarget):
        return Reading(store)
    now = None if reread is None else partial(_nth, reread)
    return over_replicas(store, primary, named_targets(replicas, now), lag_ms_max)


def named_targets(urls: Sequence[str], reread: Callable[[int], str] | None = None) -> dict[str, MariaDbTarget]:
    """Servers by their names, ``host:port`` or the socket's path, in this order; none where it is SQLite.

    ``reread`` gives one's URL as it is now, for a password that is refused. Raises InvalidUrl.
    """
    targets: dict[str, MariaDbTarget] = {}
    for at, one in enumerate(urls):
        target = parse_url(one)
        if not isinstance(target, MariaDbTarget):
            if len(urls) == 1:
                return {}
            raise refuse(one, "expected a server of a MariaDB, mysql://...")
        if target.secret is None and reread is not None:
            target = replace(target, secret=Secret(target.password, partial(_password_of, partial(reread, at))))
        name = f"{target.host}:{target.port}"
        if name in targets and target.unix_socket is not None:
            name = target.unix_socket
        if name in targets:
            raise refuse(one, "found this server twice")
        targets[name] = target
    return targets


def _nth(urls: Callable[[], list[str]], at: int) -> str:
    found = urls()
    if at >= len(found):
        raise ValueError("the replica is not configured any more")
    return found[at]


def _password_of(reread: Callable[[], str]) -> list[str]:
    """The password in the URL as it is now. Raises OSError, ValueError."""
    try:
        target = parse_url(reread())
    except InvalidUrl as error:
        raise ValueError(str(error)) from error
    return [target.password] if isinstance(target, MariaDbTarget) else []
