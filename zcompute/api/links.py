"""Links in bodies, as Nova writes them."""

from urllib.parse import urlencode

import msgspec


class Link(msgspec.Struct, frozen=True, gc=False):
    """One link."""

    rel: str
    href: str


def resource_links(base_url: str, kind: str, identifier: str) -> list[Link]:
    """The self link (with version) and the bookmark (without). ``base_url`` is scheme and host."""
    return [
        Link("self", f"{base_url}/v2.1/{kind}/{identifier}"),
        bookmark(base_url, kind, identifier),
    ]


def bookmark(base_url: str, kind: str, identifier: str) -> Link:
    """The version-less link."""
    return Link("bookmark", f"{base_url}/{kind}/{identifier}")


def next_link(base_url: str, path: str, query: list[tuple[str, str]], marker: str) -> Link:
    """The link to the page after ``marker``: the same query, from there on."""
    kept = [(name, value) for name, value in query if name != "marker"]
    return Link("next", f"{base_url}{path}?{urlencode([*kept, ('marker', marker)])}")
