"""Over which conductor an owner is reached: its own link, or a relay while that is down. Pure, time is passed in.

The map says who owns what. An owner that the map still names although no link leads to it is alive elsewhere: its
peers would have taken over. So its reports and beats go to another linked conductor, which hands them on.
"""

import hashlib
from collections.abc import Mapping

from zcompute.compute.settings import Settings


class Ways:
    """One way an owner at a time. ``me`` spreads agents over relays."""

    def __init__(self, settings: Settings, me: str) -> None:
        self._settings = settings
        self._me = me
        self._away_since: dict[str, float] = {}
        self._relay_of: dict[str, str] = {}
        self._resting: dict[tuple[str, str], float] = {}  # (owner, relay) until when

    def to(self, owner: str, usable: Mapping[str, bool], now: float) -> str:
        """The conductor to send what is this owner's to, "" for none. ``usable``: linked ones, and whether each relays.

        A link that is just being made anew is waited for (``relay_after_ms``); a relay is kept while it is usable.
        """
        if owner in usable:
            self.back(owner)
            return owner
        if not owner or now - self._away_since.setdefault(owner, now) < self._settings.relay_after_ms / 1000:
            return ""
        former = self._relay_of.get(owner, "")
        if usable.get(former) and not self._rests(owner, former, now):
            return former
        chosen = self._relay_of[owner] = next(iter(self._relays(owner, usable, now)), "")
        return chosen

    def all_to(self, owner: str, usable: Mapping[str, bool], now: float) -> list[str]:
        """For what gets no answer: the owner's own link, or ``beat_relays_max`` relays: one may not reach it."""
        way = self.to(owner, usable, now)
        if not way or way == owner:
            return [way] if way else []
        return self._relays(owner, usable, now)[: self._settings.beat_relays_max]

    def _relays(self, owner: str, usable: Mapping[str, bool], now: float) -> list[str]:
        """Those that refused last are asked last."""
        relays = (name for name in usable if usable[name])
        return sorted(relays, key=lambda name: (self._rests(owner, name, now), _rank(self._me, owner, name)))

    def lost(self, owner: str, now: float) -> None:
        """The owner's own link is down: the wait for it begins."""
        self._away_since.setdefault(owner, now)

    def back(self, owner: str) -> None:
        """The owner's own link may be used again: the next loss is waited for anew."""
        self._away_since.pop(owner, None)
        self._relay_of.pop(owner, None)

    def refused(self, owner: str, relay: str, now: float) -> None:
        """The relay does not reach the owner, or has no room: another is tried first for a while."""
        self._resting = {pair: until for pair, until in self._resting.items() if until > now}
        self._resting[owner, relay] = now + self._settings.relay_rest_ms / 1000

    def _rests(self, owner: str, relay: str, now: float) -> bool:
        return self._resting.get((owner, relay), 0.0) > now


def _rank(*names: str) -> bytes:
    return hashlib.sha256("/".join(names).encode()).digest()
