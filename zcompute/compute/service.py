"""The compute service: puts the parts together, starts and stops them."""

import logging
import time
from collections.abc import Callable, Iterable

import gevent
import msgspec

from zcompute.bus import Endpoint, Event, Link, register_error
from zcompute.compute.commands import Commands
from zcompute.compute.doubt import Doubt
from zcompute.compute.ending import end_all
from zcompute.compute.fences import Fences
from zcompute.compute.generations import Generations
from zcompute.compute.hosts import Hosts
from zcompute.compute.known import KnownConductors
from zcompute.compute.links import ConductorLinks
from zcompute.compute.measures import of_records, of_reports
from zcompute.compute.observer import Observer
from zcompute.compute.outbox import Outbox
from zcompute.compute.regrants import Regrants
from zcompute.compute.reporter import Reporter
from zcompute.compute.settings import Settings
from zcompute.compute.statedir import StateDir
from zcompute.compute.steps import Steps
from zcompute.compute.virt.driver import Driver
from zcompute.compute.virt.fake import FakeDriver
from zcompute.compute.workers import Workers
from zcompute.config import Config, ConfigError
from zcompute.keys import load_identity
from zcompute.measure import Measure
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.lowering import attributes, lowering_for
from zcompute.objects.messages.cluster import HostEpoch
from zcompute.objects.methods import TOPIC_EPOCHS, TOPIC_MAP, TOPIC_MAP_DELTAS
from zcompute.objects.partition import PartitionMap

log = logging.getLogger(__name__)

ROLE = "compute"

_EPOCH = msgspec.msgpack.Decoder(HostEpoch)


def make_driver(config: Config) -> Driver:
    """The driver that the configuration names. Raises ConfigError, DriverError."""
    compute = config.compute
    names = [host.name for host in compute.hosts]
    if not names:
        raise ConfigError("compute.hosts: expected at least one host, found none")
    if len(set(names)) < len(names):
        raise ConfigError(f"compute.hosts: expected each host once, found {sorted(names)}")
    if not compute.fake_dir:
        raise ConfigError("compute.fake_dir: expected the directory of the fake hosts, found nothing")
    return FakeDriver(compute.fake_dir, compute.hosts, compute.build_ms, compute.delete_ms, compute.step_ms)


