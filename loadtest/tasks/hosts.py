"""From the hosts' own logs: whether a server ever ran on two of them at once. Pure but for the reading."""

from collections.abc import Iterable
from pathlib import Path

from zcompute.compute.virt.fake_log import ELSEWHERE, GOES, DomainLine, parse_lines
from zcompute.objects.instance import POWER_RUNNING


def read_lines(directory: Path) -> list[tuple[str, DomainLine]]:
    """(host, line) of all hosts, in the order of their times; the hosts share a clock."""
    found = []
    for path in sorted(directory.glob("*.domains.jsonl")):
        lines, _, _ = parse_lines(path.read_bytes())
        found += [(path.name.removesuffix(".domains.jsonl"), line) for line in lines]
    return sorted(found, key=lambda each: each[1].at)


def on_two_hosts(lines: Iterable[tuple[str, DomainLine]]) -> list[str]:
    """A sentence for each time that a server began to run on a host while it ran on another."""
    running: dict[str, set[str]] = {}
    found = []
    for host, line in lines:
        if line.op in ELSEWHERE:
            continue
        hosts = running.setdefault(line.uuid, set())
        if line.op in GOES or line.power_state != POWER_RUNNING:
            hosts.discard(host)
            continue
        if hosts - {host}:
            found.append(f"{line.uuid} runs on {host} by {line.op} and on {', '.join(sorted(hosts - {host}))}")
        hosts.add(host)
    return found
