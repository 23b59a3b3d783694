"""What accompanies a piece of work from process to process: the request id."""

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("zcompute_request_id", default="-")
"""Id of the request being worked on; set for each handler, the default of every call and cast made from it."""
