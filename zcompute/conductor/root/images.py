"""Interface ``image`` at the root: the directory of images. Each row is its id's owner's; any conductor reads them."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.change import Change
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.reading import ClientReads
from zcompute.conductor.root.imaging import create_image, delete_image, image_not_found, update_image
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.columns import INT_MAX
from zcompute.db.tables import IMAGES, MAPPINGS
from zcompute.db.view import View, by_key
from zcompute.failpoints import failpoint
from zcompute.objects.image import IMAGE_ACTIVE, IMAGE_QUEUED, IMAGE_SAVING, PRIVATE, PUBLIC, SHOWN, Image
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.images import (
    ImageCreateRequest,
    ImageDeleteRequest,
    ImageGetRequest,
    ImageListReply,
    ImageListRequest,
    ImageReply,
    ImageUpdateRequest,
)
from zcompute.objects.methods import IMAGE_CREATE, IMAGE_DELETE, IMAGE_GET, IMAGE_LIST, IMAGE_UPDATE
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

R = TypeVar("R")

IMAGE_BY_ID = by_key(IMAGES)
NAME_CHARS_MAX = 255
PROPERTIES_MAX = 128
PROPERTY_CHARS_MAX = 255
BEGINS_AS = (IMAGE_QUEUED, IMAGE_SAVING, IMAGE_ACTIVE)


def check_image(image: Image) -> None:
    """What the columns take, and no more. Raises InvalidRequest naming the field."""
    if not 1 <= len(image.id) <= 36 or not image.id.isascii():
        raise InvalidRequest(f"expected an id of 1 to 36 ASCII characters, found {image.id[:80]!r}", field="id")
    if not 1 <= len(image.name) <= NAME_CHARS_MAX:
        raise InvalidRequest(f"expected a name of 1 to {NAME_CHARS_MAX} characters", field="name")
    if image.status not in BEGINS_AS:
        raise InvalidRequest(f"expected one of {', '.join(BEGINS_AS)}, found {image.status[:40]}", field="status")
    if image.visibility not in (PUBLIC, PRIVATE):
        raise InvalidRequest(f"expected {PUBLIC} or {PRIVATE}, found {image.visibility[:40]}", field="visibility")
    for field, number in (("min_disk_gb", image.min_disk_gb), ("min_ram_mb", image.min_ram_mb)):
        if not 0 <= number <= INT_MAX:
            raise InvalidRequest(f"expected 0 to {INT_MAX}, found {number}", field=field)
    texts = [*image.properties, *image.properties.values()]
    if len(image.properties) > PROPERTIES_MAX or any(len(text) > PROPERTY_CHARS_MAX for text in texts):
        raise InvalidRequest(
            f"expected at most {PROPERTIES_MAX} properties of {PROPERTY_CHARS_MAX} characters", field="properties"
        )


def page_of(view: View, request: ImageListRequest, limit: int) -> list[Image]:
    """What the project may see, by id: its own, and the public ones; as many as ``limit``."""
    wanted = SHOWN if request.statuses is None else SHOWN.intersection(request.statuses)
    where: dict[str, Any] = {"status": sorted(wanted)}
    if request.name is not None:
        where["name"] = request.name
    if not (request.server_uuid or "").isascii():
        return []  # comparing an ASCII column with another text would read the whole table
    if request.server_uuid is not None:
        where["server_uuid"] = request.server_uuid
    scopes: list[dict[str, Any]] = [{}]
    if request.project_id is not None:
        own = [{"project_id": request.project_id}] if request.project_id.isascii() else []
        scopes = [*own, {"visibility": PUBLIC}]
    after = (request.after,) if request.after else None
    found: dict[str, Image] = {}
    for scope in scopes:
        for image in view.scan(IMAGES, where={**scope, **where}, limit=limit, after=after):
            found[image.id] = image
    return [found[image_id] for image_id in sorted(found)][:limit]


class Images:
    """The handlers."""

    def __init__(
        self,
        env: ConductorEnv,
        reads: ClientReads,
        settings: RootSettings,
        require_cell: Callable[[Any, str], None],
    ) -> None:
        self._env = env
        self._reads = reads
        self._settings = settings
        self._require_cell = require_cell

    def handlers(self) -> list[tuple[Method, Handler]]:
        """The whole interface."""
        return [
            (IMAGE_CREATE, self.create),
            (IMAGE_GET, self.get),
            (IMAGE_LIST, self.page),
            (IMAGE_DELETE, self.delete),
            (IMAGE_UPDATE, self.update),
        ]

    def create(self, request: ImageCreateRequest, context: Any) -> ImageReply:
        """At the image's owner, or handed on to it. Raises OperationConflict, InvalidRequest, NotOwner, Busy."""
        image = request.image
        check_image(image)
        failpoint("image.before_create")
        reply: ImageReply = self._at_owner(
            image.id, IMAGE_CREATE, request, context, lambda change: ImageReply(image=create_image(change, image))
        )
        failpoint("image.after_create")
        log.info("image created image=%s status=%s server=%s", image.id, reply.image.status, image.server_uuid)
        return reply

    def get(self, request: ImageGetRequest, context: Any) -> ImageReply:
        """Raises ImageNotFound."""
        image = self._reads.get(context, IMAGE_BY_ID, (request.id,))
        if image is None or not image.is_shown_to(request.project_id):
            raise image_not_found(request.id)
        return ImageReply(image=image)

    def page(self, request: ImageListRequest, context: Any) -> ImageListReply:
        """Raises InvalidRequest."""
        if not 1 <= request.limit <= self._settings.list_rows_max:
            raise InvalidRequest(f"expected 1 to {self._settings.list_rows_max}, found {request.limit}", field="limit")
        images = self._reads.read(context, lambda view: page_of(view, request, request.limit))
        return ImageListReply(images=images, more=len(images) == request.limit)

    def delete(self, request: ImageDeleteRequest, context: Any) -> Empty:
        """At the image's owner, or handed on to it. Raises ImageNotFound, ActionForbidden, NotOwner, Busy."""
        self._at_owner(request.id, IMAGE_DELETE, request, context, lambda change: delete_image(change, request))
        log.info("image deleted image=%s withdrawn=%s", request.id, bool(request.withdrawn_revision))
        return Empty()

    def update(self, request: ImageUpdateRequest, context: Any) -> Empty:
        """A cell's word. Acknowledged whether or not it changes anything. Raises Forbidden, InvalidRequest,
        NotOwner."""
        self._require_cell(context, request.cell)
        image_id = request.outcome.image_id
        self._require_server(request)
        failpoint("image.before_update")
        timeout_ms = max(1, min(self._settings.commit_ms_max, context.remaining_ms()))
        image = self._commit(image_id, lambda change: update_image(change, request), timeout_ms)
        failpoint("image.after_update")
        if image is not None:
            log.info("image told of image=%s status=%s size_bytes=%s", image_id, image.status, image.size_bytes)
        return Empty()

    def _require_server(self, request: ImageUpdateRequest) -> None:
        """A server that the root has in another cell is not this cell's to speak of; of one that is gone nobody is
        asked any more. Raises InvalidRequest, StoreError."""
        key = (request.server_uuid,)
        mapping = self._env.store.fetch(MAPPINGS, [key]).get(key)
        if mapping is not None and mapping.cell not in (None, request.cell):
            raise InvalidRequest(
                f"server {request.server_uuid} is in cell {mapping.cell}, not in {request.cell}", field="cell"
            )

    def _at_owner(
        self, key: str, method: Method, request: msgspec.Struct, context: Any, decide: Callable[[Change], R]
    ) -> Any:
        if self._env.forwarding.needed(key, context):
            return self._env.forwarding.call(key, method, request, context)
        timeout_ms = max(1, min(self._settings.commit_ms_max, context.remaining_ms()))
        return self._commit(key, decide, timeout_ms)

    def _commit(self, image_id: str, decide: Callable[[Change], R], timeout_ms: int) -> R:
        keys: Sequence[Any] = [(IMAGES, (image_id,))]
        return self._env.ledger.commit(partition_of(image_id), keys, decide, timeout_ms=timeout_ms)
