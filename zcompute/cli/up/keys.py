"""CURVE key pairs and API tokens of an embedded region: made once, kept with mode 0600."""

import os
import secrets
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import zmq

from zcompute.cli.toml_text import dumps

TOKEN_BYTES = 24


class KeyPair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service's CURVE key pair, z85."""

    public_key: str
    secret_key: str


def write_private(path: Path, document: dict[str, Any]) -> None:
    """Write TOML that only its owner may read, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(dumps(document))
    fresh.rename(path)


def key_pair(path: Path) -> KeyPair:
    """The key pair in this file, made when there is none."""
    if path.exists():
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), KeyPair)
    public, secret = zmq.curve_keypair()
    pair = KeyPair(public_key=public.decode(), secret_key=secret.decode())
    write_private(path, msgspec.to_builtins(pair))
    return pair


def token(path: Path, project_id: str, user_id: str) -> str:
    """The administrator's token in the region's token file, made when there is none."""
    if path.exists():
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return str(document["tokens"][0]["token"])
    fresh = secrets.token_urlsafe(TOKEN_BYTES)
    row = {"token": fresh, "project_id": project_id, "user_id": user_id, "is_admin": True}
    write_private(path, {"tokens": [row]})
    return fresh
