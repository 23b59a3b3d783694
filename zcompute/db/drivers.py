"""Opens a database with the driver that fits it."""

from zcompute.db.native.store import NativeStore
from zcompute.db.portable.store import open_portable
from zcompute.db.store import Store
from zcompute.db.url import MariaDbTarget, parse_url, refuse


def open_store(url: str, driver: str = "auto") -> Store:
    """Open the database at ``url``, without connecting yet.

    URLs: ``mysql://user:password@127.0.0.1:3306/name?unix_socket=/path`` and ``sqlite:////path/file.db``. Drivers:
    ``native`` (MariaDB only), ``portable``, ``auto`` (native where it can). Raises InvalidUrl.
    """
    target = parse_url(url)
    if driver not in ("auto", "native", "portable"):
        raise refuse(url, f"driver {driver!r} is none of auto, native, portable")
    if isinstance(target, MariaDbTarget) and driver != "portable":
        return NativeStore(url, target)
    if driver == "native":
        raise refuse(url, "the native driver speaks to MariaDB only; use portable or auto")
    return open_portable(url, target)
