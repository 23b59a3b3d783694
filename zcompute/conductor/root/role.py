"""The root role of a conductor: the handlers of the root cell, thin round the decisions of this package."""

import logging
import random
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import gevent

from zcompute.bus import Link
from zcompute.bus.context import request_id
from zcompute.bus.errors import Busy, Forbidden, InvalidRequest, Unavailable
from zcompute.cells.choice import Wanted
from zcompute.conductor.change import Change, Ticket
from zcompute.conductor.enrolment.service import Enrolments
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.errors import WrongPartition
from zcompute.conductor.notices import tell_of_rows
from zcompute.conductor.notifiers.service import Notifications
from zcompute.conductor.purge import Purge, PurgeSettings
from zcompute.conductor.root import intake, placement
from zcompute.conductor.root.capacities import Capacities
from zcompute.conductor.root.cell_states import register_cell
from zcompute.conductor.root.cells import CellsFeed
from zcompute.conductor.root.charging import Key
from zcompute.conductor.root.cross_asks import CrossMoveAsks
from zcompute.conductor.root.cross_moves import CrossMoves
from zcompute.conductor.root.flavors import Flavors
from zcompute.conductor.root.grouping import Room, Seen, group_keys, group_not_found
from zcompute.conductor.root.groups import Groups
from zcompute.conductor.root.handoff import HandOff
from zcompute.conductor.root.image_sweep import ImageSweep
from zcompute.conductor.root.images import Images
from zcompute.conductor.root.quotas import Quotas
from zcompute.conductor.root.reads import RootReads
from zcompute.conductor.root.reconciler import Reconciler
from zcompute.conductor.root.remapping import Remapping
from zcompute.conductor.root.resizing import Resizing
from zcompute.conductor.root.settings import CrossMoveSettings, HandOffLimits, RootSettings
from zcompute.conductor.root.topology import Topology
from zcompute.conductor.upkeep.service import Upkeep
from zcompute.db.errors import StoreError
from zcompute.db.tables import BUILD_REQUESTS, CELLS, CROSS_MOVES, IMAGES, OPERATIONS
from zcompute.failpoints import failpoint
from zcompute.log import REPEATED
from zcompute.measure import Measure
from zcompute.objects import methods
from zcompute.objects.build_request import BUILD_PENDING, BuildRequest
from zcompute.objects.cell import ROOT_CELL, CellCapacity
from zcompute.objects.errors import ObjectError, QuotaExceeded
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.region import (
    CellRegisterRequest,
    FlavorGetRequest,
    FlavorListReply,
    FlavorReply,
    MappingReleaseRequest,
    ServerDeleteReply,
    ServerDeleteRequest,
    ServersCreateReply,
    ServersCreateRequest,
)
from zcompute.objects.partition import GLOBAL_KEY, PARTITIONS, partition_of

log = logging.getLogger(__name__)

R = TypeVar("R")
RESERVATION_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def new_uuid() -> str:
    """A random uuid in canonical lower case."""
    return str(uuid.uuid4())


def new_reservation_id() -> str:
    """As Nova's: "r-" and eight letters or digits."""
    return "r-" + "".join(random.choices(RESERVATION_ALPHABET, k=8))


def unavailable_without_database(handler: Handler) -> Handler:
    """A handler whose failing reads are answered as Unavailable: the caller tries another conductor."""

    def handle(request: Any, context: Any) -> Any:
        try:
            return handler(request, context)
        except StoreError as error:
            log.info("read failed error=%s", error, extra=REPEATED)
            raise Unavailable("the database of the root cell does not answer now: try again") from error

    return handle


