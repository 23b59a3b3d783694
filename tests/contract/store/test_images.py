"""Images as both databases keep them: rows, what a project sees of them, what a sweep and a purge look for."""

from msgspec.structs import replace

from tests.contract.store.lane_writer import LaneWriter, insert, update
from tests.contract.store.samples import new_uuid
from zcompute.conductor.root.images import page_of
from zcompute.db.store import Store
from zcompute.db.tables import IMAGES, ROOT_OUTBOX
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.image import IMAGE_ACTIVE, IMAGE_DELETED, IMAGE_ERROR, IMAGE_SAVING, PUBLIC, Image, ImageOutcome
from zcompute.objects.messages.images import ImageListRequest
from zcompute.objects.partition import partition_of


def image(**fields: object) -> Image:
    return Image(**{"id": new_uuid(), "project_id": "a", "name": "größe", "status": IMAGE_ACTIVE, **fields})


def image_of_partition(home: int) -> str:
    while partition_of(image_id := new_uuid()) != home:
        pass
    return image_id


def test_an_image_round_trips(root: Store, root_writer: LaneWriter) -> None:
    whole = image(
        size_bytes=2**62, checksum="f" * 128, min_disk_gb=2**31 - 1, min_ram_mb=2**31 - 1, properties={"größe": "ü"},
        server_uuid=new_uuid(), operation_id="k-" + "0" * 64, reason="kein Platz: ü", visibility=PUBLIC,
        created_at_us=1, updated_at_us=2, deleted_at_us=None,
    )  # fmt: skip
    root_writer.commit(insert(IMAGES, whole))
    assert root.fetch(IMAGES, [(whole.id,), ("größe",), ("x" * 60,)]) == {(whole.id,): whole}
    gone = replace(whole, status=IMAGE_DELETED, deleted_at_us=3, deleted_by="op", revision=2)
    root_writer.commit(update(IMAGES, gone))
    assert root.fetch(IMAGES, [(whole.id,)]) == {(whole.id,): gone}
    home = partition_of(gone.id)
    root_writer.commit(insert(IMAGES, image(id=image_of_partition(home))))
    assert root.expired(IMAGES, home, "deleted_at_us", 4, 10) == [gone]
    assert root.expired(IMAGES, home, "deleted_at_us", 3, 10) == []


def test_a_project_sees_its_own_and_the_public_ones_in_pages(root: Store, root_writer: LaneWriter) -> None:
    rows = [
        image(project_id=project, visibility=visibility, status=status, name=name)
        for project in ("a", "b")
        for visibility in (PUBLIC, "private")
        for status in (IMAGE_ACTIVE, IMAGE_SAVING, IMAGE_ERROR, IMAGE_DELETED)
        for name in ("x", "y")
    ]
    root_writer.commit(insert(IMAGES, *rows))

    def expected(**where: str) -> list[str]:
        return sorted(
            row.id for row in rows
            if row.status != IMAGE_DELETED and (row.project_id == "a" or row.visibility == PUBLIC)
            and all(getattr(row, column) == value for column, value in where.items())
        )  # fmt: skip

    seen: list[str] = []
    while page := page_of(root, ImageListRequest(project_id="a", after=seen[-1] if seen else ""), 4):
        seen += [each.id for each in page]
    assert seen == expected()
    of_name = page_of(root, ImageListRequest(project_id="a", name="x", statuses=[IMAGE_ACTIVE]), 100)
    assert [each.id for each in of_name] == expected(name="x", status=IMAGE_ACTIVE)
    assert len(page_of(root, ImageListRequest(), 100)) == len([row for row in rows if row.status != IMAGE_DELETED])
    assert page_of(root, ImageListRequest(statuses=[IMAGE_DELETED]), 100) == []


def test_a_word_of_an_image_round_trips_in_the_outbox(store: Store, writer: LaneWriter) -> None:
    outcome = ImageOutcome(image_id=new_uuid(), status=IMAGE_ERROR, reason="ü")
    uuid = new_uuid()
    words = [
        OutboxEntry(instance_uuid=uuid, project_id="a", kind="imaged", generation=at, image=outcome) for at in (1, 2)
    ]
    writer.commit(insert(ROOT_OUTBOX, *words))
    assert store.scan(ROOT_OUTBOX, where={"instance_uuid": uuid}, limit=9) == words
