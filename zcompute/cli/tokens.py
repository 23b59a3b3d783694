"""Enrolment tokens: made by an operator's command, spent on the host of the service that joins.

A token is a CURVE secret key with the addresses and public keys of the conductors to ask. It is never sent: whoever
has it proves so by the handshake, to a server whose key is in the token.
"""

import base64
import secrets
import time
from pathlib import Path

import msgspec

from zcompute import __version__
from zcompute.bus import Endpoint, Identity, register_error
from zcompute.bus.errors import BusError
from zcompute.cli import key_files
from zcompute.cli.exits import CommandError, UsageRefused
from zcompute.config import Config
from zcompute.keys import KeyFile, KeyringFile, KeyringRow, read_keys
from zcompute.objects.enrolment import Enrolment
from zcompute.objects.errors import SERVICE_ERRORS, ServiceError
from zcompute.objects.messages.topology import EnrolmentCreateRequest, EnrolReply, EnrolRequest
from zcompute.objects.methods import ENROLMENT_ENROL
from zcompute.objects.partition import ConductorInfo

PREFIX = "zct1."
TOKEN_CHARS_MAX = 65_536
LIFETIME_HOURS = 1.0
TRY_MS = 5_000
TIMEOUT_S = 30.0
ENROLLING = "enrolling"


class Place(msgspec.Struct, frozen=True):
    """A conductor to ask, and the key that it must have."""

    id: str
    address: str
    public_key: str


class Token(msgspec.Struct, frozen=True):
    """What is in a token's text."""

    id: str
    public_key: str
    secret_key: str
    role: str
    cell: str
    hosts: list[str]
    expires_at_us: int
    conductors: list[Place]

    def __repr__(self) -> str:
        return f"Token(id={self.id!r}, role={self.role!r}, cell={self.cell!r})"  # the secret appears nowhere

    @property
    def text(self) -> str:
        """As it is handed over."""
        return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode("ascii").rstrip("=")


class NewToken(msgspec.Struct):
    """A key pair that is to become a token: the request names its public key only."""

    request: EnrolmentCreateRequest
    secret_key: str

    def __repr__(self) -> str:
        return f"NewToken(id={self.request.id!r})"

    def token(self, enrolment: Enrolment, conductors: list[ConductorInfo]) -> Token:
        """The token, once its row has committed."""
        return Token(
            id=enrolment.id,
            public_key=enrolment.token_key,
            secret_key=self.secret_key,
            role=enrolment.role,
            cell=enrolment.cell,
            hosts=enrolment.hosts,
            expires_at_us=enrolment.expires_at_us,
            conductors=[Place(info.service_id, info.address, info.public_key) for info in conductors],
        )


def new_token(role: str, cell: str, hosts: list[str], uses: int, lifetime_hours: float, dry_run: bool) -> NewToken:
    """A fresh pair. The secret leaves this process only in the token's text."""
    public_key, secret_key = key_files.new_pair()
    request = EnrolmentCreateRequest(
        id=secrets.token_hex(8),
        token_key=public_key,
        role=role,
        cell=cell,
        hosts=hosts,
        uses_max=uses,
        lifetime_s=max(1, int(lifetime_hours * 3600)),
        dry_run=dry_run,
    )
    return NewToken(request, secret_key)


def parse_token(text: str) -> Token:
    """A token's text. Raises UsageRefused; the message says nothing of what is in it."""
    text = text.strip()
    if len(text) > TOKEN_CHARS_MAX or not text.startswith(PREFIX):
        raise UsageRefused(f"expected a token that begins with {PREFIX}")
    body = text.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(raw, type=Token)
    except (ValueError, msgspec.DecodeError):
        raise UsageRefused("the token is damaged: copy the whole of it") from None


