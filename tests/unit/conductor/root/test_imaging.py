"""The directory of images at the root: what an owner decides, and which images its sweep gives up."""

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.conductor.root.fakes import NOW_US, UUIDS, FakeLink
from tests.unit.conductor.root.image_desk import SAVING, SERVER, Desk
from zcompute.bus.errors import InvalidRequest, LinkDown
from zcompute.conductor.root.image_sweep import (
    NEVER_BEGUN,
    SERVER_GONE,
    WORD_LOST,
    ImageSweep,
    SweepLimits,
    ask_history,
    why_given_up,
)
from zcompute.conductor.root.images import check_image, page_of
from zcompute.db.tables import MAPPINGS
from zcompute.objects.build_request import InstanceMapping
from zcompute.objects.errors import ActionForbidden, ImageNotFound, InstanceNotFound, OperationConflict
from zcompute.objects.history import InstanceAction
from zcompute.objects.image import (
    IMAGE_ACTIVE,
    IMAGE_DELETED,
    IMAGE_ERROR,
    IMAGE_SAVING,
    PUBLIC,
    Image,
    ImageOutcome,
)
from zcompute.objects.messages.images import (
    ImageDeleteRequest,
    ImageListRequest,
)
from zcompute.objects.messages.instances import InstanceActionsReply
from zcompute.objects.partition import partition_of

DONE = ImageOutcome(image_id=SAVING.id, status=IMAGE_ACTIVE, size_bytes=7, checksum="c")
FAILED = ImageOutcome(image_id=SAVING.id, status=IMAGE_ERROR, reason="disk full")
LONG = SweepLimits().doubt_s * 1_000_000 + 1


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_an_image_is_active_by_its_cells_word(desk: Desk) -> None:
    created = desk.create()
    assert (created.status, created.created_at_us) == (IMAGE_SAVING, NOW_US)
    desk.tell(DONE)
    assert (desk.get().status, desk.get().size_bytes, desk.get().checksum) == (IMAGE_ACTIVE, 7, "c")
    assert desk.cells == ["c1"]


def test_the_same_operation_finds_its_image_and_another_is_refused(desk: Desk) -> None:
    desk.create()
    desk.tell(DONE)
    assert desk.create().status == IMAGE_ACTIVE
    for other in (
        replace(SAVING, operation_id="op-2"),
        replace(SAVING, project_id="b"),
        replace(SAVING, server_uuid="s"),
    ):
        with pytest.raises(OperationConflict):
            desk.create(other)


def test_an_operators_image_is_registered_once(desk: Desk) -> None:
    registered = Image(id=SAVING.id, project_id="ops", name="base", status=IMAGE_ACTIVE, visibility=PUBLIC)
    desk.create(registered)
    with pytest.raises(OperationConflict, match="there already"):
        desk.create(registered)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([DONE, DONE], IMAGE_ACTIVE),
        ([DONE, FAILED], IMAGE_ACTIVE),
        ([FAILED, FAILED], IMAGE_ERROR),
        ([FAILED, DONE], IMAGE_ACTIVE),
        ([replace(DONE, status=IMAGE_DELETED), DONE], IMAGE_DELETED),
    ],
)
def test_words_come_again_and_in_any_order(desk: Desk, words: list[ImageOutcome], status: str) -> None:
    desk.create()
    for word in words:
        desk.tell(word)
    assert desk.status() == status


def test_a_deleted_image_is_not_brought_back_by_a_late_word_or_a_late_repeat(desk: Desk) -> None:
    desk.create()
    desk.delete()
    desk.tell(DONE)
    desk.create()
    assert desk.status() == IMAGE_DELETED
    with pytest.raises(ImageNotFound):
        desk.get()
    assert desk.listed() == []
    desk.delete()  # the bus' repeat of the same delete
    with pytest.raises(ImageNotFound):
        desk.delete("op-e")


def test_a_word_of_another_server_and_of_no_image_changes_nothing(desk: Desk) -> None:
    desk.tell(DONE)
    desk.create()
    with pytest.raises(InvalidRequest):
        desk.tell(DONE, UUIDS[5])
    assert desk.status() == IMAGE_SAVING


