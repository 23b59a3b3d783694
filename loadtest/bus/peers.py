"""Starts the peers, their brokers too."""

import contextlib
import tempfile
from pathlib import Path

from loadtest.bus.brokers import Nats, Rabbit
from loadtest.bus.contender import PEERS_PYTHON, Contender

KNOWN = ("raw", "blocking", "oslo", "zerorpc", "nats")
RAW = {"raw": "polled", "blocking": "blocking"}
"""Both are raw pyzmq; see loadtest.bus.ends.raw."""


class PeerMissing(RuntimeError):
    """What a peer needs is not installed."""


def start(name: str, ends: contextlib.ExitStack) -> Contender:
    """The peer, running; ended with `ends`. Raises PeerMissing, BrokerFailed, ContenderFailed."""
    if name not in RAW and not PEERS_PYTHON.exists():
        raise PeerMissing(f"expected {PEERS_PYTHON} for {name}, found nothing: run make bench-peers")
    python = str(PEERS_PYTHON)
    if name in RAW:
        contender = Contender(name, "raw", RAW[name])
    elif name == "zerorpc":
        contender = Contender(name, "zerorpc_peer", python=python)
    else:
        directory = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix=f"zcompute-bench-{name}-")))
        broker = Rabbit(directory) if name == "oslo" else Nats(directory)
        ends.callback(broker.stop)
        module = "oslo_peer" if name == "oslo" else "nats_peer"
        contender = Contender(name, module, broker.url, python=python, broker_pids=broker.pids())
    ends.callback(contender.stop)
    return contender