def read_token(path: str) -> Token:
    """A token from a file ("-": standard input). Raises UsageRefused, also when others may read the file."""
    if path == "-":
        import sys

        return parse_token(sys.stdin.readline(TOKEN_CHARS_MAX + 2))
    file = Path(path)
    try:
        if file.stat().st_mode & 0o077:
            raise UsageRefused(f"{path}: others than its owner may read it: chmod 600")
        return parse_token(file.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageRefused(f"{path}: the token cannot be read: {error}") from error


def write_token(path: str, token: Token) -> None:
    """Into a new file, mode 0600. Raises UsageRefused."""
    import os

    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token.text + "\n")
    except OSError as error:
        raise UsageRefused(f"{path}: the token cannot be written: {error.strerror}") from error


class Enrolled(msgspec.Struct, frozen=True):
    """What a service has become."""

    service_id: str
    public_key: str
    reply: EnrolReply
    new_key: bool


def enrol(config: Config, role: str, hosts: list[str], token: Token) -> Enrolled:
    """Have the configured service let in: its key file is made first, so a repeat enrols the same key.

    Raises UsageRefused for a token of something else, CommandError for a refusal, or when no conductor answers.
    """
    for error in SERVICE_ERRORS:
        register_error(error)
    service = config.service
    if (token.role, token.cell) != (role, service.cell):
        raise UsageRefused(f"the token is for a {token.role} of cell {token.cell}, not a {role} of {service.cell}")
    if set(hosts) - set(token.hosts):
        raise UsageRefused(f"the token is not for hosts {', '.join(sorted(set(hosts) - set(token.hosts))[:5])}")
    if not config.bus.key_file:
        raise UsageRefused("[bus] key_file: the service's own key goes there, found none")
    path = Path(config.bus.key_file)
    new_key = not path.exists()
    if new_key:
        public_key, secret_key = key_files.new_pair()
        key_files.store_keys(path, KeyFile(public_key=public_key, secret_key=secret_key))
    public_key = read_keys(str(path)).public_key
    reply = _ask(token, EnrolRequest(id=token.id, service_id=service.id, public_key=public_key))
    if role == "conductor" and config.bus.keyring:
        _fill_keyring(Path(config.bus.keyring), service.id, public_key, reply)
    return Enrolled(service.id, public_key, reply, new_key)


def _ask(token: Token, request: EnrolRequest) -> EnrolReply:
    """One conductor of the token after the other."""
    identity = Identity(
        role=ENROLLING,
        cell=token.cell,
        service_id=f"{request.service_id}-enrolling-{secrets.token_hex(3)}",
        release=__version__,
        public_key=token.public_key,
        secret_key=token.secret_key,
    )
    deadline = time.monotonic() + TIMEOUT_S
    reasons = []
    endpoint = Endpoint(identity)
    try:
        for place in token.conductors:
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms <= 0:
                break
            link = endpoint.dial(place.address, place.public_key)
            if not link.wait_up(min(TRY_MS, left_ms)):
                reasons.append(f"{place.id} at {place.address}: {endpoint.down_reason(link).strip(' ()') or 'silent'}")
                continue
            try:
                reply: EnrolReply = link.call(ENROLMENT_ENROL, request, timeout_ms=min(TRY_MS * 2, left_ms))
                return reply
            except ServiceError as error:
                raise CommandError(f"not enrolled: {error.message}") from error
            except BusError as error:
                reasons.append(f"{place.id}: {error}")
    finally:
        endpoint.close()
    raise CommandError(
        "not enrolled: no conductor has taken the token: it is unknown, revoked or long expired, or they are not "
        f"reached: {'; '.join(reasons) or 'the token names none'}"
    )


def _fill_keyring(path: Path, service_id: str, public_key: str, reply: EnrolReply) -> None:
    """A new cell's keyring: this conductor, and who calls every cell. What is there already stays as it is."""
    wanted = [KeyringRow(name=service_id, public_key=public_key, role=reply.role, cell=reply.cell)]
    wanted += [KeyringRow(name=k.name, public_key=k.public_key, role=k.role, cell=k.cell) for k in reply.accepted]

    def edit(keyring: KeyringFile) -> KeyringFile:
        for row in wanted:
            names = {known.name for known in keyring.keys}
            if row.name not in names and row.public_key not in keyring.revoked:
                keyring = key_files.with_row(keyring, row)
        return keyring

    key_files.edit_keyrings([path], edit)
