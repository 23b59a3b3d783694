"""The scheduler's process: dials every conductor of its cell, takes their host states, answers them."""

import logging
import time

import numpy as np

from zcompute import bus
from zcompute.config import Config
from zcompute.keys import load_identity
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.lowering import attributes, lowering_for
from zcompute.objects.messages.hosts import SelectReply, SelectRequest
from zcompute.objects.methods import SELECT_DESTINATIONS, TOPIC_HOSTS, TOPIC_MAP, TOPIC_PARTITIONS
from zcompute.scheduler.conductors import KnownConductors
from zcompute.scheduler.errors import SelectionRefused
from zcompute.scheduler.feed import HostFeed
from zcompute.scheduler.host_states import HostStates
from zcompute.scheduler.selection import select
from zcompute.scheduler.settings import SelectionSettings

log = logging.getLogger(__name__)

ROLE = "scheduler"


class SchedulerService:
    """One scheduler of one cell. It listens on no port and calls nobody: conductors call it over the links it dialled.

    ``start()`` returns at once; until the conductors have said all their hosts, calls are refused with SchedulerStale.
    Raises ConfigError for a key file that cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self._settings = SelectionSettings.from_config(config.scheduler)
        self.states = HostStates(self._settings)
        self._feed = HostFeed(self.states)
        self._known = KnownConductors(config.service.cell, config.bus.conductors)
        self._identity = load_identity(config, ROLE)
        self._random = np.random.default_rng()
        self._endpoint: bus.Endpoint | None = None
        self._links: dict[str, bus.Link] = {}

    def start(self) -> None:
        """Dial the conductors and serve."""
        for error in SERVICE_ERRORS:
            bus.register_error(error)
        endpoint = bus.Endpoint(
            self._identity,
            topics=[TOPIC_MAP, TOPIC_HOSTS, TOPIC_PARTITIONS],
            attributes=attributes,
            lowering=lowering_for,
        )
        endpoint.serve(SELECT_DESTINATIONS, self._on_select)
        endpoint.on_event(TOPIC_HOSTS, lambda link, event: self._feed.on_host(link.name, event))
        endpoint.on_event(TOPIC_PARTITIONS, lambda link, event: self._feed.on_partition(link.name, event))
        endpoint.on_event(TOPIC_MAP, self._on_map)
        self._endpoint = endpoint
        for service_id, seen in self._known.first().items():
            self._links[service_id] = endpoint.dial(seen.address, seen.public_key)

    def stop(self) -> None:
        """Hang up; calls under way are not answered (their callers ask another scheduler)."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.close()
        self._links.clear()

    def _on_select(self, request: SelectRequest, _context: bus.CallContext) -> SelectReply:
        try:
            reply = select(self.states, request, self._settings, self._random, time.monotonic())
        except SelectionRefused as error:
            raise error.for_the_wire() from error
        if not all(reply.hosts):
            log.info(
                "no valid host instances=%d amounts=%s zone=%s reasons=%s",
                len(request.instance_uuids), request.amounts, request.availability_zone, reply.reasons,
            )  # fmt: skip
        return reply

    def _on_map(self, link: bus.Link, event: bus.Event) -> None:
        newest = self._feed.map_of(link.name, event)
        endpoint = self._endpoint
        if newest is None or endpoint is None:
            return
        changes = self._known.learn(newest)
        for service_id in changes.hang_up:
            gone = self._links.pop(service_id, None)
            if gone is not None:
                endpoint.hang_up(gone)
        for service_id, seen in changes.dial.items():
            self._links[service_id] = endpoint.dial(seen.address, seen.public_key)
            log.info("conductor learnt peer=%s address=%s", service_id, seen.address)
