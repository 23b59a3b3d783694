"""``python detour.py DETOURS.json COMMAND...``: ``zcompute COMMAND...`` that dials other addresses than it is told."""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from zcompute.bus import Endpoint, Link  # noqa: E402
from zcompute.cli.main import main  # noqa: E402

DIAL = Endpoint.dial


def be(detours: dict[str, str], arguments: list[str]) -> None:
    """Run the command with the addresses of ``detours`` exchanged."""

    def dial(endpoint: Endpoint, address: str, server_public_key: str = "") -> Link:
        return DIAL(endpoint, detours.get(address, address), server_public_key)

    Endpoint.dial = dial  # type: ignore[method-assign]  # the one seam of such a test
    main(arguments, prog_name="zcompute")


if __name__ == "__main__":
    be(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:])
