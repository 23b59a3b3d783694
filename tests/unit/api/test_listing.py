"""Lists over cells that say odd things."""

from typing import Any, cast

from tests.unit.api.servers import instance
from zcompute.api.deadline import Deadline
from zcompute.api.listing import Listing
from zcompute.api.locate import Servers
from zcompute.api.queries import ServerList
from zcompute.bus.errors import RemoteError
from zcompute.objects import methods as m
from zcompute.objects.instance import Instance


class OddRegion:
    """Two cells: c1 says the same whatever it is asked for, c2 has nothing; the root has nothing either."""

    def __init__(self, rows: list[Instance]) -> None:
        self.rows = rows
        self.asked = 0

    def cells(self) -> list[str]:
        return ["c1", "c2"]

    def linked(self, _cell: str) -> bool:
        return True

    def ask_owner(self, key: str, method: m.Method, request: Any, timeout_ms: int) -> Any:
        raise AssertionError("nobody is asked for an owner")

    def ask(self, cell: str, method: m.Method, request: Any, _timeout_ms: int) -> Any:
        if method is m.SERVERS_PENDING:
            return m.PendingReply(build_requests=[])
        if cell == "c2":
            return m.InstanceListReply(instances=[])
        self.asked += 1
        return m.InstanceListReply(instances=list(self.rows[: request.limit]))


def page(region: OddRegion, limit: int) -> list[Instance]:
    wanted = ServerList(query=m.InstanceQuery(project_id=None, limit=limit), marker=None)
    return Listing(region, cast(Servers, None)).page(wanted, None, Deadline(5_000)).instances


def test_a_cell_that_repeats_itself_ends_the_list_all_the_same() -> None:
    region = OddRegion([instance(f"{number % 4}", created_at_us=number % 4) for number in range(50)])
    assert len(page(region, 40)) <= 40
    assert region.asked <= 64


def test_a_page_that_has_all_it_wants_asks_nobody_again() -> None:
    region = OddRegion([instance(f"{number:03}", created_at_us=99 - number) for number in range(50)])
    assert [each.uuid for each in page(region, 5)] == ["000", "001", "002", "003", "004"]
    assert region.asked == 1


def test_an_error_of_a_cell_is_a_missing_cell() -> None:
    class Broken(OddRegion):
        def ask(self, cell: str, method: m.Method, request: Any, timeout_ms: int) -> Any:
            if cell == "c2":
                raise RemoteError("a fault of its own", type_name="KeyError")
            return super().ask(cell, method, request, timeout_ms)

    wanted = ServerList(query=m.InstanceQuery(project_id=None, limit=5), marker=None)
    found = Listing(Broken([instance("a")]), cast(Servers, None)).page(wanted, None, Deadline(5_000))
    assert ([each.uuid for each in found.instances], found.missing) == (["a"], ["c2"])
