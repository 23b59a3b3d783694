"""The root's images, as a cell's snapshots end them: zcompute.conductor.root.images."""

from collections.abc import Callable
from typing import Any

from zcompute.bus import Endpoint
from zcompute.objects.actions import SHELVE
from zcompute.objects.image import IMAGE_ACTIVE, IMAGE_DELETED, ImageOutcome
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.images import ImageUpdateRequest
from zcompute.objects.methods import IMAGE_UPDATE


class RootImages:
    """Every image that is begun ends, and once: ``violated`` hears of a second word that is not the first. That nobody
    wants it any more may be said beside it."""

    def __init__(self, violated: Callable[[str, str], None]) -> None:
        self._violated = violated
        self._begun: set[str] = set()
        self._ended: dict[str, ImageOutcome] = {}
        self._unwanted: set[str] = set()

    def serve(self, endpoint: Endpoint) -> None:
        """Answer the cells."""
        endpoint.serve(IMAGE_UPDATE, self._update)

    def begun(self, image_id: str) -> None:
        """A cell has taken in to make this one."""
        self._begun.add(image_id)

    def unrest(self, shelved: set[str]) -> list[str]:
        """Images of which no word ever came, and those of servers that are shelved (``shelved`` are theirs)
        which somebody still wants, and the others."""
        found = [f"image {image_id} is still being saved" for image_id in sorted(self._begun - self._ended.keys())]
        made = {image_id for image_id, outcome in self._ended.items() if outcome.status == IMAGE_ACTIVE}
        kept = {image_id for image_id in made - self._unwanted if image_id.startswith(SHELVE.key)}
        found += [f"image {image_id} is of no shelved server" for image_id in sorted(kept - shelved)]
        return found + [f"image {image_id} of a shelved server is gone" for image_id in sorted(shelved - kept)]

    def _update(self, request: ImageUpdateRequest, context: Any) -> Empty:
        outcome = request.outcome
        if outcome.status == IMAGE_DELETED:
            self._unwanted.add(outcome.image_id)
            return Empty()
        former = self._ended.setdefault(outcome.image_id, outcome)
        if former != outcome:
            self._violated("two ends", f"image {outcome.image_id} is {former.status}, then {outcome.status}")
        return Empty()
