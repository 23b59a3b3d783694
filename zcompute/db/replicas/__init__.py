"""Reads from replicas that see what the primary had committed when they were asked (docs/operating/replicas.md)."""