class RootRole:
    """One incarnation's root role (zcompute.conductor.env.Role)."""

    def __init__(
        self,
        env: ConductorEnv,
        *,
        settings: RootSettings | None = None,
        hand_off_limits: HandOffLimits | None = None,
        make_uuid: Callable[[], str] = new_uuid,
    ) -> None:
        self._env = env
        self._ledger = env.ledger
        self._forwarding = env.forwarding
        self._settings = settings or RootSettings()
        self._limits = hand_off_limits or HandOffLimits()
        self._make_uuid = make_uuid
        self._capacities = Capacities(self._settings)
        self._cells = CellsFeed(env.store, env.endpoint, self._settings)
        self._flavors = Flavors(env.store, self._settings)
        self._groups = Groups(env, self._settings)
        self._quotas = Quotas(env, self._settings, self._groups)
        self._resizing = Resizing(env, self._quotas, self._settings, self._require_cell)
        self._reconciler = Reconciler(env)
        self._remapping = Remapping(env)
        self._reads = RootReads(env.reads, self._settings)
        self._hand_off = HandOff(
            env.ledger,
            env.endpoint,
            self._choose,
            self._cells,
            env.config.conductor.build_deadline_s,
            self._limits,
        )
        self._cross_moves = CrossMoves(
            env,
            self._cells,
            CrossMoveSettings(
                deadline_s=env.config.conductor.cross_move_deadline_s,
                lists_s_max=env.config.conductor.cross_move_wait_s,
            ),
        )
        self._purge = Purge(
            env.ledger,
            env.store,
            OPERATIONS,
            "created_at_us",
            env.config.conductor.operations_retention_hours * 3600,
            PurgeSettings(round_s=env.config.conductor.purge_every_s),
        )
        self._moves_purge = Purge(
            env.ledger,
            env.store,
            CROSS_MOVES,
            "ended_at_us",
            env.config.conductor.operations_retention_hours * 3600,
            PurgeSettings(round_s=env.config.conductor.purge_every_s),
        )
        self._images = Images(env, env.reads, self._settings, self._require_cell)
        self._image_sweep = ImageSweep(env)
        self._image_purge = Purge(
            env.ledger,
            env.store,
            IMAGES,
            "deleted_at_us",
            env.config.conductor.operations_retention_hours * 3600,
            PurgeSettings(round_s=env.config.conductor.purge_every_s),
        )
        self._notifications = Notifications(env, env.config.notifications, usage=False)
        self._upkeep = Upkeep(env)
        self._enrolments = Enrolments(env)
        self._topology = Topology(env, self._cells, self._capacities, self._settings)
        self._resumers: set[gevent.Greenlet] = set()
        self._running = False

    def handlers(self) -> list[tuple[Method, Handler]]:
        """Every method of the root cell that any of its conductors serves."""
        served: list[tuple[Method, Handler]] = [
            (methods.SERVERS_CREATE, self.servers_create),
            (methods.SERVERS_DELETE, self.servers_delete),
            (methods.SERVERS_LOCATE, self._reads.locate),
            (methods.SERVERS_PENDING, self._reads.pending),
            (methods.MAPPING_DELETED, self.mapping_deleted),
            (methods.MAPPING_REFUSED, self.mapping_refused),
            (methods.FLAVOR_LIST, self.flavor_list),
            (methods.FLAVOR_GET, self.flavor_get),
            (methods.CELL_LIST, self._reads.cell_list),
            (methods.CELL_REGISTER, self.cell_register),
            (methods.CELL_CAPACITY, self.cell_capacity),
            *self._topology.handlers(),
            *self._groups.handlers(),
            *self._quotas.handlers(),
            *self._images.handlers(),
            *self._resizing.handlers(),
            *self._reconciler.handlers(),
            *self._remapping.handlers(),
            *CrossMoveAsks(self._env, self._cross_moves).handlers(),
        ]
        return [
            *((method, unavailable_without_database(handler)) for method, handler in served),
            *self._notifications.handlers(),
            *self._upkeep.handlers(),
            *self._enrolments.handlers(),
        ]

    def start(self) -> None:
        """Begin to hand off and to push cells; resume what the owned partitions have pending."""
        self._running = True
        self._cells.start()
        self._hand_off.start()
        self._purge.start()
        self._image_purge.start()
        self._image_sweep.start()
        self._moves_purge.start()
        self._reconciler.start()
        self._ledger.on_decided(tell_of_rows)
        self._notifications.start()
        self._enrolments.start()
        self._ledger.on_gain(self._gained)
        self._ledger.on_lose(self._lost)
        self._env.endpoint.on_link_up(self._link_up)
        self._gained([partition for partition in range(PARTITIONS) if self._ledger.owns(partition)])

    def stop(self) -> None:
        """End all greenlets of the role."""
        self._running = False
        gevent.killall(list(self._resumers), block=False)
        self._resumers.clear()
        self._reconciler.stop()
        self._notifications.stop()
        self._enrolments.stop()
        self._purge.stop()
        self._image_purge.stop()
        self._image_sweep.stop()
        self._hand_off.stop()
        self._cross_moves.stop()
        self._moves_purge.stop()
        self._cells.stop()

    def measures(self) -> Iterable[Measure]:
        """For the metrics."""
        return [
            *self._notifications.measures(),
            *self._quotas.measures(),
            *self._reconciler.measures(),
            *self._cross_moves.measures(),
            *self._image_sweep.measures(),
        ]

    def servers_create(self, request: ServersCreateRequest, context: Any) -> ServersCreateReply:
        """At the project's owner. Raises OperationConflict, FlavorNotFound, ServerGroupNotFound, InvalidRequest, Busy,
        NotOwner."""
        count = request.max_count
        if not 1 <= request.min_count <= count <= self._settings.servers_max:
            raise InvalidRequest(
                f"expected 1 <= min_count <= max_count <= {self._settings.servers_max}, "
                f"found {request.min_count} and {count}",
                field="max_count",
            )
        if self._hand_off.room < count:
            raise Busy(
                f"{len(self._hand_off)} servers wait for their cells: try again later",
                retry_after_ms=self._settings.busy_retry_ms,
            )
        flavor = self._flavors.for_new_server(request.flavorid)
        default = self._quotas.default()
        group = Room(self._groups.seen(request.group_uuid), self._groups.members_max)
        uuids = [self._make_uuid() for _ in range(count)]
        reservation_id, request_name = new_reservation_id(), request_id.get()
        failpoint("intake.before_create")
        try:
            created = self._decide(
                request.project_id,
                intake.create_keys(request, uuids),
                lambda change: intake.create_servers(
                    change, request, flavor, uuids, reservation_id, self._choose, request_name, default, group
                ),
                context,
                then=lambda done: self._hand_off.put(done.build_requests, decided_here=True),
            )
        except QuotaExceeded:
            self._quotas.refused += 1
            raise
        except WrongPartition as error:  # another project's server group
            raise group_not_found(request.group_uuid) from error
        failpoint("intake.after_create")
        for build_request in created.build_requests:
            log.info("server accepted uuid=%s cell=%s", build_request.uuid, build_request.cell)
        return created.reply

    def servers_delete(self, request: ServerDeleteRequest, context: Any) -> ServerDeleteReply:
        """At the project's owner. Raises InstanceNotFound, OperationConflict, NotOwner."""
        request_name = request_id.get()
        try:
            return self._decide(
                request.project_id,
                intake.delete_keys(request),
                lambda change: intake.delete_server(change, request, request_name),
                context,
            )
        except WrongPartition as error:  # another project's server
            raise intake.instance_not_found(request.uuid) from error

    def mapping_deleted(self, request: MappingReleaseRequest, context: Any) -> Empty:
        """A cell's server is gone. Acknowledged whether or not there was something to release."""
        self._require_cell(context, request.cell)
        failpoint("mapping.before_release")
        try:
            released = self._decide(
                request.project_id,
                intake.server_keys(request.uuid, request.project_id),
                lambda change: placement.mapping_deleted(change, request),
                context,
            )
        except WrongPartition as error:
            raise placement.not_of_project(request) from error
        failpoint("mapping.after_release")
        if released:
            log.info("server gone uuid=%s cell=%s", request.uuid, request.cell)
        return Empty()

    def mapping_refused(self, request: MappingReleaseRequest, context: Any) -> Empty:
        """A cell has definitely not built a server: the next cell, or ERROR."""
        self._require_cell(context, request.cell)
        rule = None if request.build_request is None else request.build_request.spec.group
        keys, seen = group_keys(rule), Seen()
        if keys and rule is not None:
            seen = self._groups.seen(rule.uuid)
        release = self._hand_off.hold(request.uuid, request.generation)
        try:
            ticket = self._ledger.submit(
                partition_of(request.project_id),
                [*intake.server_keys(request.uuid, request.project_id), *keys],
                lambda change: placement.mapping_refused(change, request, self._choose, seen),
            )
        except BaseException:
            release()
            raise

        def refused(done: Ticket) -> None:
            if isinstance(done.result, BuildRequest):
                self._hand_off.put([done.result], decided_here=True)
            release()

        ticket.on_done(refused)
        try:
            following = ticket.wait(self._timeout_ms(context))
        except WrongPartition as error:
            raise placement.not_of_project(request) from error
        log.info(
            "server refused uuid=%s cell=%s next=%s reason=%s",
            request.uuid,
            request.cell,
            following.cell if following is not None else None,
            request.reason,
        )
        return Empty()

    def flavor_list(self, request: Empty, context: Any) -> FlavorListReply:
        return FlavorListReply(flavors=self._flavors.all())

    def flavor_get(self, request: FlavorGetRequest, context: Any) -> FlavorReply:
        """Raises FlavorNotFound."""
        return FlavorReply(flavor=self._flavors.get(request.flavorid))

    def cell_register(self, request: CellRegisterRequest, context: Any) -> Empty:
        """A cell's conductor, or another root conductor that has checked it, says which conductors the cell has."""
        told = request.cell
        if context.peer.cell != ROOT_CELL:
            self._require_cell(context, told.name)
        if told.name == ROOT_CELL or len(told.conductors) > self._settings.conductors_max:
            raise InvalidRequest(
                f"expected a cell other than {ROOT_CELL} with at most {self._settings.conductors_max} conductors, "
                f"found {told.name} with {len(told.conductors)}",
                field="cell",
            )
        if context.peer.cell != ROOT_CELL and not self._ledger.owns(partition_of(GLOBAL_KEY)):
            self._forwarding.call(GLOBAL_KEY, methods.CELL_REGISTER, request, context)
            return Empty()
        changed = self._decide(GLOBAL_KEY, [(CELLS, (told.name,))], lambda change: register_cell(change, told), context)
        if changed:
            log.info("cell registered cell=%s conductors=%s", told.name, len(told.conductors))
            self._cells.refresh()
        return Empty()

    def cell_capacity(self, capacity: CellCapacity, context: Any) -> None:
        """One conductor's free room; soft state."""
        self._require_cell(context, capacity.cell)
        if self._cells.deleted(capacity.cell):
            return
        if context.peer.service_id != capacity.service_id:
            raise Forbidden(f"{context.peer.service_id} may not speak for {capacity.service_id}")
        self._capacities.report(capacity, time.monotonic())

    def _choose(self, wanted: Wanted, tried: Collection[str]) -> str | None:
        return self._capacities.choose(wanted, tried, self._cells.closed(), time.monotonic())

    def _require_cell(self, context: Any, cell: str) -> None:
        """A cell's key speaks for its own cell only. Raises Forbidden."""
        if context.peer.cell != cell:
            peer = context.peer
            self._env.endpoint.refusals.count(
                "foreign_cell", f"{peer.role}/{peer.service_id}@{peer.cell}", f"security: speaks for cell {cell}"
            )
            raise Forbidden(f"a key of cell {context.peer.cell} may not speak for cell {cell}")

    def _timeout_ms(self, context: Any) -> int:
        remaining: int = context.remaining_ms()
        return max(1, min(self._settings.commit_ms_max, remaining))

    def _decide(
        self,
        key: str,
        rows: Sequence[Key],
        decide: Callable[[Change], R],
        context: Any,
        then: Callable[[R], None] | None = None,
    ) -> R:
        """Submit at the key's partition and wait. ``then`` runs at the commit even if the caller's deadline is over
        by then: what was committed must be handed off."""
        ticket = self._ledger.submit(partition_of(key), rows, decide)
        if then is not None:
            proceed = then
            ticket.on_done(lambda done: proceed(done.result) if done.error is None else None)
        result: R = ticket.wait(self._timeout_ms(context))
        return result

    def _link_up(self, link: Link) -> None:
        if not self._running or link.peer is None:
            return
        self._cells.greet(link)
        if link.peer.role == "conductor" and link.peer.cell != ROOT_CELL:
            self._hand_off.hurry(link.peer.cell)
            self._cross_moves.hurry(link.peer.cell)

    def _gained(self, partitions: list[int]) -> None:
        if self._running and partitions:
            self._notifications.gained(partitions)
            self._cross_moves.gained(partitions)
            resumer = gevent.spawn(self._resume, list(partitions))
            self._resumers.add(resumer)
            resumer.link(self._resumers.discard)

    def _lost(self, partitions: list[int]) -> None:
        self._hand_off.drop(partitions)
        self._cross_moves.lost([partition for partition in partitions if not self._ledger.owns(partition)])
        self._notifications.lost([partition for partition in partitions if not self._ledger.owns(partition)])

    def _resume(self, partitions: list[int]) -> None:
        """Take up what the gained partitions have pending, page by page, as the hand-off has room.

        Rows that cannot be read keep back no other partition's.
        """
        after: tuple[Any, ...] | None = None
        found = 0
        pause_s = self._limits.scan_retry_ms / 1000
        while partitions := [partition for partition in partitions if self._ledger.owns(partition)]:
            if self._hand_off.room < self._limits.scan_rows_max:
                gevent.sleep(pause_s)
                continue
            try:
                page = self._env.store.scan(
                    BUILD_REQUESTS,
                    partitions=partitions,
                    where={"state": BUILD_PENDING},
                    limit=self._limits.scan_rows_max,
                    after=after,
                )
            except StoreError as error:
                log.info("pending servers not read, trying again error=%s", error, extra=REPEATED)
                gevent.sleep(pause_s)
                continue
            except ObjectError as error:
                if len(partitions) == 1:
                    log.error("pending servers cannot be read partition=%s error=%s", partitions[0], error)
                    return
                middle = len(partitions) // 2
                self._resume(partitions[:middle])
                self._resume(partitions[middle:])
                return
            self._hand_off.put(page, decided_here=False)
            found += len(page)
            if len(page) < self._limits.scan_rows_max:
                break
            after = BUILD_REQUESTS.key_of(page[-1])
        log.info("pending servers resumed partitions=%s servers=%s", len(partitions), found)
