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
    """The key pair in this file, made when there is none. A rotation that was under way is settled: nothing runs yet,
    and every configuration is about to be written."""
    if path.exists():
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        newest = document.get("next", document)
        known = msgspec.convert({name: newest.get(name) for name in ("public_key", "secret_key")}, KeyPair)
        if set(document) != {"public_key", "secret_key"}:
            write_private(path, msgspec.to_builtins(known))
        return known
    public, secret = zmq.curve_keypair()
    pair = KeyPair(public_key=public.decode(), secret_key=secret.decode())
    write_private(path, msgspec.to_builtins(pair))
    return pair


def write_keyring(path: Path, document: dict[str, Any]) -> None:
    """Write a keyring; what an operator has added, rotated or revoked in the file that is there stays so."""
    former: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    revoked = former.get("revoked", [])
    known = {row["name"]: row for row in former.get("keys", [])}
    rows = []
    for row in document["keys"]:
        present = known.pop(row["name"], row)
        if row["public_key"] not in revoked:
            rows.append(present if present["public_key"] == row["public_key"] else row)
    write_private(path, {"revoked": revoked, "keys": [*rows, *known.values()]})


def token(path: Path, project_id: str, user_id: str) -> str:
    """The administrator's token in the region's token file, made when there is none."""
    if path.exists():
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return str(document["tokens"][0]["token"])
    fresh = secrets.token_urlsafe(TOKEN_BYTES)
    row = {"token": fresh, "project_id": project_id, "user_id": user_id, "is_admin": True}
    write_private(path, {"tokens": [row]})
    return fresh
