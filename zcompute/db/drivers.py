"""Opens a database with the driver that fits it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from zcompute.db.errors import InvalidUrl
from zcompute.db.native.store import NativeStore
from zcompute.db.portable.store import open_portable
from zcompute.db.secrets import Secret
from zcompute.db.store import Store
from zcompute.db.url import MariaDbTarget, parse_url, refuse


def open_store(url: str, driver: str = "auto", reread: Callable[[], str] | None = None) -> Store:
    """Open the database at ``url``, without connecting yet.

    URLs: ``mysql://user:password@127.0.0.1:3306/name?unix_socket=/path`` and ``sqlite:////path/file.db``. Drivers:
    ``native`` (MariaDB only), ``portable``, ``auto`` (native where it can). ``reread`` gives the URL as it is now, for
    its password, when the server refuses the present one. Raises InvalidUrl.
    """
    target = parse_url(url)
    if isinstance(target, MariaDbTarget) and target.secret is None and reread is not None:
        target = replace(target, secret=Secret(target.password, partial(_password_of, reread)))
    if driver not in ("auto", "native", "portable"):
        raise refuse(url, f"driver {driver!r} is none of auto, native, portable")
    if isinstance(target, MariaDbTarget) and driver != "portable":
        return NativeStore(url, target)
    if driver == "native":
        raise refuse(url, "the native driver speaks to MariaDB only; use portable or auto")
    return open_portable(url, target)


def _password_of(reread: Callable[[], str]) -> list[str]:
    """The password in the URL as it is now. Raises OSError, ValueError."""
    try:
        target = parse_url(reread())
    except InvalidUrl as error:
        raise ValueError(str(error)) from error
    return [target.password] if isinstance(target, MariaDbTarget) else []
