"""Requests and replies of the root's directory of images."""

import msgspec

from zcompute.objects.image import Image, ImageOutcome


class ImageCreateRequest(msgspec.Struct, kw_only=True):
    """Put an image into the directory. Its id is made of the operation: a repeat finds it there."""

    image: Image


class ImageReply(msgspec.Struct, kw_only=True):
    image: Image


class ImageGetRequest(msgspec.Struct, kw_only=True):
    """One image. project_id None = any project's (administrators)."""

    id: str
    project_id: str | None = None


class ImageListRequest(msgspec.Struct, kw_only=True):
    """A page of what a project may see, by id, behind ``after``; project_id None = everything (administrators).

    ``name``, ``statuses`` and ``server_uuid`` narrow it.
    """

    project_id: str | None = None
    after: str = ""
    limit: int = 1000
    name: str | None = None
    statuses: list[str] | None = None
    server_uuid: str | None = None


class ImageListReply(msgspec.Struct, kw_only=True):
    """``more``: there may be a page behind the last of these."""

    images: list[Image]
    more: bool = False


class ImageDeleteRequest(msgspec.Struct, kw_only=True):
    """Delete an image; repeated under its operation id, it was deleted. project_id None = any project's.

    ``withdrawn_revision``: it was created in vain, since the operation that was to make it was refused: it goes without
    a trace, if its row is still of this revision.
    """

    id: str
    operation_id: str
    project_id: str | None = None
    withdrawn_revision: int = 0


class ImageUpdateRequest(msgspec.Struct, kw_only=True):
    """A cell says what has become of an image of its server."""

    cell: str
    server_uuid: str
    outcome: ImageOutcome
