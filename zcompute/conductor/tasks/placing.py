"""Where an instance is to go, for builds and for every move: the one place that asks the scheduler, and that reserves
room at a host's owner and, for members of a server group, a place at the group's."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from zcompute.conductor.tasks.run import TaskRun
from zcompute.objects.flavor import Amounts
from zcompute.objects.group import ANTI_AFFINITY, SOFT, TOGETHER, GroupRule
from zcompute.objects.messages.groups import GroupHostsReply, GroupHostsRequest, ReserveReply, ReserveRequest
from zcompute.objects.messages.hosts import ClaimReply, ClaimRequest, SelectRequest
from zcompute.objects.methods import CLAIM, GROUP_HOSTS, GROUP_RESERVE

ANTI_AFFINITY_FILTER = "ServerGroupAntiAffinityFilter"  # as Nova names what turned a host away


@dataclass(frozen=True)
class Found:
    """Hosts that fit, best first; ``reasons``: how many each filter turned away."""

    hosts: list[str]
    reasons: Mapping[str, int]


@dataclass(frozen=True)
class Leaning:
    """What an instance's server group says of hosts: none but ``only`` (where there are any), none of ``never``."""

    only: Sequence[str] = ()
    never: Sequence[str] = ()


def leaning_of(rule: GroupRule, members: Mapping[str, int]) -> Leaning:
    """By the policy, and where the other members stand. Pure."""
    if rule.policy in TOGETHER:
        return Leaning(only=sorted(members))
    full = rule.max_server_per_host if rule.policy == ANTI_AFFINITY else 1
    return Leaning(never=sorted(host for host, count in members.items() if count >= full))


def select_hosts(run: TaskRun, amounts: Amounts, ignored: Collection[str]) -> Found:
    """Ask a scheduler, about hosts that the instance's server group allows; a soft policy that finds none of them is
    passed over. Raises the bus' errors, DeadlinePassed."""
    rule = run.instance.spec.group
    if rule is None:
        return _ask(run, amounts, ignored, Leaning(), run.settings.alternates)
    question = GroupHostsRequest(group_uuid=rule.uuid, instance_uuid=run.uuid)
    there: GroupHostsReply = run.env.router.call(
        rule.uuid, GROUP_HOSTS, question, timeout_ms=run.left_ms(run.settings.claim_ms_max)
    )
    leaning = leaning_of(rule, there.members)
    found = _ask(run, amounts, ignored, leaning, run.settings.group_alternates)
    if not found.hosts and leaning != Leaning() and rule.policy in SOFT:
        return _ask(run, amounts, ignored, Leaning(), run.settings.group_alternates)
    if leaning.never:
        found = Found(found.hosts, {**found.reasons, ANTI_AFFINITY_FILTER: len(leaning.never)})
    return found


def _ask(run: TaskRun, amounts: Amounts, ignored: Collection[str], leaning: Leaning, alternates: int) -> Found:
    never = {*ignored, *leaning.never}
    reply = run.env.schedulers.select(
        SelectRequest(
            instance_uuids=[run.uuid],
            amounts=amounts,
            alternates=alternates,
            availability_zone=run.instance.spec.availability_zone,
            ignore_hosts=sorted(never),
            only_hosts=list(leaning.only),
        ),
        timeout_ms=run.left_ms(run.settings.select_ms_max),
        one_ms_max=run.settings.select_one_ms_max,
    )
    hosts = reply.hosts[0] if reply.hosts else []
    allowed = [host for host in hosts if host not in never and (not leaning.only or host in leaning.only)]
    return Found(allowed, reply.reasons)


def claim_present(run: TaskRun, amounts: Amounts) -> ClaimReply:
    """Reserve for the attempt under way: its place in the server group, if it has one, then room at the owner of its
    host. Silence repeats the same. Raises BusError."""
    task = run.now_task()
    host = task.body.host or ""
    rule = run.instance.spec.group
    if rule is not None:
        reserve = ReserveRequest(rule=rule, instance_uuid=run.uuid, task_id=task.id, attempt=task.attempt, host=host)
        place: ReserveReply = run.env.router.call(
            rule.uuid, GROUP_RESERVE, reserve, timeout_ms=run.left_ms(run.settings.claim_ms_max)
        )
        if not place.granted:
            return ClaimReply(granted=False, reason=place.reason)
    request = ClaimRequest(instance_uuid=run.uuid, task_id=task.id, attempt=task.attempt, host=host, amounts=amounts)
    reply: ClaimReply = run.env.router.call(host, CLAIM, request, timeout_ms=run.left_ms(run.settings.claim_ms_max))
    return reply
