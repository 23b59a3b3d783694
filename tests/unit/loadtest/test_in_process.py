"""The harness in which changes to the report path are judged still runs, and every report in it is applied."""

import subprocess
import sys


def test_a_report_has_a_price_without_network_and_database() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "loadtest.ledger.in_process", "--rounds", "2", "--links", "20", "--instances", "160"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "us a report" in found.stdout
    assert "verdicts a frame" in found.stdout
