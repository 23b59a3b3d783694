"""What agents report: the payloads of the bus' report messages. The key of each report is the instance's uuid."""

import msgspec

VERDICT_APPLIED = "applied"
VERDICT_ALREADY_THERE = "already_there"
VERDICT_STALE = "stale"
VERDICT_SUPERSEDED = "superseded"
VERDICT_NOT_YET = "not_yet"
VERDICT_NOT_OWNER = "not_owner"
VERDICT_NOT_YOURS = "not_yours"
VERDICT_INVALID = "invalid"
VERDICT_BUSY = "busy"

# The agent's outbox forgets a report on these; on the others it keeps it and sends again: not_yet (its grant is not
# there yet), not_owner, busy (the lane is full: not decided at all).
FINAL_VERDICTS = frozenset(
    {VERDICT_APPLIED, VERDICT_ALREADY_THERE, VERDICT_STALE, VERDICT_SUPERSEDED, VERDICT_NOT_YOURS, VERDICT_INVALID}
)

OUTCOME_DONE = "done"
OUTCOME_FAILED = "failed"


class Observation(msgspec.Struct, kw_only=True, tag="observation", omit_defaults=True):
    """The newest state of an instance on one host. ``generation`` is the reporter generation of the grant.

    ``folded`` counts the power states before this one that the agent could tell nobody, since it had to wait.
    """

    instance_uuid: str
    host: str
    generation: int
    power_state: int
    progress: int = 0
    gone: bool = False
    folded: int = 0


class StepResult(msgspec.Struct, kw_only=True, tag="step_result", omit_defaults=True):
    """The outcome of (task, step, attempt) under a command generation; never folded, accepted from any host.

    ``answer``: what the step's verb has to say to the next step (where a destination awaits the data, say)."""

    instance_uuid: str
    host: str
    generation: int
    task_id: str
    step: str
    attempt: int
    outcome: str
    message: str = ""
    power_state: int = 0
    answer: dict[str, str] = msgspec.field(default_factory=dict)


ReportBody = Observation | StepResult
