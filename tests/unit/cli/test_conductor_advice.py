"""The advice, by table: every verdict from its figures."""

from dataclasses import dataclass, field

import pytest

from zcompute.cli.conductor_advice import ADD, DATABASE, KEEP, REMOVE, SPLIT, UNEVEN, UNKNOWN, advise
from zcompute.cli.conductor_commands import advices_of
from zcompute.cli.operator import Missing
from zcompute.objects.conductor_stat import ConductorLaneStat, ConductorStat


@dataclass
class Case:
    """One conductor's figures, and what differs of others of its cell."""

    name: str
    verdict: str
    says: str
    conductors: int = 2
    cpu: float = 0.1
    wait: float = 0.0
    queued: int = 0
    oldest_ms: int = 0
    commit_ms: float = 3.0
    flying_ms: int = 0
    commit_share: float = 0.05
    lost_ms: int = 0
    window_ms: int = 30_000
    missing: list[str] = field(default_factory=list)
    others_cpu: float | None = None


CASES = [
    Case("idle_with_one_to_spare", REMOVE, "remove a conductor, 2 conductors would have hubs busy for 15%", 3),
    Case("idle_at_the_fewest", KEEP, "keep 2 conductors", 2),
    Case("idle_and_alone", KEEP, "nobody takes over", 1),
    Case("idle_with_one_missing", KEEP, "no answer of c1-conductor-9", 3, missing=["c1-conductor-9"]),
    Case("not_idle_enough_to_remove", KEEP, "keep 3 conductors", 3, cpu=0.4),
    Case("both_signs", ADD, "add a conductor: hub busy 80%", cpu=0.8, queued=3_000, oldest_ms=400, commit_share=0.9),
    Case("starved_of_cores", ADD, "on another machine", cpu=0.45, wait=0.45, queued=900, oldest_ms=200),
    Case("cpu_alone_has_no_reserve", ADD, "add a conductor", cpu=0.95),
    Case("cpu_without_a_queue", KEEP, "keep", cpu=0.8),
    Case("both_signs_at_the_most", SPLIT, "split the cell", 16, cpu=0.9, oldest_ms=90),
    Case("slow_commits", DATABASE, "the database is the limit", oldest_ms=900, commit_ms=700, commit_share=0.97),
    Case("a_batch_that_hangs", DATABASE, "the database", oldest_ms=5_000, flying_ms=5_000, commit_share=0.99),
    Case("slow_commits_of_a_busy_hub", ADD, "add", cpu=0.85, oldest_ms=900, commit_ms=700, commit_share=0.97),
    Case("slow_commits_for_nobody", KEEP, "keep", commit_ms=700, commit_share=0.2),
    Case("database_gone", DATABASE, "gets nothing through to the database for 9000 ms", lost_ms=9_000),
    Case("one_hot_of_three", UNEVEN, "c1-conductor-1 is full", 3, cpu=0.9, oldest_ms=300, others_cpu=0.1),
    Case("just_started", UNKNOWN, "ask again", window_ms=1_000),
    Case("nobody", UNKNOWN, "none of c1-conductor-1", 0, missing=["c1-conductor-1"]),
]


def stat(case: Case, number: int) -> ConductorStat:
    cpu = case.cpu if number == 1 or case.others_cpu is None else case.others_cpu
    return ConductorStat(
        service_id=f"c1-conductor-{number}",
        cell="c1",
        incarnation="i",
        state="ready",
        window_ms=case.window_ms,
        cpu_share=cpu,
        cpu_wait_share=case.wait,
        queue_p50=case.queued,
        oldest_ms_p50=case.oldest_ms if number == 1 or case.others_cpu is None else 0,
        database_lost_ms=case.lost_ms,
        lanes=[
            ConductorLaneStat(
                lane=7,
                number=1,
                commit_share=case.commit_share,
                commit_ms_p50=case.commit_ms,
                flying_ms=case.flying_ms,
            ),
            ConductorLaneStat(lane=8, number=2),
        ],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_figures_turn_into_a_verdict_and_a_sentence(case: Case) -> None:
    advice = advise("c1", [stat(case, number) for number in range(1, case.conductors + 1)], case.missing)
    assert advice.verdict == case.verdict, advice.sentence
    assert case.says in advice.sentence
    assert advice.sentence.startswith("cell c1: ")
    assert len(advice.figures) == case.conductors


def test_every_verdict_is_in_the_table() -> None:
    assert {case.verdict for case in CASES} == {ADD, DATABASE, KEEP, REMOVE, SPLIT, UNEVEN, UNKNOWN}


def test_a_conductor_that_the_map_names_and_nobody_asked_is_missing() -> None:
    idle = Case("idle", KEEP, "", 3)
    stats = [stat(idle, number) for number in (1, 2, 3)]
    for one in stats:
        one.fellows = [f"c1-conductor-{number}" for number in (1, 2, 3, 4)]
    (advice,) = advices_of(stats, [Missing("c2-conductor-1", "down")])
    assert advice.verdict == KEEP
    assert advice.sentence.endswith("no answer of c1-conductor-4")
