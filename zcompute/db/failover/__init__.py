"""The loss of a cell's primary: who is the primary now, and how another becomes it (docs/operating/failover.md)."""
