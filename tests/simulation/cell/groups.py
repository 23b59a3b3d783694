"""Server groups of a simulated life: some servers are members, and never where their policy does not allow it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from zcompute.objects.group import AFFINITY, ANTI_AFFINITY, GroupRule
from zcompute.objects.instance import TASK_DELETING, VM_DELETED, Instance

EACH = 12  # servers in a row have a group of each policy: four members apart, two together
TOGETHER = (1, 4)


def rule_of(number: int) -> GroupRule | None:
    """What the server of this number is a member of; most are of none."""
    batch, place = divmod(number, EACH)
    if place in TOGETHER:
        return GroupRule(uuid=f"11111111-0000-4000-8000-{batch:012d}", policy=AFFINITY)
    return GroupRule(uuid=f"22222222-0000-4000-8000-{batch:012d}", policy=ANTI_AFFINITY) if place % 3 == 0 else None


def placed(instance: Instance) -> bool:
    """Whether it counts where its row says: a delete gives the place away once nothing is left there."""
    gone = instance.vm_state == VM_DELETED or instance.task_state == TASK_DELETING
    return instance.spec.group is not None and instance.host is not None and not gone


def against_policy(instances: Iterable[Instance]) -> Iterator[str]:
    """Groups whose members are where their policy does not allow them, by the rows."""
    hosts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    rules: dict[str, GroupRule] = {}
    for instance in instances:
        rule = instance.spec.group
        if rule is not None and placed(instance):
            rules[rule.uuid] = rule
            hosts[rule.uuid][instance.host or ""].append(instance.uuid)
    for uuid, members in hosts.items():
        rule = rules[uuid]
        if rule.policy == AFFINITY and len(members) > 1:
            yield f"group {uuid} with {rule.policy} is on {dict(members)}"
        for host, uuids in members.items():
            if rule.policy == ANTI_AFFINITY and len(uuids) > rule.max_server_per_host:
                yield f"group {uuid} with {rule.policy} has {uuids} on {host}"
