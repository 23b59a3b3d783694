"""Looking up the image that a request names, and whether a server of a flavor can be made of it: in Nova's words."""

from collections.abc import Callable
from typing import cast

from zcompute.api.auth import Caller
from zcompute.api.deadline import Deadline
from zcompute.api.errors import BadRequest
from zcompute.api.flavors import flavor_of
from zcompute.api.known import Known
from zcompute.api.region import Region
from zcompute.api.settings import LIMITS, Limits
from zcompute.api.uuids import canonical_uuid
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import ImageNotFound
from zcompute.objects.flavor import Flavor
from zcompute.objects.image import IMAGE_ACTIVE, Image
from zcompute.objects.messages.images import ImageGetRequest, ImageReply
from zcompute.objects.methods import IMAGE_GET

IMAGE_ID_CHARS_MAX = 36
GIB = 1 << 30


def check_usable(image: Image, flavor: Flavor) -> None:
    """Raises BadRequest where no server of this flavor can be made of it. Nova's order, and its words."""
    if image.status != IMAGE_ACTIVE:
        raise BadRequest(f"Image {image.id} is not active.")
    if flavor.memory_mb < image.min_ram_mb:
        raise BadRequest("Flavor's memory is too small for requested image.")
    if not flavor.root_gb:
        return  # the disk is as large as the image
    if image.size_bytes > flavor.root_gb * GIB:
        raise BadRequest(
            f"Flavor's disk is too small for requested image. Flavor disk is {flavor.root_gb * GIB} bytes, image is "
            f"{image.size_bytes} bytes."
        )
    if image.min_disk_gb > flavor.root_gb:
        raise BadRequest(
            "Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is "
            f"{flavor.root_gb * GIB} bytes, minimum size is {image.min_disk_gb * GIB} bytes."
        )


class ImageLookup:
    """Images and flavors as requests name them. ``required``: [api] require_known_images."""

    def __init__(self, region: Region, *, required: bool, limits: Limits = LIMITS) -> None:
        self.required = required
        self._region = region
        self._limits = limits
        size, age_s, absent_s = limits.known_max, limits.known_s, limits.absent_s
        self._images = Known(self._ask_image, kept_max=size, age_s=age_s, absent_age_s=absent_s)
        self._flavors = Known(self._ask_flavor, kept_max=size, age_s=age_s, absent_age_s=absent_s)

    def find(self, image_ref: str, caller: Caller, deadline: Deadline) -> Image | None:
        """The image, if it is there for this caller. Raises the bus' errors."""
        image_id = canonical_uuid(image_ref) or image_ref
        if not 1 <= len(image_id) <= IMAGE_ID_CHARS_MAX or not image_id.isascii():
            return None
        image = self._images.get(image_id, deadline)
        if image is None or not image.is_shown_to(None if caller.is_admin else caller.project_id):
            return None
        return image

    def check(
        self, image_ref: str, flavor: Callable[[], Flavor], caller: Caller, deadline: Deadline, unknown: str
    ) -> None:
        """Whether a server of this flavor can be made of it; ``unknown`` is what is said where there is none. Raises
        BadRequest, the bus' errors, and what ``flavor`` raises, which is asked for an image that is there."""
        image = self.find(image_ref, caller, deadline)
        if image is not None:
            self._check_usable(image, flavor(), deadline)
        elif self.required:
            raise BadRequest(unknown)

    def check_for_new_server(self, image_ref: str, flavorid: str, caller: Caller, deadline: Deadline) -> None:
        """The same for a new one; nobody is asked where that is not required. A flavor that there is not is the root's
        to refuse."""
        if not self.required or not image_ref:
            return
        image = self.find(image_ref, caller, deadline)
        if image is None:
            raise BadRequest("Can not find requested image")
        flavor = self._flavors.get(flavorid, deadline)
        if flavor is not None:
            self._check_usable(image, flavor, deadline)

    def _check_usable(self, image: Image, flavor: Flavor, deadline: Deadline) -> None:
        """One that is not active yet may be by now: what was remembered is not believed."""
        if image.status != IMAGE_ACTIVE:
            self._images.drop(image.id)
            image = self._images.get(image.id, deadline) or image
        check_usable(image, flavor)

    def _ask_image(self, image_id: str, deadline: Deadline) -> Image | None:
        request = ImageGetRequest(id=image_id)
        timeout_ms = deadline.left_at_most(self._limits.read_ms_max)
        try:
            return cast(ImageReply, self._region.ask(ROOT_CELL, IMAGE_GET, request, timeout_ms)).image
        except ImageNotFound:
            return None

    def _ask_flavor(self, flavorid: str, deadline: Deadline) -> Flavor | None:
        return flavor_of(self._region, flavorid, deadline)
