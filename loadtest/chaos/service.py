"""A service behind wires: ``python -m loadtest.chaos.service WIRES KIND --config FILE`` is ``zcompute KIND --config
FILE`` whose links go where the table in WIRES says."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from loadtest.chaos import wires  # noqa: E402
from zcompute.cli.main import main  # noqa: E402

if __name__ == "__main__":
    wires.redirect(Path(sys.argv.pop(1)))
    main(prog_name="zcompute")
