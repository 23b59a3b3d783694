"""The root's images, as a cell's snapshots end them: zcompute.conductor.root.images."""

from collections.abc import Callable
from typing import Any

from zcompute.bus import Endpoint
from zcompute.objects.image import ImageOutcome
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.images import ImageUpdateRequest
from zcompute.objects.methods import IMAGE_UPDATE


class RootImages:
    """Every image that is begun ends, and once: ``violated`` hears of a second word that is not the first."""

    def __init__(self, violated: Callable[[str, str], None]) -> None:
        self._violated = violated
        self._begun: set[str] = set()
        self._ended: dict[str, ImageOutcome] = {}

    def serve(self, endpoint: Endpoint) -> None:
        """Answer the cells."""
        endpoint.serve(IMAGE_UPDATE, self._update)

    def begun(self, image_id: str) -> None:
        """A cell has taken in to make this one."""
        self._begun.add(image_id)

    def unrest(self) -> list[str]:
        """Images of which no word ever came."""
        return [f"image {image_id} is still being saved" for image_id in sorted(self._begun - self._ended.keys())]

    def _update(self, request: ImageUpdateRequest, context: Any) -> Empty:
        outcome = request.outcome
        former = self._ended.setdefault(outcome.image_id, outcome)
        if former != outcome:
            self._violated("two ends", f"image {outcome.image_id} is {former.status}, then {outcome.status}")
        return Empty()
