"""/images: Nova's image proxy over the root's directory: list, detail, show, delete."""

import uuid
from typing import Any, cast

import msgspec
from msgspec import UNSET, UnsetType

from zcompute.api import context
from zcompute.api.auth import Caller
from zcompute.api.deadline import Deadline
from zcompute.api.errors import BadRequest, ItemNotFound
from zcompute.api.links import Link, next_link, resource_links
from zcompute.api.queries import Query, first_values, limit_of
from zcompute.api.region import Region
from zcompute.api.settings import LIMITS
from zcompute.api.uuids import canonical_uuid
from zcompute.api.views import iso_time
from zcompute.config import ApiConfig
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import ImageNotFound
from zcompute.objects.image import IMAGE_ACTIVE, IMAGE_ERROR, IMAGE_QUEUED, IMAGE_SAVING, Image
from zcompute.objects.messages.images import (
    ImageDeleteRequest,
    ImageGetRequest,
    ImageListReply,
    ImageListRequest,
    ImageReply,
)
from zcompute.objects.methods import IMAGE_DELETE, IMAGE_GET, IMAGE_LIST

FILTER_CHARS_MAX = 255
ID_CHARS_MAX = 36
# Filters of Nova that are not served: ignoring them would list what was not asked for.
NOT_SERVED = ("changes-since", "minDisk", "minRam", "type", "property-")
STATUS_OF = {IMAGE_ACTIVE: "ACTIVE", IMAGE_QUEUED: "SAVING", IMAGE_SAVING: "SAVING", IMAGE_ERROR: "ERROR"}
PROGRESS_OF = {IMAGE_QUEUED: 25, IMAGE_SAVING: 50, IMAGE_ACTIVE: 100}


class ImageSummary(msgspec.Struct):
    """An image in a list without details."""

    id: str
    name: str
    links: list[Link]


class ServerOf(msgspec.Struct):
    """The server that an image was made of."""

    id: str
    links: list[Link]


class ImageView(msgspec.Struct, kw_only=True):
    """A whole image, as Nova 2.1 shows it."""

    id: str
    name: str
    status: str
    progress: int
    created: str
    updated: str
    min_disk: int = msgspec.field(name="minDisk")
    min_ram: int = msgspec.field(name="minRam")
    metadata: dict[str, str]
    size_bytes: int = msgspec.field(name="OS-EXT-IMG-SIZE:size")
    server: ServerOf | UnsetType = UNSET
    links: list[Link]


def image_summary(image: Image, base_url: str) -> ImageSummary:
    """For GET /images."""
    return ImageSummary(image.id, image.name, resource_links(base_url, "images", image.id))


def image_view(image: Image, base_url: str) -> ImageView:
    """For GET /images/detail and /images/ID."""
    view = ImageView(
        id=image.id,
        name=image.name,
        status=STATUS_OF.get(image.status, "UNKNOWN"),
        progress=PROGRESS_OF.get(image.status, 0),
        created=iso_time(image.created_at_us),
        updated=iso_time(image.updated_at_us),
        min_disk=image.min_disk_gb,
        min_ram=image.min_ram_mb,
        metadata=image.properties,
        size_bytes=image.size_bytes,
        links=resource_links(base_url, "images", image.id),
    )
    if image.server_uuid:
        view.server = ServerOf(image.server_uuid, resource_links(base_url, "servers", image.server_uuid))
    return view


def image_list(query: Query, caller: Caller, limit_max: int) -> ImageListRequest:
    """What a list asks for: filters ``name``, ``status`` and ``server``, a marker and a limit. Raises BadRequest naming
    the parameter."""
    values = first_values(query)
    for field in ("name", "status", "server", "marker"):
        if len(values.get(field, "")) > FILTER_CHARS_MAX:
            raise BadRequest(
                f"Invalid input for query parameters {field}. Expected at most {FILTER_CHARS_MAX} characters."
            )
    for field in values:
        if field.startswith(NOT_SERVED):
            raise BadRequest(f"Invalid input for query parameters {field[:80]}. It is not supported by this release.")
    status = values.get("status", "").upper()
    return ImageListRequest(
        project_id=None if caller.is_admin else caller.project_id,
        after=canonical_uuid(values.get("marker", "")) or values.get("marker", ""),
        limit=limit_of(values, limit_max),
        name=values.get("name") or None,
        statuses=[kept for kept, shown in STATUS_OF.items() if shown == status] if status else None,
        server_uuid=_server_of(values["server"]) if values.get("server") else None,
    )


