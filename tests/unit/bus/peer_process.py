"""A process of its own on the bus, for tests that kill or stop one: `peer_process.py listen|dial ADDRESS ...`."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import gevent  # noqa: E402

from tests.unit.bus.conftest import Answer, Ask, Method  # noqa: E402
from zcompute.bus import Ack, CallContext, Endpoint, Identity, KeyEntry, Keyring  # noqa: E402

ECHO = Method("echo", "say", idempotent=True)
HOLD = Method("echo", "hold")


def hold(ask: Ask, context: CallContext) -> Answer:
    """Hold this process' hub for so many milliseconds, as a long computation does."""
    monkey.get_original("time", "sleep")(ask.number / 1000)
    return Answer(ask.text)


def main() -> None:
    """Arguments: mode, address, own public and secret key, the other's public key, its role."""
    mode, address, public, secret, other, other_role = sys.argv[1:7]
    role = "conductor" if mode == "listen" else "compute"
    entries = [KeyEntry("other", other, other_role, "c1"), KeyEntry("me", public, role, "c1")]
    endpoint = Endpoint(
        Identity(role, "c1", f"{role}-1", "1.0", public_key=public, secret_key=secret), keyring=Keyring(entries)
    )
    endpoint.serve(ECHO, lambda ask, context: Answer(ask.text))
    endpoint.serve(HOLD, hold)
    endpoint.on_reports(lambda link, reports: link.ack([Ack(report.key, report.seq, "applied") for report in reports]))
    if mode == "listen":
        endpoint.bind(address)
    else:
        endpoint.dial(address, other)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    gevent.sleep(60)


main()
