"""Reads of servers over HTTP: how many, at what cost, over how many rows and cells, beside writes."""
