"""The root role: build requests, mappings, usage, flavors and cells, and the hand-off of servers to cells."""
