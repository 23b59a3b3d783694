"""The root's directory of images on a ledger that decides at once: the real handlers and decisions."""

from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from tests.unit.conductor.root.fakes import UUIDS, FakeLedger
from zcompute.conductor.root.images import Images
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.tables import IMAGES
from zcompute.objects.image import IMAGE_SAVING, Image, ImageOutcome
from zcompute.objects.messages.images import (
    ImageCreateRequest,
    ImageDeleteRequest,
    ImageGetRequest,
    ImageListRequest,
    ImageUpdateRequest,
)

SERVER = UUIDS[0]
SAVING = Image(id=UUIDS[1], project_id="demo", name="one", status=IMAGE_SAVING, server_uuid=SERVER, operation_id="op-1")


class Desk:
    """The handlers at an owner of everything, reading what was committed."""

    def __init__(self) -> None:
        self.ledger = FakeLedger()
        env: Any = SimpleNamespace(
            ledger=self.ledger,
            forwarding=SimpleNamespace(needed=lambda key, context: False),
            store=SimpleNamespace(fetch=self.fetch),
        )
        reads: Any = SimpleNamespace(
            get=lambda context, joined, key: self.ledger.get(IMAGES, *key),
            read=lambda context, work: work(self),
        )
        self.cells: list[str] = []
        self.images = Images(env, reads, RootSettings(), lambda context, cell: self.cells.append(cell))
        self.context: Any = SimpleNamespace(remaining_ms=lambda: 1000)

    def fetch(self, table: Any, keys: Any) -> dict[Any, Any]:
        """As a Store's."""
        return {key: row for key in keys if (row := self.ledger.get(table, *key)) is not None}

    def scan(self, table: Any, *, where: dict[str, Any], limit: int, after: Any = None) -> list[Any]:
        """As a View's."""

        def holds(row: Any) -> bool:
            return all(
                getattr(row, column) in value if isinstance(value, list) else getattr(row, column) == value
                for column, value in where.items()
            )

        rows = [row for row in self.ledger.all(table) if holds(row) and (after is None or row.id > after[0])]
        return sorted(rows, key=lambda row: row.id)[:limit]

    def create(self, image: Image = SAVING) -> Image:
        return self.images.create(ImageCreateRequest(image=replace(image)), self.context).image

    def get(self, image_id: str = SAVING.id, project_id: str | None = "demo") -> Image:
        return self.images.get(ImageGetRequest(id=image_id, project_id=project_id), self.context).image

    def tell(self, outcome: ImageOutcome, server: str = SERVER) -> None:
        self.images.update(ImageUpdateRequest(cell="c1", server_uuid=server, outcome=outcome), self.context)

    def delete(self, operation_id: str = "op-d", project_id: str | None = "demo", withdrawn: int = 0) -> None:
        request = ImageDeleteRequest(
            id=SAVING.id, operation_id=operation_id, project_id=project_id, withdrawn_revision=withdrawn
        )
        self.images.delete(request, self.context)

    def status(self) -> str:
        row = self.ledger.get(IMAGES, SAVING.id)
        return "" if row is None else row.status

    def listed(self, **fields: Any) -> list[str]:
        return [image.id for image in self.images.page(ImageListRequest(**fields), self.context).images]
