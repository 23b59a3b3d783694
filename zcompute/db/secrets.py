"""A database password that may change while the service runs: read again when the server refuses the present one.

Nothing here logs or takes a lock: the beat's native thread asks too.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

PASSWORDS_MAX = 4  # lines of a file that are read: the new one, the one before, and room for an accident


class Secret:
    """The passwords to try, the one that worked last first. ``read`` gives what is valid by the configuration now,
    and raises OSError or ValueError when that cannot be read: then the present one stays."""

    def __init__(self, password: str, read: Callable[[], list[str]]) -> None:
        self._password = password
        self._read = read

    @property
    def password(self) -> str:
        """The one that worked last, or the first one of all."""
        return self._password

    def candidates(self) -> Iterator[str]:
        """The present password, then, if that is refused, those that are read then; each once."""
        tried = [self._password]
        yield self._password
        try:
            fresh = self._read()
        except (OSError, ValueError):
            return
        for password in fresh[:PASSWORDS_MAX]:
            if password not in tried:
                tried.append(password)
                yield password

    def worked(self, password: str) -> bool:
        """Remember it for the next connection; whether it is another one than before."""
        changed = password != self._password
        self._password = password
        return changed


def file_secret(path: str) -> Secret:
    """The passwords in a file, one a line, the newest first: while both the new and the former are there, whichever
    the server takes is used. A file that cannot be read yet is read at the first refusal."""

    def read() -> list[str]:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]

    try:
        first = (read() or [""])[0]
    except (OSError, ValueError):
        first = ""
    return Secret(first, read)