class ComputeService:
    """One agent. ``start`` returns when it works (links come up by themselves), ``stop`` within Settings.stop_ms + 1 s.

    Raises ConfigError, StateDirInUse, JournalUnsupported, RecordInvalid, DriverError at construction.
    """

    def __init__(self, config: Config, driver: Driver | None = None, settings: Settings | None = None) -> None:
        self._config = config
        self._settings = settings = settings or Settings()
        self._driver = driver or make_driver(config)
        self._state = StateDir(config.service.state_dir)
        self._doubt = Doubt(self._state.doubt)
        self._fences = Fences(self._state.fences)
        self._generations = Generations(self._state.generations, settings, time.monotonic())
        self._doubtful: set[str] = set()
        self._outbox = Outbox(self._state.outbox, settings)
        self._workers = Workers(config.compute.workers_max, settings.waiting_max)
        self.reporter = Reporter(self._outbox, settings, config.service.id)
        self.observer = Observer(self._driver, self._generations, self.reporter, self._workers.busy)
        self._steps = Steps(self._driver, self._generations, self.reporter, self.observer)
        self._regrants: Regrants | None = None
        self._loops: list[gevent.Greenlet] = []
        self._endpoint: Endpoint | None = None
        self._links: ConductorLinks | None = None
        self._hosts: Hosts | None = None
        self.superseded_count = 0
        self.on_superseded: Callable[[str], None] = lambda _: None

    def start(self) -> None:
        """End what can be ended of a former life, then dial the conductors. Raises ConfigError, DriverError."""
        for error in SERVICE_ERRORS:
            register_error(error)
        config, settings = self._config, self._settings
        names = self._driver.hosts()
        self._take_stock(names)
        self._steps.settle(self._outbox.results())
        endpoint = Endpoint(
            load_identity(config, ROLE, names),
            topics=[TOPIC_MAP, TOPIC_MAP_DELTAS],
            attributes=attributes,
            lowering=lowering_for,
        )
        links = ConductorLinks(
            endpoint, config.service.cell, config.bus.conductors, settings, KnownConductors(self._state.conductors)
        )
        inventories = [self._driver.inventory(name) for name in names]
        hosts = Hosts(inventories, config.service.id, links, settings)
        regrants = Regrants(links, self._fences, self._generations, self.observer, settings)
        regrants.on_done = self._regranted
        hosts.in_doubt = lambda: self._doubt.here
        hosts.on_owner_epochs = self._fences.raise_all
        links.epochs = hosts.epochs
        links.on_map = self._map_learnt
        links.on_ready = self._link_ready
        links.on_unready = self.reporter.link_unready
        links.on_refused = hosts.refused
        hosts.on_begun = self._host_begun
        hosts.on_silent = self._host_silent
        self.reporter.on_not_owner = self._not_owner
        endpoint.on_acks(self.reporter.acks)
        endpoint.on_event(TOPIC_EPOCHS, self._epoch_event)
        Commands(
            self._driver, hosts, self._fences, self._generations, self._workers, self._steps, self.reporter, settings,
            self._doubt,
        ).serve(endpoint)  # fmt: skip
        self._endpoint, self._links, self._hosts, self._regrants = endpoint, links, hosts, regrants
        links.start()
        hosts.start()
        self._loops = [gevent.spawn(self._work_loop, hosts), gevent.spawn(self.reporter.run)]
        granted = self._generations.granted_count()
        log.info("compute started hosts=%d owed=%d granted=%d", len(names), len(self._outbox), granted)

    def stop(self) -> None:
        """Stop speaking, let work under way end, close the files. What is owed goes at the next start."""
        if self._hosts is not None:
            self._hosts.stop()
        if self._regrants is not None:
            self._regrants.stop()
        if self._links is not None:
            self._links.stop()
        end_all(self._loops, "loops")
        if not self._workers.stop(self._settings.stop_ms / 1000):
            log.warning("work under way was broken off after stop_ms=%d", self._settings.stop_ms)
        if self._endpoint is not None:
            self._endpoint.close()
        self._outbox.close()
        self._generations.close()
        self._fences.close()
        self._settle_doubt()
        self._doubt.close()
        self._state.close()

    def measures(self) -> Iterable[Measure]:
        """For the metrics."""
        journals = {"outbox": self._outbox.journal, "generations": self._generations.journal}
        yield from of_records(journals, self._doubt, self._generations)
        yield from of_reports(self._outbox, self.observer, self._driver.hosts())
        yield Measure("agent_hosts_superseded", "Hosts that another agent has taken", self.superseded_count, True)
        if self._regrants is not None:
            about = "Instances that owners granted anew"
            yield Measure("agent_instances_granted_anew", about, self._regrants.granted_anew, True)

    # -- what happens ----------------------------------------------------------------------------------------------

    def _map_learnt(self, cell_map: PartitionMap) -> None:
        self._fences.raise_all(cell_map.epochs)
        self.reporter.remap(cell_map.owner_of)

    def _not_owner(self, link: Link, map_version: int) -> None:
        """Someone who is not the owner was taken for it: unless by the same map, its own one says more."""
        if self._links is not None and map_version != self._links.map.version:
            self._links.refresh(link)

    def _link_ready(self, service_id: str, link: Link, same_process: bool) -> None:
        self.reporter.link_ready(service_id, link, same_process)
        if self._hosts is not None:
            self._hosts.beat()

    def _host_begun(self, host: str) -> None:
        self.observer.report_all(host)
        self.reporter.release(host)
        if self._links is not None:
            self._links.attach_again()
        if self._regrants is not None:
            self._regrants.begin(host)

    def _host_silent(self, host: str) -> None:
        self.reporter.hold(host)
        if self._regrants is not None:
            self._regrants.end(host)
        if self._hosts is None:
            return
        session = self._hosts.get(host)
        if session is not None and session.superseded:
            self.superseded_count += 1
            if self._hosts.all_superseded:
                self.on_superseded("another agent has taken every host of this one, which ends")

    def _epoch_event(self, link: Link, event: Event) -> None:
        """The conductor has heard of a newer agent of a host of ours; the primary's word is had by attaching again."""
        try:
            news = _EPOCH.decode(event.payload)
        except msgspec.DecodeError as error:
            log.error("epoch event refused peer=%s error=%s", link.name, error)
            return
        if self._hosts is not None and self._links is not None and self._hosts.news(news):
            log.warning("a newer agent is heard of host=%s agent_epoch=%d", news.host, news.agent_epoch)
            self._links.attach_again()

    # -- what is known ---------------------------------------------------------------------------------------------

    def _take_stock(self, hosts: list[str]) -> None:
        """Whether the state directory holds all that a former process knew."""
        if self._generations.journal.lost:
            self._doubt.raise_here(self._generations.journal.lost)
        if not self._fences.complete:
            self._doubt.raise_here("fences are not complete")
        self._generations.journal.on_degraded = self._doubt.raise_on_disk
        if self._generations.journal.degraded:
            self._doubt.raise_on_disk()
        self._doubtful = set(hosts) if self._doubt.here else set()

    def _regranted(self, host: str) -> None:
        """The owners have said what the host reports."""
        if host in self._doubtful and self._hosts is not None:
            session = self._hosts.get(host)
            wait_s = 0.0 if session is None else session.commands_at - time.monotonic()
            gevent.sleep(max(0.0, wait_s))
            self._doubtful.discard(host)
            if not self._doubtful:
                self._doubt.settle_here()
        self._settle_doubt()

    def _settle_doubt(self) -> None:
        if self._fences.on_disk and not self._generations.journal.degraded:
            self._doubt.settle_on_disk()

    # -- the work loop ---------------------------------------------------------------------------------------------

    def _work_loop(self, hosts: Hosts) -> None:
        """Beats, journals and looking at the hosts: an agent whose loop hangs is missed by its owners."""
        look_at = time.monotonic() + self._settings.observe_ms / 1000
        while True:
            now = time.monotonic()
            hosts.beat()
            self._outbox.journal.tend(now)
            self._generations.journal.tend(now)
            self._fences.tend()
            self._settle_doubt()
            if now >= look_at:
                look_at = now + self._settings.observe_ms / 1000
                for host in hosts.epochs():
                    self.observer.look(host)
            gevent.sleep(self._config.compute.beat_ms / 1000)
