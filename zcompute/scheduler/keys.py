"""Who this scheduler is on the bus: its configuration and its key file."""

from importlib import metadata
from pathlib import Path

from zcompute.bus import Identity
from zcompute.config import Config, ConfigError, Section, parse

ROLE = "scheduler"


class KeyFile(Section, frozen=True):
    """A CURVE key pair, z85."""

    public_key: str
    secret_key: str


def load_identity(config: Config) -> Identity:
    """The identity that the configuration names; without a key file, one without CURVE. Raises ConfigError."""
    path = config.bus.key_file
    if not path:
        return Identity(role=ROLE, cell=config.service.cell, service_id=config.service.id, release=_release())
    try:
        keys = parse(Path(path).read_text(encoding="ascii"), KeyFile, path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"bus.key_file: {path} cannot be read: {error}") from error
    return Identity(
        role=ROLE,
        cell=config.service.cell,
        service_id=config.service.id,
        release=_release(),
        public_key=keys.public_key,
        secret_key=keys.secret_key,
    )


def _release() -> str:
    """The installed version; "0" when run from a source tree."""
    try:
        return metadata.version("zcompute")
    except metadata.PackageNotFoundError:
        return "0"