def test_a_cell_says_nothing_of_a_server_that_is_in_another(desk: Desk) -> None:
    desk.create()
    desk.ledger.rows[(MAPPINGS.name, (SERVER,))] = InstanceMapping(uuid=SERVER, project_id="demo", cell="c2")
    with pytest.raises(InvalidRequest, match="in cell c2"):
        desk.tell(DONE)
    assert desk.status() == IMAGE_SAVING
    desk.ledger.rows[(MAPPINGS.name, (SERVER,))] = InstanceMapping(uuid=SERVER, project_id="demo", cell="c1")
    desk.tell(DONE)
    assert desk.status() == IMAGE_ACTIVE


def test_what_was_created_in_vain_is_withdrawn_unless_somebody_asked_again(desk: Desk) -> None:
    created = desk.create()
    desk.delete(withdrawn=created.revision)
    assert desk.status() == ""
    created = desk.create()
    again = desk.create()
    desk.delete(withdrawn=created.revision)
    assert desk.status() == IMAGE_SAVING
    desk.tell(DONE)
    desk.delete(withdrawn=again.revision)
    assert desk.status() == IMAGE_ACTIVE


def test_who_sees_and_who_deletes(desk: Desk) -> None:
    desk.create()
    assert desk.get(project_id=None).id == SAVING.id
    with pytest.raises(ImageNotFound):
        desk.get(project_id="other")
    with pytest.raises(ImageNotFound):
        desk.delete(project_id="other")
    public = replace(SAVING, id=UUIDS[2], visibility=PUBLIC)
    desk.create(public)
    assert desk.get(public.id, "other").id == public.id
    with pytest.raises(ActionForbidden, match="You are not allowed to delete the image"):
        desk.images.delete(ImageDeleteRequest(id=public.id, operation_id="o", project_id="other"), desk.context)


def test_a_list_has_the_projects_own_and_the_public_ones_by_id(desk: Desk) -> None:
    for at, (project, visibility) in enumerate([("a", "private"), ("b", "private"), ("b", PUBLIC), ("a", PUBLIC)]):
        desk.create(replace(SAVING, id=UUIDS[at], project_id=project, visibility=visibility, name=f"n{at}"))
    assert desk.listed(project_id="a") == [UUIDS[0], UUIDS[2], UUIDS[3]]
    assert desk.listed(project_id="a", limit=1, after=UUIDS[0]) == [UUIDS[2]]
    assert desk.listed() == UUIDS[:4]
    assert desk.listed(name="n1") == [UUIDS[1]]
    assert desk.listed(statuses=[IMAGE_ACTIVE, "nonsense", IMAGE_DELETED]) == []
    assert desk.listed(server_uuid=SERVER, project_id="b") == UUIDS[1:4]
    assert desk.listed(project_id="größe") == [UUIDS[2], UUIDS[3]]
    assert desk.listed(server_uuid="größe") == []
    with pytest.raises(InvalidRequest):
        desk.listed(limit=0)
    assert page_of(desk, ImageListRequest(), 2)[-1].id == UUIDS[1]  # type: ignore[arg-type]  # a view as far as needed


@pytest.mark.parametrize(
    "bad",
    [
        {"id": ""}, {"id": "x" * 37}, {"id": "é"}, {"name": ""}, {"name": "n" * 256}, {"status": "deleted"},
        {"visibility": "shared"}, {"min_disk_gb": -1}, {"min_ram_mb": 1 << 31}, {"properties": {"k": "v" * 256}},
        {"properties": {f"k{at}": "" for at in range(129)}},
    ],
)  # fmt: skip
def test_what_no_column_takes_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_image(replace(SAVING, **bad))
    assert refused.value.details["field"] == next(iter(bad))


# -- the sweep --------------------------------------------------------------------------------------------------------


def action(operation_id: str, finished_at_us: int | None) -> InstanceAction:
    return InstanceAction(
        instance_uuid=SERVER, operation_id=operation_id, action="createImage", project_id="demo",
        started_at_us=1, finished_at_us=finished_at_us,
    )  # fmt: skip


OLD = replace(SAVING, updated_at_us=NOW_US - LONG)


