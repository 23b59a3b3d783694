"""Chaos of conductor loss: cluster, traffic and faults, a history written by the clients, and its validation."""
