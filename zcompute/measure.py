"""What a service measures of itself, for whoever collects it (zcompute.metrics)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec


class Measure(msgspec.Struct, frozen=True):
    """One value now. ``name`` is the metric's without prefix, units last; a ``counter`` only rises while the process
    lives one life, and begins anew at 0."""

    name: str
    about: str
    value: float
    counter: bool = False
    labels: Mapping[str, str] = {}


class Spread(msgspec.Struct, frozen=True):
    """A histogram now. ``counts`` are by bucket, not added up: those up to each of ``bounds``, and those above all."""

    name: str
    about: str
    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float
    labels: Mapping[str, str] = {}


@runtime_checkable
class Measured(Protocol):
    """A service that has measures beside its endpoint's."""

    def measures(self) -> Iterable[Measure | Spread]:
        """All of them, computed now. Must not block."""
