"""Where a conductor listens, and with which server keys: one port, and a second one while its key is being rotated.

A rotation needs no host to be touched: the key file gets a ``[next]`` section; the conductor opens the second port with
the next key and writes address and key into the partition map; whoever dials follows the map. When the section has
become the file's key, the former port is closed.
"""

import logging
import time
from dataclasses import dataclass, field, replace

from zcompute.bus import BusConfigError, Endpoint, Identity
from zcompute.keys import KeyFile

log = logging.getLogger(__name__)

FAREWELL_S = 3.0  # between the new place standing in the map and the end of the old one


@dataclass(frozen=True)
class Door:
    """An address and the server key there; "" without CURVE. Port 0 takes a free port, once."""

    address: str
    public_key: str = ""
    secret_key: str = field(default="", repr=False)


def doors_of(keys: KeyFile | None, listen: str) -> list[Door]:
    """The doors to open, the one to announce last. Pure."""
    if keys is None:
        return [Door(listen)]
    doors = [Door(keys.listen or listen, keys.public_key, keys.secret_key)]
    if keys.next is not None:
        doors.append(Door(keys.next.listen, keys.next.public_key, keys.next.secret_key))
    return doors


class Doors:
    """The listening side of one endpoint. ``announced`` is the (address, public key) that others shall dial."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._open: set[Door] = set()
        self._told_at: float | None = None
        self._complaint = ""
        self.announced = ("", "")

    def open(self, wanted: list[Door]) -> list[str]:
        """Listen at all of these; returns the addresses where that is so.

        Raises BusConfigError for the first door of all only: a conductor works with one.
        """
        opened = []
        for door in wanted:
            if door in self._open:
                opened.append(door)
            else:
                try:
                    address = self._endpoint.bind(door.address, _with_keys(self._endpoint.identity, door))
                    opened.append(replace(door, address=address))
                    self._open.add(opened[-1])
                except BusConfigError as error:
                    if not self._open:
                        raise
                    self._complain(f"cannot listen with the next key: {error}")
        if opened:
            newest = opened[-1]
            self.announced = (newest.address, newest.public_key)
            if self._endpoint.identity.public_key != newest.public_key:
                log.info("keys changed, announcing address=%s", newest.address)
                self._endpoint.rekey(_with_keys(self._endpoint.identity, newest))
                self._told_at = None
        return [door.address for door in opened]

    def close_others(self, wanted: list[Door], told: tuple[str, str], now: float | None = None) -> None:
        """Close doors that are not wanted any more, FAREWELL_S after the map (``told``) has named the announced one."""
        now = time.monotonic() if now is None else now
        if told != self.announced:
            self._told_at = None
            return
        self._told_at = now if self._told_at is None else self._told_at
        if now - self._told_at < FAREWELL_S:
            return
        for door in [door for door in self._open if door not in wanted and door.address != self.announced[0]]:
            log.info("former server key retired address=%s", door.address)
            self._open.discard(door)
            self._endpoint.unbind(door.address)

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            log.error(text)


def _with_keys(identity: Identity, door: Door) -> Identity:
    return replace(identity, public_key=door.public_key, secret_key=door.secret_key)
