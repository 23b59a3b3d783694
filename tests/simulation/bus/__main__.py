"""The simulated network for many seeds: `python -m tests.simulation.bus --seeds 1000 --first 0`."""

import argparse
import sys
import time
import traceback

from tests.simulation.bus.test_network import run_seed


def main() -> None:
    """Exit code 1 when a seed failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    failed = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        try:
            run_seed(seed)
        except AssertionError:
            failed += 1
            print(f"seed {seed} failed", file=sys.stderr)
            traceback.print_exc()
    print(f"{arguments.seeds} seeds from {arguments.first}, {failed} failed, {time.monotonic() - started:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
