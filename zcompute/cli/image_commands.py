"""``zcompute image``: the region's directory of images, as the root has it."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import click
import msgspec

from zcompute.bus import BusError, register_error
from zcompute.cli.exits import MORE_LEFT, CommandError, UsageRefused
from zcompute.cli.operator import Operator, operator_config
from zcompute.cli.tables import print_rows
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import SERVICE_ERRORS, ServiceError
from zcompute.objects.image import IMAGE_ACTIVE, PRIVATE, PUBLIC, Image
from zcompute.objects.messages.images import (
    ImageCreateRequest,
    ImageDeleteRequest,
    ImageGetRequest,
    ImageListReply,
    ImageListRequest,
    ImageReply,
)
from zcompute.objects.methods import IMAGE_CREATE, IMAGE_DELETE, IMAGE_GET, IMAGE_LIST

TIMEOUT_MS = 10_000
LINK_WAIT_MS = 2_000
PAGE_IMAGES = 500
OPERATORS_PROJECT = "operator"


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--format", "form", default="text", type=click.Choice(["text", "json"]), show_default=True),
        click.option("--state-dir", default="./var", show_default=True, help="An embedded region."),
        click.option("--config", "config_path", help="The operator's configuration."),
    ):
        command = option(command)
    return command


def _asking(config_path: str | None, state_dir: str, act: Callable[[Operator], Any]) -> Any:
    for error in SERVICE_ERRORS:
        register_error(error)
    with Operator(operator_config(config_path, state_dir), TIMEOUT_MS) as operator:
        operator.wait_links(LINK_WAIT_MS)
        try:
            return act(operator)
        except (BusError, ServiceError) as error:
            raise CommandError(str(error)) from error


def _ask(config_path: str | None, state_dir: str, method: Any, request: Any) -> Any:
    return _asking(config_path, state_dir, lambda operator: operator.ask_cell(ROOT_CELL, method, request))


@click.group()
def image() -> None:
    """Register, list, show and delete images. Exit codes: 0 done, 1 refused or no answer, 2 wrong usage or
    configuration; `list`: 9 there are more than --limit."""


@image.command()
@click.argument("name")
@click.option("--id", "image_id", help="As hypervisors know it; made up by default.")
@click.option("--min-disk", "min_disk_gb", default=0, type=click.IntRange(0, 2**31 - 1), help="GiB of root disk.")
@click.option("--min-ram", "min_ram_mb", default=0, type=click.IntRange(0, 2**31 - 1), help="MiB of memory.")
@click.option("--size", "size_bytes", default=0, type=click.IntRange(0, 2**63 - 1), help="Bytes.")
@click.option("--checksum", default="", help="Its MD5, in hex.")
@click.option("--property", "properties", multiple=True, metavar="KEY=VALUE", help="Metadata; may be repeated.")
@click.option("--project", help="For this project only; for all by default.")
@_options
def create(
    name: str, image_id: str | None, min_disk_gb: int, min_ram_mb: int, size_bytes: int, checksum: str,
    properties: tuple[str, ...], project: str | None, config_path: str | None, state_dir: str, form: str,
) -> None:  # fmt: skip
    """Register the image NAME, whose bytes hypervisors have under its id already."""
    wanted = Image(
        id=_checked_id(image_id),
        project_id=project or OPERATORS_PROJECT,
        name=name,
        status=IMAGE_ACTIVE,
        visibility=PRIVATE if project else PUBLIC,
        size_bytes=size_bytes,
        checksum=checksum,
        min_disk_gb=min_disk_gb,
        min_ram_mb=min_ram_mb,
        properties=dict(_pair(text) for text in properties),
        operation_id=f"operator-{uuid.uuid4()}",
    )
    reply: ImageReply = _ask(config_path, state_dir, IMAGE_CREATE, ImageCreateRequest(image=wanted))
    _print_one(reply.image, form)


@image.command("list")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(min=1), help="Images at most.")
@click.option("--project", help="What this project may boot; all images by default.")
@_options
def list_images(limit: int, project: str | None, config_path: str | None, state_dir: str, form: str) -> None:
    """List images in the order of their ids."""

    def read(operator: Operator) -> list[Image]:
        found: list[Image] = []
        while len(found) <= limit:
            after = found[-1].id if found else ""
            request = ImageListRequest(project_id=project, after=after, limit=PAGE_IMAGES)
            page: ImageListReply = operator.ask_cell(ROOT_CELL, IMAGE_LIST, request)
            found += page.images
            if not page.more:
                break
        return found

    found: list[Image] = _asking(config_path, state_dir, read)
    if form == "json":
        click.echo(json.dumps([msgspec.structs.asdict(each) for each in found[:limit]], indent=2))
    else:
        print_rows([_row(each) for each in found[:limit]], form)
    if len(found) > limit:
        raise SystemExit(MORE_LEFT)


@image.command()
@click.argument("image_id")
@_options
def show(image_id: str, config_path: str | None, state_dir: str, form: str) -> None:
    """Show one image, whoever's it is."""
    reply: ImageReply = _ask(config_path, state_dir, IMAGE_GET, ImageGetRequest(id=image_id))
    _print_one(reply.image, form)


@image.command()
@click.argument("image_id")
@_options
def delete(image_id: str, config_path: str | None, state_dir: str, form: str) -> None:
    """Take an image out of the directory, whoever's it is. Hypervisors keep what they have."""
    request = ImageDeleteRequest(id=image_id, operation_id=f"operator-{uuid.uuid4()}")
    _ask(config_path, state_dir, IMAGE_DELETE, request)
    click.echo(json.dumps({"deleted": image_id}) if form == "json" else f"deleted {image_id}")


def _checked_id(image_id: str | None) -> str:
    if image_id is None:
        return str(uuid.uuid4())
    try:
        return str(uuid.UUID(image_id))
    except ValueError:
        raise UsageRefused(f"--id: expected a UUID, found {image_id[:80]!r}") from None


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageRefused(f"--property: expected KEY=VALUE, found {text[:80]!r}")
    return key, value


def _row(found: Image) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "status": found.status,
        "visibility": found.visibility,
        "project": found.project_id,
        "size_bytes": found.size_bytes,
        "server": found.server_uuid,
    }


def _print_one(found: Image, form: str) -> None:
    if form == "json":
        click.echo(json.dumps(msgspec.structs.asdict(found), indent=2))
        return
    for name, value in msgspec.structs.asdict(found).items():
        if value not in ("", None, {}):
            click.echo(f"{name}: {value}")
