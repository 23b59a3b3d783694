"""What a cell says of servers: asked of any of its conductors, answered from its primary."""

import random
from collections.abc import Sequence

from zcompute.bus import Endpoint
from zcompute.bus.errors import BusError
from zcompute.objects.messages.quotas import Standing, StandingReply, StandingRequest
from zcompute.objects.methods import QUOTA_STANDING


class CellSilent(Exception):
    """No conductor of a cell has said what it has."""


def ask_standings(endpoint: Endpoint, cell: str, uuids: Sequence[str], timeout_ms: int) -> dict[str, Standing]:
    """What the cell says of these, by uuid; ``timeout_ms`` is of each conductor that is tried. Raises CellSilent."""
    links = endpoint.links(role="conductor", cell=cell)
    random.shuffle(links)
    reason = "none is linked"
    for link in links:
        try:
            reply: StandingReply = link.call(QUOTA_STANDING, StandingRequest(uuids=list(uuids)), timeout_ms=timeout_ms)
        except BusError as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        return {standing.uuid: standing for standing in reply.servers}
    raise CellSilent(f"cell {cell} has not said what it has: {reason}")
