"""What an agent measures of itself."""

from collections.abc import Iterator, Mapping

from zcompute.compute.doubt import Doubt
from zcompute.compute.generations import Generations
from zcompute.compute.journal import Journal
from zcompute.compute.observer import Observer
from zcompute.compute.outbox import Outbox
from zcompute.measure import Measure


def of_records(journals: Mapping[str, Journal], doubt: Doubt, generations: Generations) -> Iterator[Measure]:
    """Of the state directory."""
    for name, journal in journals.items():
        named = {"journal": name}
        yield Measure(
            "agent_journal_degraded", "1: kept in memory only, the disk fails", journal.degraded, False, named
        )
        yield Measure("agent_journal_writes_failed", "Records not written", journal.writes_failed, True, named)
        yield Measure("agent_journal_bytes", "Size of the file", journal.size_bytes, False, named)
    yield Measure("agent_in_doubt", "1: records of a former agent are lost, commands wait", doubt.here)
    yield Measure("agent_instances_granted", "Instances that are reported", generations.granted_count())


def of_reports(outbox: Outbox, observer: Observer, hosts: list[str]) -> Iterator[Measure]:
    """Of what is owed, and of what runs."""
    yield Measure("agent_reports_owed", "Without a final verdict", len(outbox))
    about = "Power states that nobody was told, since the agent had to wait: folded into newer ones, and counted there"
    yield Measure("agent_events_folded", about, outbox.events_folded, True)
    for host in hosts:
        about = "Domains that no owner knows; they are left alone"
        yield Measure("agent_domains_unknown", about, len(observer.unknown(host)), False, {"host": host})
