"""Who this agent is on the bus: its configuration, its key file, its hosts."""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from zcompute.bus import Identity
from zcompute.config import Config, ConfigError, Section, parse

ROLE = "compute"


class KeyFile(Section, frozen=True):
    """A CURVE key pair, z85."""

    public_key: str
    secret_key: str


def _release() -> str:
    try:
        return metadata.version("zcompute")
    except metadata.PackageNotFoundError:
        return "0"


def load_identity(config: Config, hosts: Iterable[str]) -> Identity:
    """The identity that the configuration names; without a key file, one without CURVE. Raises ConfigError."""
    path = config.bus.key_file
    keys = KeyFile(public_key="", secret_key="")
    if path:
        try:
            keys = parse(Path(path).read_text(encoding="ascii"), KeyFile, path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"bus.key_file: {path} cannot be read: {error}") from error
    return Identity(
        role=ROLE,
        cell=config.service.cell,
        service_id=config.service.id,
        release=_release(),
        hosts=frozenset(hosts),
        public_key=keys.public_key,
        secret_key=keys.secret_key,
    )
