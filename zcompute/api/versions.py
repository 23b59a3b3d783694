"""Version documents and microversions. Only 2.1 is served so far."""

import re
from typing import Any

from zcompute.api.errors import BadRequest, NotAcceptable

API_VERSION = "2.1"
UPDATED = "2013-07-23T11:33:21Z"
LEGACY_HEADER = "X-OpenStack-Nova-API-Version"
HEADER = "OpenStack-API-Version"

_MICROVERSION = re.compile(r"^([1-9]\d{0,4})\.([1-9]\d{0,4}|0)$")


def version_list(base_url: str) -> dict[str, Any]:
    """The body of GET /."""
    return {"versions": [_summary(base_url)]}


def version_document(base_url: str) -> dict[str, Any]:
    """The body of GET /v2.1/."""
    document = _summary(base_url)
    document["links"].append({"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"})
    document["media-types"] = [
        {"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}
    ]
    return {"version": document}


def check_microversion(header: str | None, legacy_header: str | None) -> None:
    """Raise unless the version asked for is served: BadRequest for none at all, NotAcceptable for another.

    ``OpenStack-API-Version: compute 2.1`` comes before Nova's own older header; other services' entries are ignored.
    """
    wanted = legacy_header
    for entry in (header or "").split(","):
        service, _, version = entry.strip().partition(" ")
        if service.lower() == "compute" and version:
            wanted = version
    wanted = wanted.strip() if wanted else ""
    if not wanted or wanted.lower() == "latest" or wanted == API_VERSION:
        return
    if not _MICROVERSION.match(wanted):
        raise BadRequest(f"API Version String {wanted[:40]} is of invalid format. Must be of format MajorNum.MinorNum.")
    raise NotAcceptable(
        f"Version {wanted} is not supported by the API. Minimum is {API_VERSION} and maximum is {API_VERSION}."
    )


def _summary(base_url: str) -> dict[str, Any]:
    return {
        "id": "v2.1",
        "status": "CURRENT",
        "version": API_VERSION,
        "min_version": API_VERSION,
        "updated": UPDATED,
        "links": [{"rel": "self", "href": f"{base_url}/v2.1/"}],
    }
