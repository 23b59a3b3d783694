"""Key files and keyrings as an operator edits them: checked, locked, written all or nothing."""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import zmq
from msgspec.structs import replace

from zcompute.cli.exits import CommandError, UsageRefused
from zcompute.cli.toml_text import dumps
from zcompute.config import ConfigError
from zcompute.keys import (
    WRITABLE_BY_OTHERS,
    KeyFile,
    KeyringFile,
    KeyringRow,
    NextKeys,
    keyring_content,
    read_keyring_file,
    read_keys,
)

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

Edit = Callable[[KeyringFile], KeyringFile]


class KeyRefused(CommandError):
    """The keys are not as the command needs them (exit code 1): nothing was changed."""


# -- pure: what a keyring becomes -----------------------------------------------------------------------------------


def row_of(keyring: KeyringFile, name: str) -> KeyringRow:
    """The row of this name. Raises KeyRefused."""
    for row in keyring.keys:
        if row.name == name:
            return row
    raise KeyRefused(f"no key is named {name!r}: `zcompute keys list` shows those there are")


def with_row(keyring: KeyringFile, row: KeyringRow) -> KeyringFile:
    """With a new row. Raises KeyRefused for a name or a public key that is there, or was revoked."""
    for other in keyring.keys:
        if other.name == row.name:
            raise KeyRefused(f"a key is named {row.name!r} already: rotate or revoke it")
    _require_fresh(keyring, row.public_key)
    return replace(keyring, keys=[*keyring.keys, row])


def rotated(keyring: KeyringFile, name: str, public_key: str, old_until: str) -> KeyringFile:
    """With a new public key for the name, the present one kept until the date ("" = until the rotation is finished).

    Raises KeyRefused for an unknown name or one that is being rotated.
    """
    row = row_of(keyring, name)
    if row.old_public_key and row.public_key != public_key and not _over(row):
        raise KeyRefused(f"key {name} is being rotated: finish that first (`zcompute keys rotate {name} --finish`)")
    _require_fresh(keyring, public_key)
    return _replaced(keyring, replace(row, public_key=public_key, old_public_key=row.public_key, old_until=old_until))


def finished(keyring: KeyringFile, name: str) -> KeyringFile:
    """Without the name's old public key. A repeat changes nothing. Raises KeyRefused for an unknown name."""
    return _replaced(keyring, replace(row_of(keyring, name), old_public_key="", old_until=""))


def revoked(keyring: KeyringFile, name: str) -> KeyringFile:
    """Without the row, its public keys among those that never get in again. Raises KeyRefused for an unknown name."""
    row = row_of(keyring, name)
    gone = [key for key in (row.public_key, row.old_public_key) if key and key not in keyring.revoked]
    return replace(
        keyring, keys=[other for other in keyring.keys if other is not row], revoked=[*keyring.revoked, *gone]
    )


def with_former(keyring: KeyringFile, row: KeyringRow) -> KeyringFile:
    """With this row again as it was: a rotation was broken off."""
    return _replaced(keyring, row)


def _replaced(keyring: KeyringFile, row: KeyringRow) -> KeyringFile:
    return replace(keyring, keys=[row if other.name == row.name else other for other in keyring.keys])


def _require_fresh(keyring: KeyringFile, public_key: str) -> None:
    used = {key for row in keyring.keys for key in (row.public_key, row.old_public_key)}
    if public_key in used:
        raise KeyRefused("the public key is in the keyring already: each key once")
    if public_key in keyring.revoked:
        raise KeyRefused("the public key was revoked: make a new one")


def _over(row: KeyringRow) -> bool:
    content = keyring_content(KeyringFile(keys=[row]), datetime.now(UTC))
    return len(content.entries[0].public_keys) == 1


# -- key files ------------------------------------------------------------------------------------------------------


def new_pair() -> tuple[str, str]:
    """A CURVE key pair (public, secret), z85."""
    public, secret = zmq.curve_keypair()
    return public.decode("ascii"), secret.decode("ascii")


def load_keys(path: Path) -> KeyFile:
    """A key file. Raises UsageRefused when it cannot be read or others may read it."""
    try:
        return read_keys(str(path))
    except ConfigError as error:
        raise UsageRefused(str(error)) from error


def store_keys(path: Path, keys: KeyFile) -> None:
    """Write a key file, mode 0600, all or nothing. Raises UsageRefused, CommandError."""
    document = msgspec.to_builtins(keys)
    document = {name: value for name, value in document.items() if value}
    write_strictly(path, document, FILE_MODE)


def with_next(keys: KeyFile, public: str, secret: str, listen: str) -> KeyFile:
    """A conductor's key file with the server key that it changes to. Raises KeyRefused during a rotation."""
    if keys.next is not None:
        raise KeyRefused("the key file has a next key already: finish that rotation first")
    return replace(keys, next=NextKeys(public_key=public, secret_key=secret, listen=listen))


def settled(keys: KeyFile) -> KeyFile:
    """The next key has become the key; a file without one is as it was."""
    if keys.next is None:
        return keys
    return KeyFile(public_key=keys.next.public_key, secret_key=keys.next.secret_key, listen=keys.next.listen)


# -- files ----------------------------------------------------------------------------------------------------------


def load_keyring(path: Path) -> KeyringFile:
    """A keyring; an empty one when there is no file. Raises UsageRefused."""
    if not path.exists():
        return KeyringFile()
    try:
        return read_keyring_file(str(path))
    except ConfigError as error:
        raise UsageRefused(str(error)) from error


def edit_keyrings(paths: list[Path], edit: Edit) -> None:
    """Edit all of these, or none when one of them refuses. Raises KeyRefused, UsageRefused, CommandError."""
    with _locked(sorted({path.resolve() for path in paths})) as locked:
        changed = [(path, former, edit(former)) for path, former in ((path, load_keyring(path)) for path in locked)]
        for path, former, new in changed:
            if new != former:
                write_strictly(path, _keyring_document(new), FILE_MODE)


def _keyring_document(keyring: KeyringFile) -> dict[str, Any]:
    rows = []
    for row in keyring.keys:
        document = msgspec.to_builtins(row)
        rows.append({name: value for name, value in document.items() if value or not name.startswith("old_")})
    return {"revoked": list(keyring.revoked), "keys": rows}


@contextmanager
def _locked(paths: list[Path]) -> Iterator[list[Path]]:
    """The paths, each under its lock file: two operators' edits go one after the other."""
    descriptors = []
    try:
        for path in paths:
            require_strict_directory(path.parent)
            descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            descriptors.append(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield paths
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def require_strict_directory(path: Path) -> None:
    """Make the directory, mode 0700, or refuse one that others than its owner may write. Raises UsageRefused."""
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageRefused(f"{path}: {error.strerror}") from error
    if mode & WRITABLE_BY_OTHERS:
        raise UsageRefused(f"{path}: others than its owner may write there: chmod go-w")


def write_strictly(path: Path, document: dict[str, Any], mode: int) -> None:
    """Write TOML durably and all or nothing; owner and mode stay those of a file that is there, never wider than 0644.

    Raises UsageRefused, CommandError.
    """
    require_strict_directory(path.parent)
    fresh = path.with_name(path.name + ".new")
    try:
        like = path.stat() if path.exists() else None
        if like is not None and mode == FILE_MODE:
            mode = stat.S_IMODE(like.st_mode) & ~(WRITABLE_BY_OTHERS | 0o111)
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            owner = like or path.parent.stat()
            if os.geteuid() == 0:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fchmod(file.fileno(), mode)
            file.write(dumps(document))
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}") from error
