"""What the policies of server groups allow: pure."""

import pytest

from zcompute.conductor.cell.placements import refusal, with_placement, without_placement
from zcompute.conductor.tasks.placing import Leaning, leaning_of
from zcompute.objects.group import (
    AFFINITY,
    ANTI_AFFINITY,
    SOFT_AFFINITY,
    SOFT_ANTI_AFFINITY,
    GroupPlacement,
    GroupRule,
)
from zcompute.objects.messages.groups import ReserveRequest


def place(member, host, attempt=1):
    return GroupPlacement(group_uuid="g", instance_uuid=member, task_id=f"t-{member}", attempt=attempt, host=host)


def ask(policy, host, member="new", per_host=1):
    rule = GroupRule(uuid="g", policy=policy, max_server_per_host=per_host)
    return ReserveRequest(rule=rule, instance_uuid=member, task_id=f"t-{member}", attempt=1, host=host)


def test_the_first_member_may_go_anywhere():
    for policy in (AFFINITY, ANTI_AFFINITY, SOFT_AFFINITY, SOFT_ANTI_AFFINITY):
        assert refusal([], ask(policy, "h1")) == ""


def test_affinity_takes_the_host_of_the_others_only():
    there = [place("a", "h1"), place("b", "h1")]
    assert refusal(there, ask(AFFINITY, "h1")) == ""
    assert "has members on h1: affinity keeps them together" in refusal(there, ask(AFFINITY, "h2"))


def test_affinity_takes_nobody_while_a_member_may_still_go_back_to_where_it_was():
    moving = [place("a", "h1"), place("a", "h2", attempt=2)]
    assert "members on h1" in refusal(moving, ask(AFFINITY, "h2"))
    assert "members on h2" in refusal(moving, ask(AFFINITY, "h1"))


def test_a_lone_member_moves_as_it_likes_and_one_of_two_does_not():
    alone = [place("a", "h1")]
    assert refusal(alone, ask(AFFINITY, "h2", member="a")) == ""
    assert "keeps them together" in refusal([*alone, place("b", "h1")], ask(AFFINITY, "h2", member="a"))


@pytest.mark.parametrize("per_host", [1, 2, 3])
def test_anti_affinity_takes_so_many_on_one_host_and_no_more(per_host):
    there = []
    for number in range(per_host):
        assert refusal(there, ask(ANTI_AFFINITY, "h1", per_host=per_host)) == ""
        there.append(place(f"m{number}", "h1"))
    assert f"anti-affinity allows {per_host}" in refusal(there, ask(ANTI_AFFINITY, "h1", per_host=per_host))
    assert refusal(there, ask(ANTI_AFFINITY, "h2", per_host=per_host)) == ""


def test_a_member_on_its_way_counts_at_both_ends_for_the_others_and_never_against_itself():
    moving = [place("a", "h1"), place("a", "h2", attempt=2)]
    for host in ("h1", "h2"):
        assert refusal(moving, ask(ANTI_AFFINITY, host))
        assert refusal(moving, ask(ANTI_AFFINITY, host, member="a")) == ""
    twice = [place("a", "h1"), place("a", "h1", attempt=2)]
    assert refusal(twice, ask(ANTI_AFFINITY, "h1", per_host=2)) == ""


def test_soft_policies_refuse_nothing():
    for policy in (SOFT_AFFINITY, SOFT_ANTI_AFFINITY):
        for host in ("h1", "h2"):
            assert refusal([place("a", "h1")], ask(policy, host)) == ""


def test_a_standing_is_the_sum_of_its_placements():
    first, second = place("a", "h1"), place("b", "h2")
    standing = with_placement(with_placement(None, first), second)
    assert standing.placements == [first, second]
    assert without_placement(standing, first).placements == [second]


@pytest.mark.parametrize(
    ("policy", "per_host", "leaning"),
    [
        (AFFINITY, 1, Leaning(only=["h1", "h2"])),
        (SOFT_AFFINITY, 1, Leaning(only=["h1", "h2"])),
        (ANTI_AFFINITY, 1, Leaning(never=["h1", "h2"])),
        (ANTI_AFFINITY, 2, Leaning(never=["h2"])),
        (SOFT_ANTI_AFFINITY, 3, Leaning(never=["h1", "h2"])),
    ],
)
def test_what_a_group_says_of_hosts(policy, per_host, leaning):
    rule = GroupRule(uuid="g", policy=policy, max_server_per_host=per_host)
    assert leaning_of(rule, {"h2": 2, "h1": 1}) == leaning
