"""The walk of `quota reconcile` over the root's conductors while partitions move between them."""

from typing import Any, cast

import pytest

from zcompute.cli.exits import CommandError
from zcompute.cli.operator import Operator
from zcompute.cli.quota_commands import _Walk
from zcompute.objects.messages.quotas import Discrepancy, QuotaReconcileReply
from zcompute.objects.partition import PARTITIONS

ALL = list(range(PARTITIONS))


class Root:
    """Conductors that answer, pass by pass, for the partitions given."""

    def __init__(self, *passes: dict[str, list[int]], found: list[Discrepancy] | None = None) -> None:
        self.passes = list(passes)
        self.found = found or []
        self.asked: list[str] = []

    def conductors(self, cell: str) -> list[str]:
        return list(self.passes[0]) if self.passes else []

    def ask_each(self, names: list[str], method: Any, request: Any) -> tuple[list[Any], list[Any]]:
        (name,) = names
        self.asked.append(name)
        partitions = self.passes[0].pop(name)
        if not self.passes[0] and len(self.passes) > 1:
            self.passes.pop(0)
        return [QuotaReconcileReply(rows=1, found=self.found, partitions=partitions)], []


def walked(root: Root, monkeypatch: pytest.MonkeyPatch) -> _Walk:
    monkeypatch.setattr("zcompute.cli.upkeep_passes.PASS_PAUSE_S", 0.0)
    walk = _Walk(dry_run=False, absent=False, rows_max=1000)
    walk.run(cast(Operator, root))
    return walk


def test_partitions_that_nobody_had_in_one_pass_are_looked_at_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root({"r1": ALL[:100], "r2": ALL[102:]}, {"r1": ALL[:102], "r2": ALL[102:]})
    walk = walked(root, monkeypatch)
    assert len(walk.partitions) == PARTITIONS
    assert (root.asked, walk.rows) == (["r1", "r2", "r1", "r2"], 2)


def test_what_is_wrong_and_not_repaired_is_told_once_however_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Discrepancy(kind="k", subject="s", project_id="p", detail="d", repaired=False)
    walk = walked(Root({"r1": ALL[:9]}, {"r1": ALL}, found=[wrong]), monkeypatch)
    assert walk.found == [wrong]


def test_without_a_conductor_of_the_root_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="no conductor of the root"):
        walked(Root(), monkeypatch)