def _server_of(reference: str) -> str:
    """Nova takes the server's URL, or its id."""
    found = reference.rstrip("/").rsplit("/", 1)[-1]
    return canonical_uuid(found) or found


class ImageCollection:
    """GET /images and /images/detail."""

    def __init__(self, region: Region, config: ApiConfig, *, with_details: bool) -> None:
        self._region = region
        self._limit_max = min(config.list_limit_max, LIMITS.page_rows_max)
        self._with_details = with_details

    def on_get(self, req: Any, resp: Any) -> None:
        """A page of images, by id."""
        base_url, query, caller = context.base_url_of(req), context.query_of(req), context.caller_of(req)
        wanted, deadline = image_list(query, caller, self._limit_max), context.deadline_of(req)
        if wanted.after:
            _check_marker(self._region, wanted.after, caller, deadline)
        timeout_ms = deadline.left_at_most(LIMITS.list_ms_max)
        reply = cast(ImageListReply, self._region.ask(ROOT_CELL, IMAGE_LIST, wanted, timeout_ms))
        body: dict[str, Any] = {}
        if self._with_details:
            body["images"] = [image_view(image, base_url) for image in reply.images]
        else:
            body["images"] = [image_summary(image, base_url) for image in reply.images]
        if reply.more and reply.images:
            body["images_links"] = [next_link(base_url, req.path, query, reply.images[-1].id)]
        context.answer(resp, body)


class ImageItem:
    """GET and DELETE /images/ID."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def on_get(self, req: Any, resp: Any, image_id: str) -> None:
        """One whole image."""
        image = _image_of(self._region, image_id, context.caller_of(req), context.deadline_of(req))
        context.answer(resp, {"image": image_view(image, context.base_url_of(req))})

    def on_delete(self, req: Any, resp: Any, image_id: str) -> None:
        """Gone when this is answered; one that is being made is not brought back by its end."""
        caller = context.caller_of(req)
        wanted = _id_of(image_id)
        request = ImageDeleteRequest(
            id=wanted, operation_id=str(uuid.uuid4()), project_id=None if caller.is_admin else caller.project_id
        )
        try:
            self._region.ask_owner(
                wanted, IMAGE_DELETE, request, context.deadline_of(req).left_at_most(LIMITS.read_ms_max)
            )
        except ImageNotFound:
            raise _not_found() from None
        resp.status = "204 No Content"


def _image_of(region: Region, image_id: str, caller: Caller, deadline: Deadline) -> Image:
    request = ImageGetRequest(id=_id_of(image_id), project_id=None if caller.is_admin else caller.project_id)
    try:
        timeout_ms = deadline.left_at_most(LIMITS.read_ms_max)
        return cast(ImageReply, region.ask(ROOT_CELL, IMAGE_GET, request, timeout_ms)).image
    except ImageNotFound:
        raise _not_found() from None


def _check_marker(region: Region, marker: str, caller: Caller, deadline: Deadline) -> None:
    try:
        _image_of(region, marker, caller, deadline)
    except ItemNotFound:
        raise BadRequest(f"marker [{marker[:80]}] not found") from None


def _id_of(image_id: str) -> str:
    """As it is stored: a UUID in its canonical form, another name as an operator has chosen it."""
    found = canonical_uuid(image_id) or image_id
    if not 1 <= len(found) <= ID_CHARS_MAX or not found.isascii():
        raise _not_found()
    return found


def _not_found() -> ItemNotFound:
    return ItemNotFound("Image not found.")
