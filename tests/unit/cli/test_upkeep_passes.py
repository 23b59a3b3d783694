"""Passes of upkeep over conductors between which partitions move, and of which one may die."""

from collections.abc import Callable, Iterator

from zcompute.cli.operator import Missing
from zcompute.cli.upkeep_passes import (
    PASSES_MAX,
    Done,
    Migrated,
    migrate_through_owners,
    through_owners,
    until_all_asked,
)
from zcompute.objects.messages.upkeep import MigrateDataReply, MigrationProgress, UpkeepReply, UpkeepRequest
from zcompute.objects.partition import PARTITIONS

ALL = list(range(PARTITIONS))
HALF = PARTITIONS // 2
REQUEST = UpkeepRequest(rows_max=100)

Answers = dict[str, Iterator[UpkeepReply | Missing]]


def asking(answers: Answers) -> Callable[[str, UpkeepRequest], UpkeepReply | Missing]:
    return lambda name, _: next(answers[name])


def reply(partitions: list[int], rows: int = 0, more: bool = False) -> UpkeepReply:
    return UpkeepReply(rows=rows, more=more, partitions=partitions, by_table={"instances": rows} if rows else {})


def passes(answers: Answers, request: UpkeepRequest = REQUEST) -> tuple[Done, list[float]]:
    done, paused = Done(), []

    def one_pass() -> bool:
        nonlocal done
        done = through_owners(asking(answers), list(answers), request, done)
        return not done.unasked

    until_all_asked(one_pass, paused.append)
    return done, paused


def test_partitions_that_moved_behind_the_pass_are_asked_for_again() -> None:
    done, paused = passes(
        {
            "a": iter([reply(ALL[:HALF], 3), reply(ALL, 4)]),
            "b": iter([reply([]), reply([])]),
        }
    )
    assert (done.unasked, done.rows, done.by_table, done.more) == (0, 7, {"instances": 7}, False)
    assert len(paused) == 1


def test_a_conductor_that_dies_between_two_steps_has_not_looked_its_partitions_through() -> None:
    done, _ = passes(
        {
            "a": iter([reply(ALL[:HALF], 2, more=True), Missing("a", "gone"), Missing("a", "gone")]),
            "b": iter([reply(ALL[HALF:]), reply(ALL, 5)]),
        }
    )
    assert (done.unasked, done.rows) == (0, 7)
    assert done.missing == [Missing("a", "gone")]


def test_a_dry_run_counts_only_its_last_pass() -> None:
    done, _ = passes(
        {"a": iter([reply(ALL[:HALF], 3), reply(ALL, 5)])}, UpkeepRequest(rows_max=100, dry_run=True)
    )  # fmt: skip
    assert (done.unasked, done.rows) == (0, 5)


def test_the_passes_are_bounded() -> None:
    done, paused = passes({"a": iter([reply(ALL[:HALF])] * PASSES_MAX)})
    assert done.unasked == PARTITIONS - HALF
    assert len(paused) == PASSES_MAX - 1


def test_where_migrations_stand_is_of_the_last_pass_and_what_was_written_of_all() -> None:
    def stands(partitions: list[int], rows: int, remaining: int) -> MigrateDataReply:
        progress = [MigrationProgress(name="m", done=10 - remaining, total=10, remaining=remaining)]
        return MigrateDataReply(rows=rows, partitions=partitions, progress=progress)

    answers = iter([stands(ALL[:HALF], 4, 0), stands(ALL[:HALF], 0, 0), stands(ALL, 6, 0), stands(ALL, 0, 0)])
    found = Migrated()
    for expected in (PARTITIONS - HALF, 0):
        found = migrate_through_owners(lambda *_: next(answers), ["a"], 100, False, found)
        assert found.unasked == expected
    assert (found.rows, found.totals["m"].done, found.totals["m"].total) == (10, 10, 10)
