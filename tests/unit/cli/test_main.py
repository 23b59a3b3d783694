"""The command loads what it runs, and nothing else."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from zcompute.cli.main import COMMANDS, main

MODULES = """
import sys
from zcompute.cli.main import main
try:
    main([{arguments}])
except SystemExit:
    print(" ".join(name for name in {forbidden} if name in sys.modules))
"""
FORBIDDEN = ("sqlalchemy", "pymysql", "sqlite3", "alembic", "rich", "zcompute.db")


def loaded(*arguments: str) -> list[str]:
    """Which of FORBIDDEN a command has loaded when it fails for want of its file."""
    script = MODULES.format(arguments=", ".join(map(repr, arguments)), forbidden=FORBIDDEN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split("\n")[-2].split()


def test_a_compute_command_and_the_help_load_nothing_of_the_database() -> None:
    assert loaded("compute", "--config", "/nonexistent") == []
    assert loaded("--help") == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_there(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in COMMANDS)
    assert CliRunner().invoke(main, ["nonsense"]).exit_code == 2


def test_a_configuration_that_cannot_be_used_is_one_sentence_and_code_2(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[service]\nid = "x"\ncell = "c1"\nstate_dir = "/s"\ncolour = "red"\n')
    for arguments in (["config", "check", str(path)], ["compute", "--config", str(path)]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert str(path) in result.output
        assert "colour" in result.output
