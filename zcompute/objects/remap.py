"""What becomes of a cell's server that the root is asked to map again."""

MAPPED = "mapped"
MAPPED_ALREADY = "mapped_already"
DELETED = "deleted"
OWED = "owed"
UNCONFIRMED = "unconfirmed"
ON_ITS_WAY = "on_its_way"
ELSEWHERE = "elsewhere"
OTHER_PROJECT = "other_project"

OUTCOMES: dict[str, str] = {
    MAPPED: "the root had forgotten it: it is mapped to the cell and charged to its project",
    MAPPED_ALREADY: "the root knows it there",
    DELETED: "its cell has deleted it, or has no row of it any more",
    OWED: "its cell owes the root a word of it, which decides",
    UNCONFIRMED: "its row came back with a restore of the cell, and no host has reported it since: it may have been "
    "deleted. Look at its host; --unconfirmed maps it",
    ON_ITS_WAY: "the root has a build request of it: the hand-off decides",
    ELSEWHERE: "the root has it in another cell: `zcompute quota reconcile` says whether it is there",
    OTHER_PROJECT: "the root has it in another project, or its cell says so",
}
"""Their meanings."""

LEFT = frozenset({UNCONFIRMED, ELSEWHERE, OTHER_PROJECT})
"""Those that somebody has to look at."""