@pytest.mark.parametrize(
    ("image", "actions", "why"),
    [
        (OLD, None, SERVER_GONE),
        (OLD, [], NEVER_BEGUN),
        (OLD, [action("another", None)], NEVER_BEGUN),
        (OLD, [action("op-1", None)], ""),
        (OLD, [action("op-1", NOW_US)], ""),
        (OLD, [action("op-1", NOW_US - LONG)], WORD_LOST),
        (replace(OLD, updated_at_us=NOW_US), None, ""),
        (replace(OLD, status=IMAGE_ACTIVE), None, ""),
        (replace(OLD, server_uuid=""), None, ""),
    ],
)
def test_an_image_that_nobody_makes_is_given_up(image: Image, actions: list[InstanceAction] | None, why: str) -> None:
    assert why_given_up(image, actions, NOW_US, SweepLimits().doubt_s) == why


class Sweeping:
    """A sweep over a desk's rows, and one cell's conductor."""

    def __init__(self, desk: Desk, *answers: Any) -> None:
        self.link = FakeLink("c1", answers=answers)
        desk.ledger.owned = lambda: [partition_of(SAVING.id)]  # type: ignore[attr-defined]
        store = SimpleNamespace(
            scan=lambda table, *, partitions, where, limit, after: desk.scan(
                table, where=where, limit=limit, after=after
            ),
            fetch=lambda table, keys: {key: row for key in keys if (row := desk.ledger.get(table, *key)) is not None},
        )
        endpoint = SimpleNamespace(links=lambda **_: [self.link])
        env: Any = SimpleNamespace(ledger=desk.ledger, store=store, endpoint=endpoint)
        self.sweep = ImageSweep(env)
        self.desk = desk

    def map(self) -> None:
        mapping = InstanceMapping(uuid=SERVER, project_id="demo", cell="c1")
        self.desk.ledger.rows[(MAPPINGS.name, (SERVER,))] = mapping

    def later(self) -> int:
        self.desk.ledger.now += LONG
        return self.sweep.round()


def test_the_sweep_gives_up_what_its_cell_knows_nothing_of_and_a_late_word_still_counts(desk: Desk) -> None:
    sweeping = Sweeping(desk, InstanceActionsReply(actions=[], events=[]))
    sweeping.map()
    desk.create()
    assert sweeping.sweep.round() == 0
    assert sweeping.link.calls == []
    assert sweeping.later() == 1
    assert (desk.get().status, desk.get().reason) == (IMAGE_ERROR, NEVER_BEGUN)
    assert [measure.value for measure in sweeping.sweep.measures()] == [1]
    assert sweeping.later() == 0
    desk.tell(DONE)
    assert (desk.get().status, desk.get().reason) == (IMAGE_ACTIVE, "")


def test_the_sweep_leaves_what_is_being_made_and_what_its_cell_does_not_answer_for(desk: Desk) -> None:
    under_way = InstanceActionsReply(actions=[action("op-1", None)], events=[])
    sweeping = Sweeping(desk, under_way, LinkDown("away"), InstanceNotFound("gone", uuid=SERVER))
    sweeping.map()
    desk.create()
    assert [sweeping.later(), sweeping.later()] == [0, 0]
    assert desk.status() == IMAGE_SAVING
    assert sweeping.later() == 1
    assert desk.get().reason == SERVER_GONE


def test_an_image_of_a_server_that_has_no_mapping_is_given_up_without_asking(desk: Desk) -> None:
    sweeping = Sweeping(desk)
    desk.create()
    assert sweeping.later() == 1
    assert sweeping.link.calls == []


def test_what_changes_between_look_and_decision_is_left(desk: Desk) -> None:
    sweeping = Sweeping(desk)
    desk.create()

    def asked_again(table: Any, keys: Any) -> dict[Any, Any]:
        desk.create()
        return {}

    sweeping.sweep._env.store.fetch = asked_again  # type: ignore[method-assign]
    assert sweeping.later() == 0
    assert desk.status() == IMAGE_SAVING


def test_a_history_is_asked_of_any_conductor() -> None:
    links = [FakeLink("c1", answers=[LinkDown("x")]), FakeLink("c1", answers=[LinkDown("y")])]
    endpoint: Any = SimpleNamespace(links=lambda **_: list(links))
    links[1].answers = [InstanceActionsReply(actions=[], events=[])]
    assert ask_history(endpoint, "c1", SAVING, 100) == []
    ((_, request),) = links[1].calls
    assert (request.uuid, request.operation_id) == (SERVER, "op-1")
