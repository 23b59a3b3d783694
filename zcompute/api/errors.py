"""Errors as clients see them: Nova's names, codes and bodies, and how errors of the services become them."""

import math
from typing import Any, ClassVar

import msgspec

from zcompute.bus import errors as bus_errors
from zcompute.objects import errors as service_errors


class ApiError(Exception):
    """An answer other than success. ``name`` is Nova's key in the body; ``headers`` go into the response."""

    code: ClassVar[int] = 500
    reason: ClassVar[str] = "Internal Server Error"
    name: ClassVar[str] = "computeFault"

    def __init__(
        self, message: str, *, retry_after_s: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)

    @property
    def status(self) -> str:
        """The HTTP status line's code and reason."""
        return f"{self.code} {self.reason}"

    def body(self) -> bytes:
        """{"itemNotFound": {"code": 404, "message": "..."}}"""
        fault: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after_s is not None:
            fault["retryAfter"] = str(self.retry_after_s)
        return msgspec.json.encode({self.name: fault})


class ComputeFault(ApiError):
    """500: our fault."""


class BadRequest(ApiError):
    """400"""

    code, reason, name = 400, "Bad Request", "badRequest"


class Unauthorized(ApiError):
    """401"""

    code, reason, name = 401, "Unauthorized", "unauthorized"


class Forbidden(ApiError):
    """403"""

    code, reason, name = 403, "Forbidden", "forbidden"


class ItemNotFound(ApiError):
    """404"""

    code, reason, name = 404, "Not Found", "itemNotFound"


class BadMethod(ApiError):
    """405"""

    code, reason, name = 405, "Method Not Allowed", "badMethod"


class NotAcceptable(ApiError):
    """406: a microversion that is not served. Nova has no name of its own for it."""

    code, reason = 406, "Not Acceptable"


class RequestTimeout(ApiError):
    """408: the body did not arrive in time."""

    code, reason, name = 408, "Request Timeout", "requestTimeout"


class ConflictingRequest(ApiError):
    """409"""

    code, reason, name = 409, "Conflict", "conflictingRequest"


class OverLimit(ApiError):
    """413; the body of the answer always says retryAfter, 0 where waiting changes nothing."""

    code, reason, name = 413, "Request Entity Too Large", "overLimit"

    def body(self) -> bytes:
        """As for every error, with retryAfter."""
        fault = {"code": self.code, "message": self.message, "retryAfter": str(self.retry_after_s or 0)}
        return msgspec.json.encode({self.name: fault})


class BadMediaType(ApiError):
    """415"""

    code, reason, name = 415, "Unsupported Media Type", "badMediaType"


class ServiceUnavailable(ApiError):
    """503, always with Retry-After."""

    code, reason, name = 503, "Service Unavailable", "serviceUnavailable"

    def __init__(self, message: str, *, retry_after_s: int = 1, headers: dict[str, str] | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s, headers=headers)


_AWAY = (
    bus_errors.DeadlineExceeded,
    bus_errors.LinkDown,
    bus_errors.LinkReset,
    bus_errors.NotOwner,
    bus_errors.Unavailable,
    bus_errors.UnsupportedVersion,
    bus_errors.UnknownMethod,
    service_errors.SchedulerStale,
)


def api_error(error: Exception) -> ApiError | None:
    """What a client is told about an error of the bus or of a service; None for one that is none of these."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, bus_errors.Busy):
        retry_after_s = max(1, math.ceil(error.retry_after_ms / 1000))
        return ServiceUnavailable("The service is busy. Please try again.", retry_after_s=retry_after_s)
    if isinstance(error, _AWAY):
        return ServiceUnavailable(
            "The service did not answer in time; whether the request took effect is not known. Please repeat it "
            f"(with the same Idempotency-Key, if it creates servers). [{type(error).__name__}]"
        )
    if isinstance(error, bus_errors.InvalidRequest):
        return BadRequest(f"Invalid input: {error}")
    if isinstance(error, service_errors.ServiceError):
        return _of_service_error(error)
    return None


def _of_service_error(error: service_errors.ServiceError) -> ApiError:
    details = error.details
    if isinstance(error, service_errors.InstanceNotFound):
        return ItemNotFound(f"Instance {details.get('uuid', '')} could not be found.")
    if isinstance(error, service_errors.FlavorNotFound):
        return ItemNotFound(f"Flavor {details.get('flavor', '')} could not be found.")
    if isinstance(error, service_errors.ServerGroupNotFound):
        return BadRequest(f"Instance group {details.get('group', '')} could not be found.")
    if isinstance(error, service_errors.ImageNotFound):
        return ItemNotFound("Image not found.")
    if isinstance(error, service_errors.MarkerNotFound):
        return BadRequest(f"marker [{details.get('marker', '')}] not found")
    if isinstance(error, service_errors.OperationConflict):
        return ConflictingRequest("Idempotency-Key was used before for another request.")
    if isinstance(error, service_errors.InstanceBusy):
        return ConflictingRequest(error.message)
    if isinstance(error, service_errors.ActionForbidden):
        return Forbidden(error.message)
    if isinstance(error, service_errors.ActionInvalid):
        return BadRequest(error.message)
    if isinstance(error, service_errors.QuotaExceeded):
        return Forbidden(error.message, headers={"Retry-After": "0"})  # as Nova's: waiting changes nothing
    return ComputeFault(f"Unexpected API Error. [{type(error).__name__}]")
