"""A small client of the region's HTTP API: one keep-alive connection, JSON in and out.

Used by the command's listings and by ``up``'s boots; a program of one's own uses openstacksdk.
"""

import http.client
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec

from zcompute.cli.exits import CommandError

REQUEST_TIMEOUT_S = 30.0
RETRY_WAIT_S = 0.05
RETRY_WAIT_S_MAX = 1.0
RETRY_STATUSES = frozenset({500, 502, 503, 504})


class ApiFailed(CommandError):
    """The API answered with an error, or not at all. ``status`` is 0 when it did not answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ApiClient:
    """One connection to one API, for one greenlet at a time."""

    def __init__(self, url: str, token: str, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise CommandError(f"expected an URL http://host:port, found {url!r}")
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)
        self._headers = {"X-Auth-Token": token, "Accept": "application/json"}
        self._url = url

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """One request; answers (status, decoded body or None). Raises OSError or HTTPException when cut off."""
        data = None if body is None else msgspec.json.encode(body)
        sent = {**self._headers, **(headers or {})}
        if data is not None:
            sent["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, body=data, headers=sent)
            response = self._connection.getresponse()
            raw = response.read()
        except BaseException:
            self._connection.close()
            raise
        try:
            return response.status, msgspec.json.decode(raw) if raw else None
        except msgspec.DecodeError:
            return response.status, None

    def repeated(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        deadline: float,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """A request that is safe to repeat, until it gets an answer other than 5xx or ``deadline`` (monotonic)."""
        wait_s = RETRY_WAIT_S
        while True:
            try:
                status, answer = self.request(method, path, body, headers)
                if status not in RETRY_STATUSES:
                    return status, answer
                failure = f"status {status}: {error_text(answer)}"
            except (OSError, http.client.HTTPException) as error:
                status, failure = 0, f"{type(error).__name__}: {error}"
            if time.monotonic() + wait_s >= deadline:
                raise ApiFailed(f"{method} {self._url}{path}: no answer in time, the last: {failure}", status)
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_WAIT_S_MAX)

    def get(self, path: str) -> Any:
        """GET, expecting 200. Raises ApiFailed."""
        try:
            status, answer = self.request("GET", path)
        except (OSError, http.client.HTTPException) as error:
            raise ApiFailed(f"GET {self._url}{path}: no answer ({error}): is the region up?") from error
        if status != 200:
            raise ApiFailed(f"GET {self._url}{path}: status {status}: {error_text(answer)}", status)
        return answer

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()


def error_text(answer: Any) -> str:
    """The message of an error body in Nova's form ({"kind": {"code", "message"}})."""
    if isinstance(answer, dict):
        for value in answer.values():
            if isinstance(value, dict) and "message" in value:
                return str(value["message"])
    return str(answer)[:200]


def pages(client: ApiClient, path: str, key: str, limit: int = 500, pages_max: int = 1000) -> list[dict[str, Any]]:
    """All rows of a paged list. Raises ApiFailed."""
    rows: list[dict[str, Any]] = []
    marker = ""
    for _ in range(pages_max):
        joint = "&" if "?" in path else "?"
        answer = client.get(f"{path}{joint}limit={limit}" + (f"&marker={marker}" if marker else ""))
        page = answer.get(key, []) if isinstance(answer, dict) else []
        rows.extend(page)
        if len(page) < limit:
            break
        marker = page[-1]["id"]
    return rows
