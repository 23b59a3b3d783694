"""Positions in a primary's log: MariaDB's global transaction ids (https://mariadb.com/kb/en/gtid/)."""

from dataclasses import dataclass


class BadPosition(ValueError):
    """A text that is no position."""


@dataclass(frozen=True)
class Position:
    """How far a log has come: the last sequence number of each replication domain. ``text`` is the server's own."""

    text: str
    domains: tuple[tuple[int, int], ...]

    def covers(self, other: "Position") -> bool:
        """Whether whoever has applied this has applied ``other`` too.

        The server id does not count: within a domain a sequence number is given once, whoever was the primary then.
        """
        if self.text == other.text:
            return True
        mine = dict(self.domains)
        return all(mine.get(domain, 0) >= sequence for domain, sequence in other.domains)


NOWHERE = Position("", ())


def parse_position(text: str) -> Position:
    """Read ``domain-server-sequence``, several with commas; empty for a log without an event. Raises BadPosition."""
    domains: dict[int, int] = {}
    try:
        for one in filter(None, text.replace(" ", "").split(",")):
            domain, _, sequence = map(int, one.split("-"))
            domains[domain] = max(sequence, domains.get(domain, 0))
    except ValueError as error:
        raise BadPosition(f"expected a position as in 0-1-100, found {text!r}") from error
    return Position(text, tuple(sorted(domains.items())))


def later(one: Position, other: Position) -> Position:
    """The one that covers the other; where neither does, a position that covers both."""
    if one.covers(other):
        return one
    if other.covers(one):
        return other
    domains = dict(one.domains)
    for domain, sequence in other.domains:
        domains[domain] = max(sequence, domains.get(domain, 0))
    # Servers wait for the sequence number alone: any server id does.
    pairs = tuple(sorted(domains.items()))
    return Position(",".join(f"{domain}-0-{sequence}" for domain, sequence in pairs), pairs)
