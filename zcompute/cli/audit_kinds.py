"""What the audit can find."""

from dataclasses import dataclass

SERVER_ON_NO_HOST = "server_on_no_host"
SERVER_ON_SEVERAL_HOSTS = "server_on_several_hosts"
SPAWNED_TWICE = "spawned_twice"
ORPHAN_DOMAIN = "orphan_domain"
DOMAIN_LOG_UNREADABLE = "domain_log_unreadable"
MAPPING_WITHOUT_SERVER = "mapping_without_server"
SERVER_WITHOUT_MAPPING = "server_without_mapping"
CROSSING_WITHOUT_MOVE = "crossing_without_move"
USAGE_WITHOUT_SERVER = "usage_without_server"
SERVER_WITHOUT_USAGE = "server_without_usage"
USAGE_WRONG = "usage_wrong"
QUOTA_TOTAL_WRONG = "quota_total_wrong"
CLAIM_LEAKED = "claim_leaked"
CLAIM_MISSING = "claim_missing"
HOST_USED_WRONG = "host_used_wrong"
PLACEMENT_LEAKED = "placement_leaked"
PLACEMENT_MISSING = "placement_missing"
GROUP_VIOLATED = "group_violated"
GROUP_MEMBER_WRONG = "group_member_wrong"
TASK_STUCK = "task_stuck"
ACTION_STUCK = "action_stuck"
OUTBOX_STUCK = "outbox_stuck"
TASK_WITHOUT_ACTION = "task_without_action"
NOTIFICATIONS_MISSING = "notifications_missing"
CURSOR_BEYOND = "cursor_beyond"
BUILD_REQUEST_STUCK = "build_request_stuck"
IMAGE_STUCK = "image_stuck"
API_DIFFERS = "api_differs"
OBSERVED_DIFFERS = "observed_differs"

KINDS: dict[str, str] = {
    SERVER_ON_NO_HOST: "an ACTIVE server runs on no host",
    SERVER_ON_SEVERAL_HOSTS: "a server runs on more than one host",
    SPAWNED_TWICE: "a server was spawned more often than it was given to a host",
    ORPHAN_DOMAIN: "a host runs what is no server of it",
    DOMAIN_LOG_UNREADABLE: "a host's log of domains has lines that cannot be read",
    MAPPING_WITHOUT_SERVER: "the root knows a server that its cell does not have",
    SERVER_WITHOUT_MAPPING: "a cell has a server, or the root a build request, that is mapped elsewhere or nowhere",
    CROSSING_WITHOUT_MOVE: "a cell has a copy of a server for a move between cells that the root does not have",
    USAGE_WITHOUT_SERVER: "a project pays for a server that is not there",
    SERVER_WITHOUT_USAGE: "a server that no project pays for",
    USAGE_WRONG: "a usage row differs from what the server's flavors come to",
    QUOTA_TOTAL_WRONG: "what a project is told that it uses differs from its usage rows",
    CLAIM_LEAKED: "a claim that neither a server nor its task names",
    CLAIM_MISSING: "a server without the claim that its row names",
    HOST_USED_WRONG: "a host's used amounts differ from the sum of its claims",
    PLACEMENT_LEAKED: "a place in a server group that neither a server nor its task names",
    PLACEMENT_MISSING: "a member of a server group without the place that its claim names",
    GROUP_VIOLATED: "members of a server group are where its policy does not allow them",
    GROUP_MEMBER_WRONG: "the root counts a server as of another server group than its cell",
    TASK_STUCK: "a task parked, past its deadline or without progress, or a task_state without a task",
    ACTION_STUCK: "an operation of the history that is under way without its task",
    TASK_WITHOUT_ACTION: "a task that the history does not know",
    NOTIFICATIONS_MISSING: "a partition's notifications have a gap, or do not end with the last that was told",
    CURSOR_BEYOND: "a notifier has seen more than was told",
    OUTBOX_STUCK: "a message to the root that is not delivered",
    BUILD_REQUEST_STUCK: "a build request that is not handed off",
    IMAGE_STUCK: "an image that is awaited for long, of a server that no task is under way for",
    API_DIFFERS: "the API shows something else than the databases",
    OBSERVED_DIFFERS: "a server's power state differs from what its host runs",
}


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that does not hold. ``subject`` is a server's or a server group's uuid, a host's name, a project's id,
    or a partition (CELL/NUMBER)."""

    kind: str
    subject: str
    detail: str = ""
