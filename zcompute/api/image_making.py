"""createImage and shelve: the image has its row at the root before its server's cell is asked to make it.

Whatever dies in between leaves a row that says ``saving``. Where the cell definitely refuses, it goes again; where
nobody knows, the cell's word or the root's sweep says what it is.
"""

import logging
import uuid
from dataclasses import replace
from typing import cast

import msgspec

from zcompute.api.action_bodies import Asked
from zcompute.api.auth import Caller
from zcompute.api.deadline import Deadline
from zcompute.api.locate import Servers
from zcompute.api.region import Region
from zcompute.api.settings import LIMITS
from zcompute.bus.errors import BusError, InvalidRequest
from zcompute.failpoints import failpoint
from zcompute.objects.errors import ServiceError
from zcompute.objects.image import IMAGE_SAVING, Image
from zcompute.objects.instance import Instance
from zcompute.objects.messages.images import ImageCreateRequest, ImageDeleteRequest, ImageReply
from zcompute.objects.methods import IMAGE_CREATE, IMAGE_DELETE

log = logging.getLogger(__name__)

IMAGE_NAME_CHARS_MAX = 255
_IMAGES = uuid.UUID("0f6f1a2e-6a0c-5b7e-9d8e-2f6f4a1f3c55")  # the namespace of ids that are made of operations


def image_id_of(project_id: str, operation_id: str) -> str:
    """The same for a repeat of the operation."""
    return str(uuid.uuid5(_IMAGES, f"{project_id}\n{operation_id}"))


def image_of(instance: Instance, caller: Caller, asked: Asked, operation_id: str) -> Image:
    """The row to begin with: the client's metadata over what Nova says of every snapshot. It needs a disk as large as
    the one that it is made of. Pure."""
    properties = {
        "instance_uuid": instance.uuid,
        "user_id": caller.user_id,
        "image_type": "snapshot",
        "base_image_ref": instance.spec.image_ref,
        **(asked.metadata or {}),
    }
    return Image(
        id=image_id_of(caller.project_id, operation_id),
        project_id=caller.project_id,
        user_id=caller.user_id,
        name=asked.image_name or instance.name[: IMAGE_NAME_CHARS_MAX - len(asked.image_suffix)] + asked.image_suffix,
        status=IMAGE_SAVING,
        min_disk_gb=instance.flavor.root_gb,
        properties=properties,
        server_uuid=instance.uuid,
        operation_id=operation_id,
    )


def make_image(
    region: Region, servers: Servers, server: str, caller: Caller, asked: Asked, operation_id: str, deadline: Deadline
) -> str:
    """Have it made, for its own sake or of a server that is shelved; returns its id. Raises what Servers.act does."""
    instance = servers.show(server, None if caller.is_admin else caller.project_id, deadline)
    image = image_of(instance, caller, asked, operation_id)
    failpoint("create_image.before_row")
    request = ImageCreateRequest(image=image)
    timeout_ms = deadline.left_at_most(LIMITS.read_ms_max)
    created = cast(ImageReply, region.ask_owner(image.id, IMAGE_CREATE, request, timeout_ms)).image
    failpoint("create_image.after_row")
    arguments = msgspec.structs.replace(asked.arguments, image_ref=image.id)
    try:
        servers.act(server, caller, replace(asked, arguments=arguments, metadata=None), operation_id, deadline)
    except (ServiceError, InvalidRequest):
        _withdraw(region, created, operation_id, deadline)
        raise
    failpoint("create_image.after_action")
    return image.id


def _withdraw(region: Region, image: Image, operation_id: str, deadline: Deadline) -> None:
    """The row goes; where the root does not answer, its sweep says later that nobody makes this image."""
    request = ImageDeleteRequest(id=image.id, operation_id=operation_id, withdrawn_revision=image.revision)
    try:
        region.ask_owner(image.id, IMAGE_DELETE, request, deadline.left_at_most(LIMITS.withdraw_ms_max))
    except (BusError, ServiceError) as error:
        log.info("image not withdrawn, left to the sweep image=%s error=%s", image.id, type(error).__name__)
