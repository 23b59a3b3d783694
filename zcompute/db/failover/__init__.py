"""The loss of a cell's primary: who is the primary now, and how another server becomes it (docs/operating/failover.md)."""
