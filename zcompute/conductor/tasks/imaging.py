"""What a task that makes an image owes the root: one word of what has become of it, whichever way it ends. Pure."""

from zcompute.objects.actions import ACTIONS
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.command import CHECKSUM, SIZE_BYTES, VERB_SNAPSHOT
from zcompute.objects.image import IMAGE_ACTIVE, IMAGE_ERROR, ImageOutcome
from zcompute.objects.instance import Instance
from zcompute.objects.report import StepResult
from zcompute.objects.task import Task

OUTBOX_IMAGED = "imaged"
REASON_CHARS_MAX = 255
NOT_SAID = "the image was not made"
SIZE_DIGITS_MAX = 18  # so that it fits its column, whatever an agent says


def made(image_id: str, result: StepResult) -> ImageOutcome:
    """The image is there: what its snapshot answered."""
    size = result.answer.get(SIZE_BYTES, "")
    size_bytes = int(size) if size.isascii() and size.isdigit() and len(size) <= SIZE_DIGITS_MAX else 0
    checksum = result.answer.get(CHECKSUM, "")
    known = checksum if checksum.isascii() and len(checksum) <= 128 else ""
    return ImageOutcome(image_id=image_id, status=IMAGE_ACTIVE, size_bytes=size_bytes, checksum=known)


def image_awaited(task: Task) -> str:
    """The id of the image that the root awaits of this task; "" for none, or none any more.

    A task of several steps has said it with the step of the snapshot, whose answer it keeps.
    """
    action = ACTIONS.get(task.body.action)
    if action is None or not action.makes_image or VERB_SNAPSHOT in task.body.answers:
        return ""
    return task.body.arguments.image_ref


def not_made(task: Task, reason: str) -> ImageOutcome:
    """The task has ended without it."""
    reason = (reason or NOT_SAID)[:REASON_CHARS_MAX]
    return ImageOutcome(image_id=image_awaited(task), status=IMAGE_ERROR, reason=reason)


def imaged(instance: Instance, outcome: ImageOutcome, request_id: str, now_us: int) -> OutboxEntry:
    """The root is owed this word. Each is a row of its own, so its generation is the time of the decision."""
    return OutboxEntry(
        instance_uuid=instance.uuid,
        project_id=instance.project_id,
        kind=OUTBOX_IMAGED,
        generation=now_us,
        image=outcome,
        request_id=request_id,
        created_at_us=now_us,
    )
