"""``python -m tests.simulation --seeds N [--seed S]``: whole cells under a seeded network, clock and database."""

import sys

from tests.simulation.cell.cli import main

sys.exit(main(sys.argv[1:]))
