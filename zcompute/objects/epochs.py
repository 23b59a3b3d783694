"""Histories of a cell: what a restore from a backup begins anew.

Terms, map versions, owner epochs, agent epochs and generations only rise, and peers refuse what is lower than they have
seen. A restored database has forgotten how far they had come. So the upper bits of each such number are its history: a
restore takes a history above any former one, and the lower 32 bits go on counting.
"""

HISTORY_BITS = 32
_COUNT = (1 << HISTORY_BITS) - 1


def history_of(number: int) -> int:
    """Of which history a term, version, epoch or generation is."""
    return number >> HISTORY_BITS


def in_history(number: int, history: int) -> int:
    """The number, as it goes on in a newer history."""
    return (history << HISTORY_BITS) + (number & _COUNT)
