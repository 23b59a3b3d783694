"""Which keys misbehave: how many frames that cannot be taken one may send. No I/O, no clock reads.

A frame that is refused costs its receiver as much as one that is useful. Honest peers send next to none: the allowance
is for faults, and for what was on its way when a link was lost. What is valid is never counted, however much it is.
"""

from zcompute.bus.limits import Limits

OFFENCES = frozenset(
    {
        "malformed", "size", "envelopes", "attributes", "multipart", "before_welcome", "late_welcome", "over_credit",
        "bad_sequence", "streams_full", "stream_forbidden", "hello_again",
    }
)  # fmt: skip
"""Reasons of refusals that count. Not: Busy, unknown methods and versions, which honest peers hear too."""

STRANGER_WEIGHT = 0.05
"""Of a frame on a route without a hello: thousands may be on their way when a listener forgot their route."""


class Conduct:
    """An allowance of offences a key, as a token bucket: a burst, then so many a second; then a bar for a while."""

    def __init__(self, limits: Limits) -> None:
        self._burst = float(limits.offences_burst)
        self._per_s = float(limits.offences_per_s)
        self._bar_s = limits.bar_ms / 1000
        self._spent: dict[str, tuple[float, float]] = {}  # key name: (offences, at)
        self._barred: dict[str, float] = {}  # key name: until

    def offend(self, key_name: str, now: float, weight: float = 1.0) -> bool:
        """Count an offence; True when it was one too many, and the key is barred from now on."""
        if not key_name:  # without keys nobody is told from another
            return False
        spent, at = self._spent.get(key_name, (0.0, now))
        spent = max(0.0, spent - (now - at) * self._per_s) + weight
        if spent <= self._burst:
            self._spent[key_name] = (spent, now)
            return False
        self._spent.pop(key_name, None)
        self._barred[key_name] = now + self._bar_s
        return True

    def barred(self, key_name: str, now: float) -> bool:
        """Whether nothing is taken of new connections of this key."""
        until = self._barred.get(key_name)
        if until is None:
            return False
        if now < until:
            return True
        del self._barred[key_name]
        return False
