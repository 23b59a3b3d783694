"""Commands to agents and their replies."""

import msgspec

from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Instance


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """Who commands what: the agent refuses an order of an older owner of the partition or an older generation.

    ``owner_epoch`` = the map version at which the commanding conductor took ``partition``; ``generation`` = the
    instance's command_generation; (task_id, step, attempt) makes a repeat recognisable. ``reporter_generation`` > 0
    grants this host to report the instance under that generation.
    """

    instance_uuid: str
    host: str
    partition: int
    owner_epoch: int
    generation: int
    task_id: str
    step: str
    attempt: int
    reporter_generation: int = 0


class SpawnRequest(msgspec.Struct, kw_only=True):
    """Build the instance; everything needed is inside. The result comes as a StepResult report."""

    order: Order
    instance: Instance


class DestroyRequest(msgspec.Struct, kw_only=True):
    """Destroy the instance if it is here, leave a tombstone; done also when it is not. Result: a StepResult."""

    order: Order


class AdoptRequest(msgspec.Struct, kw_only=True):
    """A new owner takes the instance over at this host: raises owner epoch and generation, learns what runs."""

    order: Order


class ForgetRequest(msgspec.Struct, kw_only=True):
    """The task has ended: generations and tombstones of the instance may go (grants stay)."""

    order: Order


class DomainsRequest(msgspec.Struct, kw_only=True):
    """What is on the host, whoever knows of it: a page of uuids in order, behind ``after``."""

    host: str
    after: str = ""
    limit: int = 1000


class DomainsReply(msgspec.Struct, kw_only=True):
    """``more``: there is a page behind the last of these."""

    uuids: list[str]
    more: bool = False


class StepArguments(msgspec.Struct, kw_only=True, frozen=True):
    """What a verb needs beyond the instance. Each verb reads its own fields only (docs/protocol.md lists them).

    ``hard``: a reboot without the guest's help. ``peer_host``: the other host of a move. ``peer``: what that host's own
    step answered (where its data is, or is awaited). ``image_ref``: the image to boot, or to make. ``flavor``: the one
    to become. ``block``: storage is copied too; ``post_copy``: a live migration may finish behind the switch.
    ``password``: of a rescue. ``power``: the state to end in (objects.instance POWER_*).
    """

    hard: bool = False
    peer_host: str = ""
    peer: dict[str, str] = msgspec.field(default_factory=dict)
    image_ref: str = ""
    flavor: Flavor | None = None
    block: bool = False
    post_copy: bool = False
    password: str = ""
    power: int = 0


class StepRequest(msgspec.Struct, kw_only=True):
    """Do ``verb`` to the instance on this host; everything needed is inside. The result comes as a StepResult report.

    Every verb is idempotent: begun again after a death it ends as if it had been done once.
    """

    order: Order
    verb: str
    instance: Instance
    arguments: StepArguments = msgspec.field(default_factory=StepArguments)


class CommandReply(msgspec.Struct, kw_only=True):
    """The command is recorded (not done). For adopt: what is here.

    ``running`` says that the domain exists; ``last_*`` name the newest (task, step, attempt) whose outcome is known.
    """

    running: bool = False
    power_state: int = 0
    last_task_id: str = ""
    last_step: str = ""
    last_attempt: int = 0
    last_outcome: str = ""
    last_message: str = ""


# Verbs of a StepRequest.
VERB_START = "start"
VERB_STOP = "stop"
VERB_REBOOT = "reboot"
VERB_PAUSE = "pause"
VERB_UNPAUSE = "unpause"
VERB_SUSPEND = "suspend"
VERB_RESUME = "resume"
VERB_RESCUE = "rescue"
VERB_UNRESCUE = "unrescue"
VERB_SNAPSHOT = "snapshot"  # answers SIZE_BYTES and CHECKSUM of the image
VERB_REBUILD = "rebuild"
VERB_RESIZE = "resize"  # on the same host: the domain takes another flavor
# Of a move, in the order of a cold one: the destination makes room and answers where it awaits the data; the source
# stops the domain and sends; the destination makes the domain of what came. A source's copy goes by destroy, a
# destination's that is not wanted too; ``reopen`` starts the source's own again (a revert, or a rollback).
VERB_PREPARE = "prepare"
VERB_SEND = "send"
VERB_ACTIVATE = "activate"
VERB_REOPEN = "reopen"
# Of a live one: the source hands the running domain over; abort and completion are asked for while that goes on.
VERB_MIGRATE = "migrate"
VERB_ABORT = "abort"
VERB_COMPLETE = "complete"

# What a snapshot answers.
SIZE_BYTES = "size_bytes"
CHECKSUM = "checksum"
