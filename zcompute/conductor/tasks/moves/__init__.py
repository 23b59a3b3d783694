"""Moves of servers: lists of the same steps, one list for each kind of move (plans)."""
