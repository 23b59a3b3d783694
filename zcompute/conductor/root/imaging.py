"""Deciding on the rows of images. Pure.

A row is made before anything is asked of the server, and is active by its cell's word alone. A word may come late,
again, or after a sweep has given the image up: it says what is, so it counts, unless the image was deleted meanwhile.
"""

from msgspec.structs import replace

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.change import Change
from zcompute.db.tables import IMAGES
from zcompute.objects.errors import ActionForbidden, ImageNotFound, OperationConflict
from zcompute.objects.image import (
    IMAGE_ACTIVE,
    IMAGE_DELETED,
    IMAGE_ERROR,
    UNFINISHED,
    Image,
)
from zcompute.objects.messages.images import ImageDeleteRequest, ImageUpdateRequest

REASON_CHARS_MAX = 255


def image_not_found(image_id: str) -> ImageNotFound:
    """In Nova's words."""
    return ImageNotFound(f"Image {image_id[:80]} could not be found.", image=image_id[:80])


def create_image(change: Change, image: Image) -> Image:
    """The row, or the one that the same operation has made before. One that is still awaited gets a new revision, so
    that whoever created it before, and was refused, does not withdraw it. Raises OperationConflict."""
    former = change.get(IMAGES, (image.id,))
    if former is None:
        made = replace(image, created_at_us=change.now_us, updated_at_us=change.now_us, deleted_at_us=None)
        change.put(IMAGES, made)
        return made
    mine = (image.project_id, image.server_uuid, image.operation_id)
    if not image.operation_id or (former.project_id, former.server_uuid, former.operation_id) != mine:
        raise OperationConflict(f"image {image.id} is there already: use another id", operation_id=image.operation_id)
    if former.status not in UNFINISHED:
        return former
    again = replace(former, updated_at_us=change.now_us)
    change.put(IMAGES, again)
    return again


def delete_image(change: Change, request: ImageDeleteRequest) -> bool:
    """Delete, or withdraw. False when there is nothing left to do. Raises ImageNotFound, ActionForbidden."""
    image = change.get(IMAGES, (request.id,))
    if request.withdrawn_revision:
        if image is None or image.revision != request.withdrawn_revision or image.status not in UNFINISHED:
            return False
        change.delete(IMAGES, (request.id,))
        return True
    if image is not None and image.status == IMAGE_DELETED and image.deleted_by == request.operation_id:
        return False
    if image is None or not image.is_shown_to(request.project_id):
        raise image_not_found(request.id)
    if request.project_id not in (None, image.project_id):
        raise ActionForbidden("You are not allowed to delete the image.", action="delete")
    change.put(IMAGES, _deleted(image, change.now_us, request.operation_id))
    return True


def update_image(change: Change, request: ImageUpdateRequest) -> Image | None:
    """A cell's word. None when it changes nothing: a repeat, or one of an image that is deleted by now.

    Raises InvalidRequest for an image of another server.
    """
    outcome = request.outcome
    image = change.get(IMAGES, (outcome.image_id,))
    if image is None or image.status == IMAGE_DELETED:
        return None
    if image.server_uuid != request.server_uuid:
        raise InvalidRequest(f"image {image.id} is not of server {request.server_uuid}", field="server_uuid")
    if outcome.status == IMAGE_DELETED:
        updated = _deleted(image, change.now_us, "")
    elif outcome.status == IMAGE_ACTIVE and (image.status in UNFINISHED or image.status == IMAGE_ERROR):
        updated = replace(
            image,
            status=IMAGE_ACTIVE,
            size_bytes=outcome.size_bytes,
            checksum=outcome.checksum,
            reason="",
            updated_at_us=change.now_us,
        )
    elif outcome.status == IMAGE_ERROR and image.status in UNFINISHED:
        updated = _failed(image, outcome.reason, change.now_us)
    else:
        return None
    change.put(IMAGES, updated)
    return updated


def give_up(change: Change, image: Image, reason: str) -> bool:
    """Nobody makes this image any more. False when it has changed since it was looked at."""
    present = change.get(IMAGES, (image.id,))
    if present is None or present.revision != image.revision or present.status not in UNFINISHED:
        return False
    change.put(IMAGES, _failed(present, reason, change.now_us))
    return True


def _failed(image: Image, reason: str, now_us: int) -> Image:
    return replace(image, status=IMAGE_ERROR, reason=reason[:REASON_CHARS_MAX], updated_at_us=now_us)


def _deleted(image: Image, now_us: int, operation_id: str) -> Image:
    return replace(image, status=IMAGE_DELETED, deleted_by=operation_id, deleted_at_us=now_us, updated_at_us=now_us)
