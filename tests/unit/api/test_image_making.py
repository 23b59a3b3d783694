"""createImage between the root and the cell: what is left where nobody knows what has become of it; look-ups kept."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.orders import make_instance
from tests.unit.conductor.root.fakes import UUIDS
from tests.unit.conductor.root.image_desk import Desk
from zcompute.api.action_bodies import Asked
from zcompute.api.auth import Caller
from zcompute.api.deadline import Deadline
from zcompute.api.image_making import make_image
from zcompute.api.known import Known
from zcompute.bus.errors import Busy, DeadlineExceeded, InvalidRequest, LinkDown
from zcompute.db.tables import IMAGES
from zcompute.objects.actions import SNAPSHOT
from zcompute.objects.errors import InstanceBusy
from zcompute.objects.image import IMAGE_SAVING
from zcompute.objects.methods import IMAGE_DELETE

SERVER = UUIDS[0]
CALLER = Caller(project_id="demo", user_id="ann", is_admin=False, secret=b"s")


def attempt(desk: Desk, error: Exception, *, root_goes: bool = False) -> None:
    """A createImage whose cell answers with this error."""
    handlers = dict(desk.images.handlers())

    def ask_owner(key: str, method: Any, request: Any, timeout_ms: int) -> Any:
        if root_goes and method is IMAGE_DELETE:
            raise LinkDown("the root is away")
        return handlers[method](request, desk.context)

    def act(*_: Any) -> None:
        raise error

    servers: Any = SimpleNamespace(show=lambda *_: make_instance(SERVER), act=act)
    region: Any = SimpleNamespace(ask_owner=ask_owner)
    asked = Asked(SNAPSHOT.key, image_name="one", metadata={})
    with pytest.raises(type(error)):
        make_image(region, servers, SERVER, CALLER, asked, "op-1", Deadline(5000))


@pytest.mark.parametrize("error", [InstanceBusy("no"), InvalidRequest("no")])
def test_a_definite_refusal_leaves_no_row(error: Exception) -> None:
    desk = Desk()
    attempt(desk, error)
    assert desk.ledger.all(IMAGES) == []


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), LinkDown("cut"), Busy("full", retry_after_ms=1)])
def test_where_nobody_knows_the_row_stays_for_the_cells_word_or_the_sweep(error: Exception) -> None:
    desk = Desk()
    attempt(desk, error)
    (row,) = desk.ledger.all(IMAGES)
    assert (row.status, row.operation_id, row.server_uuid) == (IMAGE_SAVING, "op-1", SERVER)


def test_a_row_that_cannot_be_withdrawn_is_left_to_the_sweep_and_the_refusal_is_told() -> None:
    desk = Desk()
    attempt(desk, InstanceBusy("no"), root_goes=True)
    assert [row.status for row in desk.ledger.all(IMAGES)] == [IMAGE_SAVING]


class Kept:
    """A Known with a clock and a source of its own."""

    def __init__(self, kept_max: int = 2) -> None:
        self.now_s = 0.0
        self.there: dict[str, int] = {}
        self.asked: list[str] = []
        self.away = False
        self.known: Known[int] = Known(self._ask, kept_max=kept_max, age_s=10, absent_age_s=1, clock=lambda: self.now_s)

    def _ask(self, key: str, deadline: Deadline) -> int | None:
        self.asked.append(key)
        if self.away:
            raise LinkDown("away")
        return self.there.get(key)

    def get(self, key: str) -> int | None:
        return self.known.get(key, Deadline(1000))


def test_what_is_known_is_asked_for_once_while_it_is_young() -> None:
    kept = Kept()
    kept.there["a"] = 1
    assert [kept.get("a"), kept.get("a")] == [1, 1]
    kept.there["a"] = 2
    kept.now_s = 10
    assert (kept.get("a"), kept.asked) == (2, ["a", "a"])


def test_what_there_is_not_is_believed_for_less_long() -> None:
    kept = Kept()
    assert [kept.get("a"), kept.get("a")] == [None, None]
    kept.there["a"], kept.now_s = 1, 1
    assert kept.get("a") == 1
    kept.known.drop("a")
    assert (kept.get("a"), len(kept.asked)) == (1, 3)


def test_the_longest_unused_goes_first() -> None:
    kept = Kept(kept_max=2)
    kept.there.update(a=1, b=2, c=3)
    for key in ("a", "b", "a", "c", "a"):
        kept.get(key)
    assert (kept.asked, len(kept.known)) == (["a", "b", "c"], 2)


def test_a_source_that_does_not_answer_is_asked_again() -> None:
    kept = Kept()
    kept.there["a"] = 1
    kept.get("a")
    kept.now_s, kept.away = 10, True
    with pytest.raises(LinkDown):
        kept.get("a")
    kept.away = False
    kept.there["a"] = 2
    assert kept.get("a") == 2
