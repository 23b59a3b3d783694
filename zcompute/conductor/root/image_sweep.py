"""Images that nobody makes any more are given up: whoever asked died before the server's cell had taken it in, or what
became of it was lost. Each owner looks through those of its partitions that are awaited for long, and asks the cells.
"""

import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import gevent

from zcompute.bus import Endpoint
from zcompute.bus.errors import BusError
from zcompute.conductor.env import ConductorEnv
from zcompute.conductor.root.cell_words import CellSilent
from zcompute.conductor.root.imaging import give_up
from zcompute.db.errors import StoreError
from zcompute.db.tables import IMAGES, MAPPINGS
from zcompute.measure import Measure
from zcompute.objects.errors import InstanceNotFound, ObjectError
from zcompute.objects.history import InstanceAction
from zcompute.objects.image import UNFINISHED, Image
from zcompute.objects.messages.instances import InstanceActionsReply, InstanceGetRequest
from zcompute.objects.methods import INSTANCE_HISTORY
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

SERVER_GONE = "the server is gone"
NEVER_BEGUN = "the server's cell was never asked to make it"
WORD_LOST = "its making has ended, and what became of it was not told"


@dataclass(frozen=True)
class SweepLimits:
    """A round every ``round_s``; ``doubt_s`` is longer than any request to the API lasts, and than a word to the root
    is on its way while the root answers."""

    round_s: float = 60.0
    doubt_s: int = 600
    page_rows: int = 100
    pages_max: int = 50
    ask_ms_max: int = 5_000
    commit_ms_max: int = 10_000


def why_given_up(image: Image, actions: Sequence[InstanceAction] | None, now_us: int, doubt_s: int) -> str:
    """Why nobody makes this image any more, "" where somebody may. ``actions`` are the history of its server as its
    cell has it, None for a server that is gone. Pure."""
    long_ago_us = now_us - doubt_s * 1_000_000
    if image.status not in UNFINISHED or not image.server_uuid or image.updated_at_us > long_ago_us:
        return ""
    if actions is None:
        return SERVER_GONE
    mine = [action for action in actions if action.operation_id == image.operation_id]
    if not mine:
        return NEVER_BEGUN
    ended_at_us = mine[0].finished_at_us
    return WORD_LOST if ended_at_us is not None and ended_at_us < long_ago_us else ""


class ImageSweep:
    """One conductor's part, unhurried; what it cannot read or ask now is left to the next round."""

    def __init__(self, env: ConductorEnv, limits: SweepLimits = SweepLimits()) -> None:
        self._env = env
        self._limits = limits
        self._sweeper: gevent.Greenlet | None = None
        self._given_up = 0

    def start(self) -> None:
        """Begin; the first round comes within one period."""
        self._sweeper = gevent.spawn(self._run)

    def stop(self) -> None:
        """End; what is being decided is decided or not, as a whole."""
        if self._sweeper is not None:
            self._sweeper.kill(block=False)

    def measures(self) -> Iterable[Measure]:
        """For the metrics."""
        yield Measure("images_given_up", "images whose making nobody has ended", self._given_up, True)

    def _run(self) -> None:
        while True:
            gevent.sleep(self._limits.round_s * random.uniform(0.5, 1.0))
            try:
                self.round()
            except Exception as error:  # noqa: BLE001  # the database may be away: the next round tries again
                log.info("sweep of images broken off error=%s: %s", type(error).__name__, error)

    def round(self) -> int:
        """Through all that is owned here; returns how many were given up. Raises StoreError."""
        given_up = 0
        after: tuple[str] | None = None
        owned = list(self._env.ledger.owned())
        for _ in range(self._limits.pages_max if owned else 0):
            page = self._env.store.scan(
                IMAGES,
                partitions=owned,
                where={"status": sorted(UNFINISHED)},
                limit=self._limits.page_rows,
                after=after,
            )
            given_up += sum(self._look(image) for image in page)
            if len(page) < self._limits.page_rows:
                break
            after = (page[-1].id,)
        return given_up

    def _look(self, image: Image) -> bool:
        now_us, doubt_s = self._env.ledger.now_us(), self._limits.doubt_s
        if not why_given_up(image, None, now_us, doubt_s):
            return False
        try:
            reason = why_given_up(image, self._history(image), now_us, doubt_s)
            return bool(reason) and self._give_up(image, reason)
        except (BusError, CellSilent, ObjectError, StoreError) as error:
            log.info("image left to the next round image=%s error=%s: %s", image.id, type(error).__name__, error)
            return False

    def _history(self, image: Image) -> list[InstanceAction] | None:
        mapping = self._env.store.fetch(MAPPINGS, [(image.server_uuid,)]).get((image.server_uuid,))
        if mapping is None:
            return None
        if mapping.cell is None:
            return []
        return ask_history(self._env.endpoint, mapping.cell, image, self._limits.ask_ms_max)

    def _give_up(self, image: Image, reason: str) -> bool:
        done = self._env.ledger.commit(
            partition_of(image.id),
            [(IMAGES, (image.id,))],
            lambda change: give_up(change, image, reason),
            timeout_ms=self._limits.commit_ms_max,
        )
        if done:
            self._given_up += 1
            log.warning("image given up image=%s server=%s reason=%s", image.id, image.server_uuid, reason)
        return done


def ask_history(endpoint: Endpoint, cell: str, image: Image, timeout_ms: int) -> list[InstanceAction] | None:
    """What any conductor of the cell of an image's server knows of the operation that makes it; None where it has no
    such server. ``timeout_ms`` is of each that is tried. Raises CellSilent."""
    links = endpoint.links(role="conductor", cell=cell)
    random.shuffle(links)
    reason = "none is linked"
    for link in links:
        try:
            request = InstanceGetRequest(uuid=image.server_uuid, operation_id=image.operation_id)
            reply: InstanceActionsReply = link.call(INSTANCE_HISTORY, request, timeout_ms=timeout_ms)
        except InstanceNotFound:
            return None
        except BusError as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        return reply.actions
    raise CellSilent(f"cell {cell} has not said what was done: {reason}")
