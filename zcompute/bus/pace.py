"""When a listener reads its socket at a pace instead of at each arrival. No I/O, no clock reads.

Thousands of peers with a report each now and then wake the process for every single frame, which costs more than the
frame. Then the socket is read every few milliseconds instead, as network drivers poll under load: what arrived together
is read, handled and answered together. Few busy peers (callers that wait for an answer) are never paced.
"""

from zcompute.bus.limits import Limits


class ReadPace:
    """Looks, once a tick, at how many peers were heard since the last."""

    def __init__(self, limits: Limits) -> None:
        self._begin = limits.paced_routes_per_tick
        self._heard: set[bytes] = set()
        self.paced = False

    def hear(self, route_id: bytes) -> None:
        """A frame came from this peer."""
        self._heard.add(route_id)

    def tick(self) -> bool:
        """Whether reading is paced from now on; begins at `paced_routes_per_tick` peers, ends below half of it."""
        heard = len(self._heard)
        self._heard.clear()
        self.paced = heard >= (self._begin // 2 if self.paced else self._begin)
        return self.paced
