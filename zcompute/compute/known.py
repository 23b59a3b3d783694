"""The cell's conductors as the newest map named them, kept over restarts of the agent.

The configuration names conductors as they were when it was written. When their server keys have been rotated since,
this file is how an agent that starts finds them, without anybody touching its host.
"""

import logging
import os
from pathlib import Path

import msgspec

from zcompute.objects.partition import ConductorInfo

log = logging.getLogger(__name__)

CONDUCTORS_MAX = 64

Place = tuple[str, str]  # address, public key


class KnownConductors:
    """One file. It is a help only: what cannot be read or written is logged, and the configuration counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: dict[str, Place] | None = None

    def read(self) -> dict[str, Place]:
        """Where each conductor was last known to listen, by service id."""
        try:
            rows = msgspec.json.decode(self._path.read_bytes(), type=list[tuple[str, str, str]])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            log.warning("known conductors not read path=%s error=%s", self._path, error)
            return {}
        return {service_id: (address, public_key) for service_id, address, public_key in rows[:CONDUCTORS_MAX]}

    def write(self, conductors: dict[str, ConductorInfo]) -> None:
        """Keep these, if they are others than before. An empty map teaches nothing."""
        places = {info.service_id: (info.address, info.public_key) for info in conductors.values()}
        if not places or places == self._written:
            return
        rows = [(service_id, *place) for service_id, place in sorted(places.items())]
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, msgspec.json.encode(rows))
            finally:
                os.close(descriptor)
            fresh.rename(self._path)
        except OSError as error:
            log.warning("known conductors not written path=%s error=%s", self._path, error)
            return
        self._written = places
