"""The conductor of loadtest.reconnect: python -m loadtest.reconnect_conductor KEYS_FILE ADDRESS"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402

from zcompute.bus import Endpoint, Identity, KeyEntry, Keyring  # noqa: E402


def main() -> None:
    """Listen until killed."""
    keys = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    entries = [KeyEntry(f"agent{number}", key[0], "compute", "c1") for number, key in enumerate(keys["agents"])]
    public, secret = keys["conductor"]
    identity = Identity("conductor", "c1", "conductor1", public_key=public, secret_key=secret)
    print(Endpoint(identity, keyring=Keyring(entries)).bind(sys.argv[2]), flush=True)
    while True:
        gevent.sleep(3600)


if __name__ == "__main__":
    main()
