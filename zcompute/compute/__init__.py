"""The agent on a hypervisor: obeys its conductors, runs domains through a driver, reports what it sees.

It holds no credentials, listens nowhere, reads no database and makes no call while it builds.
"""
