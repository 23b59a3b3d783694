"""Who calls: the token in X-Auth-Token, looked up in the region's token file."""

import hashlib
import hmac
import logging
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zcompute.api.errors import Unauthorized
from zcompute.api.settings import LIMITS
from zcompute.config import ConfigError, Section, parse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Whom a token stands for. ``secret`` never leaves this process; it seeds what only this caller may know."""

    project_id: str
    user_id: str
    is_admin: bool
    secret: bytes


class TokenRow(Section, frozen=True):
    """[[tokens]]: one accepted token."""

    token: str
    project_id: str
    user_id: str
    is_admin: bool = False


class TokenFile(Section, frozen=True):
    """The whole file."""

    tokens: list[TokenRow] = []


class Tokens:
    """Accepted tokens. Found by their SHA-256 and compared in constant time, so that timing tells nothing of them."""

    def __init__(self, rows: Iterable[TokenRow]) -> None:
        self._by_digest: dict[bytes, tuple[bytes, Caller]] = {}
        for row in rows:
            digest = _digest(row.token)
            secret = hashlib.sha256(b"zcompute caller " + row.token.encode()).digest()
            self._by_digest[digest[:8]] = (digest, Caller(row.project_id, row.user_id, row.is_admin, secret))

    def find(self, token: str) -> Caller | None:
        """The caller of a token, None for an unknown one."""
        digest = _digest(token)
        found = self._by_digest.get(digest[:8])
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1]

    def __len__(self) -> int:
        return len(self._by_digest)


def read_tokens(path: str) -> Tokens:
    """Read a token file. Raises ConfigError naming file and reason."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api.token_file: {path} cannot be read: {error}") from error
    if mode & 0o077:
        log.warning("token file is open to others file=%s mode=%o expected=600", path, mode)
    rows = parse(text, TokenFile, path).tokens
    if len(rows) > LIMITS.tokens_max:
        raise ConfigError(f"{path}: expected at most {LIMITS.tokens_max} tokens, found {len(rows)}")
    if any(not row.token or not row.project_id or not row.user_id for row in rows):
        raise ConfigError(f"{path}: tokens: expected token, project_id and user_id not to be empty")
    return Tokens(rows)


class Authenticator:
    """Checks tokens; takes up a changed token file within token_reload_s, and keeps the old one if the new is bad."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._changed_at_ns = _changed_at_ns(path)
        self._tokens = read_tokens(path)
        self._look_again_at = time.monotonic() + LIMITS.token_reload_s

    def authenticate(self, token: str | None, host_url: str) -> Caller:
        """The caller. Raises Unauthorized (with the header that keystonemiddleware sends) without a known token."""
        if time.monotonic() >= self._look_again_at:
            self._reload()
        caller = self._tokens.find(token) if token else None
        if caller is None:
            raise Unauthorized(
                "The request you have made requires authentication.",
                headers={"WWW-Authenticate": f'Keystone uri="{host_url}"'},
            )
        return caller

    def _reload(self) -> None:
        self._look_again_at = time.monotonic() + LIMITS.token_reload_s
        changed_at_ns = _changed_at_ns(self._path)
        if changed_at_ns == self._changed_at_ns:
            return
        self._changed_at_ns = changed_at_ns
        try:
            self._tokens = read_tokens(self._path)
        except ConfigError as error:
            log.error("token file kept as it was reason=%s", error)
        else:
            log.info("token file read again tokens=%d", len(self._tokens))


def _changed_at_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
