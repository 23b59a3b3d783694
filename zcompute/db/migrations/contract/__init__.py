"""Contract revisions: what is taken away once no release in use needs it."""
