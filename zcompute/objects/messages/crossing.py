"""Requests and replies of a server's move to another cell: the operator's, and the root's words to both cells."""

import msgspec

from zcompute.objects.cross_move import CrossMove
from zcompute.objects.instance import Instance

# The root's words. To the source:
WORD_HOLD = "hold"  # take the server for this move: nothing else is done with it
WORD_SEND = "send"  # stop it and give its data to the destination
WORD_LEAVE = "leave"  # the mapping has moved on: destroy the copy
WORD_REOPEN = "reopen"  # the move is given up: the copy is the server
# To the target:
WORD_PREPARE = "prepare"  # find a host that awaits its data
WORD_ACTIVATE = "activate"  # the mapping is yours: the copy is the server
WORD_DISCARD = "discard"  # the move is given up: destroy what there is
SOURCE_WORDS = (WORD_HOLD, WORD_SEND, WORD_LEAVE, WORD_REOPEN)
TARGET_WORDS = (WORD_PREPARE, WORD_ACTIVATE, WORD_DISCARD)

# How far a side is.
CROSS_ABSENT = "absent"  # it has never heard of the move
CROSS_UNDER_WAY = "under_way"  # between two of the following
CROSS_HELD = "held"
CROSS_SENT = "sent"
CROSS_GONE = "gone"
CROSS_KEPT = "kept"
CROSS_PREPARED = "prepared"
CROSS_RUNS = "runs"
CROSS_DISCARDED = "discarded"


class CrossOrder(msgspec.Struct, kw_only=True):
    """The root's word on one server to one side of its move. Idempotent: what was done for ``operation_id`` is not done
    again, and a word that comes late changes nothing.

    ``generation`` is the mapping's from the switch on. ``instance`` (of the word prepare): the server as its source
    has it, ``host`` the host it leaves; of the word send ``host`` is its destination and ``answers`` what that said.
    """

    uuid: str
    project_id: str
    operation_id: str
    generation: int
    word: str
    deadline_s: int = 3600
    instance: Instance | None = None
    host: str = ""
    answers: dict[str, str] = msgspec.field(default_factory=dict)
    reason: str = ""


class CrossReply(msgspec.Struct, kw_only=True):
    """How far this side is after the word's commit; ``reason``: why it has given up. ``instance`` and ``host``: the
    server as the source holds it; the destination, with its ``answers``."""

    state: str
    reason: str = ""
    instance: Instance | None = None
    host: str = ""
    answers: dict[str, str] = msgspec.field(default_factory=dict)


class CrossMoveRequest(msgspec.Struct, kw_only=True):
    """An operator asks for a server to be moved to another cell. ``project_id`` "" while nobody has looked it up; a
    repeat under the same ``operation_id`` begins nothing more."""

    uuid: str
    target_cell: str
    operation_id: str
    project_id: str = ""


class CrossMoveReply(msgspec.Struct, kw_only=True):
    move: CrossMove


class CrossMoveGetRequest(msgspec.Struct, kw_only=True):
    """The server's move that is under way, or its last."""

    uuid: str
