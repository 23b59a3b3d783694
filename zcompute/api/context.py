"""What every resource gets of a request, and how it answers: the only place that knows falcon's objects well."""

import re
import uuid
from typing import Any
from urllib.parse import parse_qsl

import gevent
import msgspec

from zcompute.api.auth import Caller
from zcompute.api.deadline import Deadline
from zcompute.api.errors import BadMediaType, BadRequest, OverLimit, RequestTimeout
from zcompute.api.settings import LIMITS

JSON = "application/json"
QUERY_FIELDS_MAX = 100

_REQUEST_ID = re.compile(r"^req-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
_READ_BYTES = 65_536

encode = msgspec.json.Encoder().encode


def caller_of(req: Any) -> Caller:
    """Who calls; set by the middleware for every path but the public ones."""
    caller: Caller = req.context.caller
    return caller


def deadline_of(req: Any) -> Deadline:
    """By when the answer must leave."""
    deadline: Deadline = req.context.deadline
    return deadline


def base_url_of(req: Any) -> str:
    """Scheme and host as the client named them."""
    base_url: str = req.prefix
    return base_url


def query_of(req: Any) -> list[tuple[str, str]]:
    """The query string in order. Raises BadRequest."""
    text: str = req.query_string
    if not text:
        return []
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX)
    except ValueError as error:
        raise BadRequest(f"Invalid query string: {error}") from None


def new_request_id(given: str | None) -> str:
    """The request id that the client gave, if it is one; else a new one."""
    if given and _REQUEST_ID.match(given):
        return given
    return f"req-{uuid.uuid4()}"


def answer(resp: Any, body: object, status: str = "200 OK") -> None:
    """Answer with JSON."""
    resp.status = status
    resp.content_type = JSON
    resp.data = encode(body)


def read_body(req: Any, bytes_max: int) -> bytes:
    """The whole body. Raises BadMediaType, OverLimit, RequestTimeout, BadRequest (cut off)."""
    content_type = req.content_type
    if content_type is not None and content_type.partition(";")[0].strip().lower() != JSON:
        raise BadMediaType(f"Unsupported Content-Type {content_type[:80]!r}: expected {JSON}.")
    length = req.content_length
    if length is not None and length > bytes_max:
        raise _too_large(bytes_max)
    deadline_s = min(LIMITS.body_s, deadline_of(req).left_ms / 1000)
    late = RequestTimeout("The request body did not arrive in time.", headers={"Connection": "close"})
    parts: list[bytes] = []
    size = 0
    stream = req.env["wsgi.input"]
    try:
        with gevent.Timeout(deadline_s, late):
            while part := stream.read(min(_READ_BYTES, bytes_max + 1 - size)):
                parts.append(part)
                size += len(part)
                if size > bytes_max:
                    raise _too_large(bytes_max)
    except OSError as error:
        raise BadRequest(f"Malformed request body: {error}", headers={"Connection": "close"}) from None
    return b"".join(parts)


def _too_large(bytes_max: int) -> OverLimit:
    return OverLimit(
        f"Request is too large: expected a body of at most {bytes_max} bytes.", headers={"Connection": "close"}
    )
