"""The ledger under load: simulated agents, real conductors, what their users could write instead."""
