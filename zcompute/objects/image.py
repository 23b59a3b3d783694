"""Images: what a server's disk is made of, and is made into. The root keeps the directory, agents the bytes."""

import msgspec

from zcompute.objects.base import VersionedObject

IMAGE_QUEUED = "queued"
IMAGE_SAVING = "saving"
IMAGE_ACTIVE = "active"
IMAGE_ERROR = "error"
IMAGE_DELETED = "deleted"

PUBLIC = "public"
PRIVATE = "private"

UNFINISHED = frozenset({IMAGE_QUEUED, IMAGE_SAVING})
"""What is awaited: its bytes are on their way, or a sweep finds out that they are not."""
SHOWN = frozenset({IMAGE_QUEUED, IMAGE_SAVING, IMAGE_ACTIVE, IMAGE_ERROR})
"""What a client is shown. A deleted image's row stays for a while: it keeps a late word from bringing it back."""


class Image(VersionedObject):
    """An image's row. Every project may boot a ``public`` one, its own project a ``private`` one.

    ``server_uuid`` and ``operation_id`` name the server it is made of and the operation that makes it, "" for one that
    an operator has registered. ``reason``: why it is in ``error``. ``deleted_at_us`` is set with status ``deleted``,
    ``deleted_by`` is the operation that did it, "" for a cell's word.
    """

    id: str
    project_id: str
    name: str
    user_id: str = ""
    status: str = IMAGE_QUEUED
    visibility: str = PRIVATE
    size_bytes: int = 0
    checksum: str = ""
    min_disk_gb: int = 0
    min_ram_mb: int = 0
    properties: dict[str, str] = msgspec.field(default_factory=dict)
    server_uuid: str = ""
    operation_id: str = ""
    reason: str = ""
    created_at_us: int = 0
    updated_at_us: int = 0
    deleted_at_us: int | None = None
    deleted_by: str = ""
    revision: int = 1

    def is_shown_to(self, project_id: str | None) -> bool:
        """Whether it is there for this project; None is an administrator."""
        if self.status == IMAGE_DELETED:
            return False
        return self.visibility == PUBLIC or project_id in (None, self.project_id)


class ImageOutcome(VersionedObject):
    """What has become of an image that a task was to make: ``status`` IMAGE_ACTIVE with size and checksum (MD5, in
    hex), IMAGE_ERROR with the ``reason``, or IMAGE_DELETED for one that nobody wants any more."""

    image_id: str
    status: str
    size_bytes: int = 0
    checksum: str = ""
    reason: str = ""
