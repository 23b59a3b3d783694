"""The walk of ``zcompute cell remap``: pages of the cell, what the root lacks of them, bounded."""

from types import SimpleNamespace

import zcompute.cli.cell_remap as cell_remap
from zcompute.cli.cell_remap import Walk
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.messages.topology import Remapped
from zcompute.objects.methods import CELL_MAPPINGS, INSTANCE_CENSUS, MAPPING_REMAP
from zcompute.objects.remap import MAPPED, UNCONFIRMED


class Region:
    """Nine servers of two projects; the root has those of ``mapped``; three may not be confirmed."""

    def __init__(self):
        self.servers = [
            SimpleNamespace(uuid=f"u{number}", project_id=f"p{number % 2}", mapping_generation=1)
            for number in range(9)
        ]  # fmt: skip
        self.mapped = {"u3"}
        self.unconfirmed = {"u0", "u1", "u2"}
        self.asked = []

    def __call__(self, cell, method, request):
        self.asked.append((cell, method.name))
        if method is INSTANCE_CENSUS:
            rows = [row for row in self.servers if row.uuid > request.after][: request.limit]
            return SimpleNamespace(instances=rows)
        if method is CELL_MAPPINGS:
            known = [SimpleNamespace(uuid=u, cell="c1", generation=1) for u in request.uuids if u in self.mapped]
            return SimpleNamespace(mappings=known, build_requests=[])
        assert (cell, method) == (ROOT_CELL, MAPPING_REMAP)
        outcome = {uuid: UNCONFIRMED if uuid in self.unconfirmed else MAPPED for uuid in request.uuids}
        self.mapped |= {uuid for uuid, became in outcome.items() if became == MAPPED and not request.dry_run}
        return SimpleNamespace(servers=[Remapped(uuid=uuid, outcome=outcome[uuid]) for uuid in request.uuids])


def walked(region, **options):
    walk = Walk(region, "c1", **{"dry_run": False, "unconfirmed": False, "rows_max": 100, **options})
    walk.run()
    return walk


def test_pages_are_gone_through_and_only_what_the_root_lacks_is_asked_for(monkeypatch):
    monkeypatch.setattr(cell_remap, "PAGE_ROWS", 4)
    region = Region()
    walk = walked(region)
    assert (walk.looked_at, walk.count(MAPPED), walk.count(UNCONFIRMED), walk.more) == (9, 5, 3, False)
    assert region.mapped == {"u3", "u4", "u5", "u6", "u7", "u8"}
    assert walked(region).count(MAPPED) == 0


def test_a_bounded_walk_goes_on_where_it_ended_and_the_unconfirmed_do_not_hold_it_up(monkeypatch):
    monkeypatch.setattr(cell_remap, "PAGE_ROWS", 4)
    region = Region()
    counts = []
    for _ in range(10):
        walk = walked(region, rows_max=2)
        counts.append(walk.count(MAPPED))
        if not walk.more:
            break
    assert counts == [2, 2, 1]


def test_a_dry_run_maps_nothing():
    region = Region()
    assert walked(region, dry_run=True).count(MAPPED) == 5
    assert region.mapped == {"u3"}
