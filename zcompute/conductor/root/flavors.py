"""Flavors as the root serves them: read from the primary, kept for a second."""

import time

from zcompute.conductor.root.settings import RootSettings
from zcompute.db.store import Store
from zcompute.db.tables import FLAVORS
from zcompute.objects.errors import FlavorNotFound
from zcompute.objects.flavor import Flavor


class Flavors:
    """The flavors table, bounded by ``flavors_max``; older than ``flavor_cache_ms`` it is read again."""

    def __init__(self, store: Store, settings: RootSettings) -> None:
        self._store = store
        self._settings = settings
        self._by_id: dict[str, Flavor] = {}
        self._read_at: float | None = None

    def all(self) -> list[Flavor]:
        """Every flavor, by id."""
        self._refresh()
        return list(self._by_id.values())

    def get(self, flavorid: str) -> Flavor:
        """Raises FlavorNotFound."""
        self._refresh()
        flavor = self._by_id.get(flavorid)
        if flavor is None:
            raise FlavorNotFound(f"Flavor {flavorid} could not be found.", flavor=flavorid)
        return flavor

    def for_new_server(self, flavorid: str) -> Flavor | None:
        """None where there is none, or a disabled one: it counts as absent, as in Nova."""
        self._refresh()
        flavor = self._by_id.get(flavorid)
        return None if flavor is None or flavor.disabled else flavor

    def _refresh(self) -> None:
        now = time.monotonic()
        if self._read_at is not None and now - self._read_at < self._settings.flavor_cache_ms / 1000:
            return
        flavors = self._store.scan(FLAVORS, limit=self._settings.flavors_max)
        self._by_id = {flavor.flavorid: flavor for flavor in flavors}
        self._read_at = now
