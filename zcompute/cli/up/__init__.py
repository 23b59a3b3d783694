"""The embedded region: every service of a small region as processes of this machine."""
