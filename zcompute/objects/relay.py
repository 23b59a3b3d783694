"""What one conductor of a cell hands on to another for an agent that has no link with it, and the way back.

Every message of this kind names a host and what the relaying conductor has verified of it on its own link; none of them
is ever handed on again, so the way is one hop long and cannot be a loop.
"""

import msgspec

from zcompute.objects.host import HostInventory


class RelayedReport(msgspec.Struct, kw_only=True, tag="relayed_report"):
    """A report of an agent, as a report of the relaying conductor to the owner. Its key is the instance's uuid.

    ``seq`` and ``payload`` are the agent's; the report that carries this has a number of the relay's own, so that two
    agents' sequences cannot be taken for one another. ``agent_epoch`` is the epoch under which ``host`` is attached to
    the relay's link with ``service_id`` in its life ``incarnation``.
    """

    host: str
    service_id: str
    incarnation: str
    agent_epoch: int
    seq: int
    payload: bytes


class RelayedBeat(msgspec.Struct, kw_only=True):
    """These hosts have beaten at the relay, attached there under these epochs."""

    epochs: dict[str, int]


class RelayedBegin(msgspec.Struct, kw_only=True):
    """An agent takes up its host. The relay has found the host among those of the key of ``service_id``."""

    inventory: HostInventory
    service_id: str
    incarnation: str
    in_doubt: bool = False


class FindRequest(msgspec.Struct, kw_only=True):
    """Which of these hosts have an agent attached at the receiver?"""

    hosts: list[str]


class FindReply(msgspec.Struct, kw_only=True):
    """Those that have: commands for them may be handed to the sender of this."""

    hosts: list[str]
