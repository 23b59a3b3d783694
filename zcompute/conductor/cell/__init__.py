"""What a cell's conductor does: instances, hosts, claims, reports, reads, and its words to the root."""
