"""Starts the peers, their brokers too."""

import contextlib

from loadtest.bus.contender import PEERS_PYTHON, Contender

KNOWN = ("raw", "oslo", "zerorpc", "nats")


class PeerMissing(RuntimeError):
    """What a peer needs is not installed."""


def start(name: str, ends: contextlib.ExitStack) -> Contender:
    """The peer, running; ended with `ends`. Raises PeerMissing, ContenderFailed."""
    if name == "raw":
        contender = Contender(name, "raw")
        ends.callback(contender.stop)
        return contender
    if not PEERS_PYTHON.exists():
        raise PeerMissing(f"expected {PEERS_PYTHON} for {name}, found nothing: run make bench-peers")
    raise PeerMissing(f"{name} is not known")
