"""The service ``zcompute conductor`` whose lists can be made late.

python -m loadtest.reads.conductor MS conductor --config FILE       (SIGUSR1: late from now on; again: no longer)
"""

from gevent import monkey

monkey.patch_all()

import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

from zcompute.cli.main import main as zcompute  # noqa: E402
from zcompute.conductor.cell.reads import Reads  # noqa: E402

late: list[bool] = [False]


def delayed(handler: Callable[[Reads, Any, Any], Any], seconds: float) -> Callable[[Reads, Any, Any], Any]:
    """The handler, so much later while SIGUSR1 says so."""

    def handle(reads: Reads, request: Any, context: Any) -> Any:
        if late[0]:
            gevent.sleep(seconds)
        return handler(reads, request, context)

    return handle


def main() -> None:
    """Serve until SIGTERM."""
    seconds = float(sys.argv.pop(1)) / 1000
    for name in ("instance_list", "instance_briefs"):
        setattr(Reads, name, delayed(getattr(Reads, name), seconds))

    def toggle() -> None:
        late[0] = not late[0]

    gevent.signal_handler(signal.SIGUSR1, toggle)
    zcompute()


if __name__ == "__main__":
    main()
