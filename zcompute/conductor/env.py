"""What a role of a conductor gets: one incarnation's endpoint, store, ledger and routers; and what a role is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from zcompute.bus import Endpoint
from zcompute.cells.router import PartitionRouter
from zcompute.conductor.forwarding import Forwarding
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.reading import ClientReads
from zcompute.config import Config
from zcompute.db.replicas.reading import Reading
from zcompute.db.store import Store
from zcompute.measure import Measure, Spread
from zcompute.objects.interface import Method

Handler = Callable[[Any, Any], Any]  # (request, bus.CallContext or the router's local one) -> reply


def _held() -> bool:
    return True


@dataclass
class ConductorEnv:
    """One incarnation, as its roles see it; a new incarnation makes a new one.

    ``router`` calls the owner of a key in the own cell (and this very conductor without the wire), ``root_router``
    the owner of a key in the root cell; it is None in the root cell itself. ``store`` is the primary, for all that
    decides; ``reads`` answers clients, from replicas where there are any.
    """

    config: Config
    endpoint: Endpoint
    store: Store
    ledger: Ledger
    router: PartitionRouter
    root_router: PartitionRouter | None = None
    reading: Reading | None = None
    lease_held: Callable[[], bool] = _held
    forwarding: Forwarding = field(init=False)
    reads: ClientReads = field(init=False)

    def __post_init__(self) -> None:
        self.forwarding = Forwarding(self.router, self.ledger, self.cell)
        self.reading = self.reading or Reading(self.store)
        self.reads = ClientReads(self.reading, self.lease_held)

    @property
    def service_id(self) -> str:
        return self.config.service.id

    @property
    def cell(self) -> str:
        return self.config.service.cell


class Role(Protocol):
    """What a conductor does besides owning partitions: CellRole in a cell, RootRole in the root cell.

    Order: ``__init__(env)``, ``handlers()`` (served before any link is let in), ``start()`` (the ledger is ready;
    registers on_gain and the like, then works in greenlets), ``stop()`` (kills those greenlets, never blocks long).
    """

    def handlers(self) -> list[tuple[Method, Handler]]:
        """The methods that the role serves, on the bus and for the local router alike."""

    def start(self) -> None:
        """Begin. Called once, before the first link is admitted."""

    def stop(self) -> None:
        """End. The incarnation is over: nothing may be written or answered any more."""

    def measures(self) -> Iterable[Measure | Spread]:
        """For the metrics, computed now. Must not block."""
