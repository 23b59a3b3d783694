"""Servers in server groups: booted as members, and watched: are they ever where their policy does not allow them?"""

from dataclasses import dataclass, field

import gevent

from loadtest.tasks.looking import LOOK_S, Looking, Server
from zcompute.cli.up.boots import Booter
from zcompute.cli.up.region import Region

POLICIES = {"anti-affinity": 4, "affinity": 2}  # by policy: members of each group
SHOWN_MAX = 20


@dataclass
class Group:
    """One server group. ``members`` are those that became ACTIVE."""

    policy: str
    members: list[str] = field(default_factory=list)

    def broken(self, servers: dict[str, Server]) -> str:
        """What is wrong with where they are by their rows, "" when nothing is. Pure."""
        hosts = [row.host for uuid in self.members if (row := servers.get(uuid)) is not None and row.host]
        if self.policy == "affinity" and len(set(hosts)) > 1:
            return f"members with {self.policy} on {sorted(set(hosts))}"
        if self.policy == "anti-affinity" and len(set(hosts)) < len(hosts):
            return f"members with {self.policy} on {sorted(hosts)}"
        return ""


class Members:
    """``broken``: a sentence for each look that found a group against its policy, the first few."""

    def __init__(self, region: Region, groups: int) -> None:
        self.groups = [Group(policy) for policy in POLICIES for _ in range(groups)]
        self.broken: list[str] = []
        client = region.client()
        for group in self.groups:
            asked = {"server_group": {"name": "members", "policies": [group.policy]}}
            status, answer = client.request("POST", "/v2.1/os-server-groups", asked)
            if status != 200:
                raise RuntimeError(f"expected a server group, found status {status}: {answer}")
            count = POLICIES[group.policy]
            run = Booter(region, count, count, group=answer["server_group"]["id"]).run()
            group.members = [boot.uuid for boot in run.boots if boot.status == "ACTIVE"]
            if len(group.members) < count:
                self.broken.append(f"{count - len(group.members)} members with {group.policy} did not become ACTIVE")
        client.close()

    @property
    def servers(self) -> list[str]:
        """All members."""
        return [uuid for group in self.groups for uuid in group.members]

    def watch(self, looking: Looking) -> None:
        """For ever, from now on."""
        gevent.spawn(self._watch, looking)

    def _watch(self, looking: Looking) -> None:
        while len(self.broken) < SHOWN_MAX:
            self.broken += [text for group in self.groups if (text := group.broken(looking.found.servers))]
            gevent.sleep(LOOK_S)
