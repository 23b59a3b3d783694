"""The sample is a valid configuration, and the reference in docs is the one that the code says."""

from pathlib import Path

from zcompute.cli import config_text
from zcompute.config import Config, parse

DOCS = Path(__file__).parents[3] / "docs"


def test_the_sample_parses_and_holds_the_defaults() -> None:
    read = parse(config_text.sample(), Config)
    assert read.service.id == "c1-conductor-1"
    assert read.api == type(read.api)()
    assert read.conductor == type(read.conductor)()


def test_the_sample_with_every_key_uncommented_is_as_valid() -> None:
    lines = config_text.sample().splitlines()
    opened = [line.removeprefix("# ") if " = " in line and not line.startswith("# [") else line for line in lines]
    plain = [line for line in opened if not line.startswith("# ")]
    known = {"id", "cell", "state_dir"}
    assert known <= {line.split(" = ")[0] for line in plain if " = " in line}


def test_every_setting_is_described() -> None:
    for name, section in config_text.sections():
        for setting in config_text.settings(section):
            assert setting.description, f"[{name}] {setting.name}"


def test_the_reference_in_docs_is_what_the_code_says() -> None:
    written = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert written == config_text.reference(), "run: zcompute config reference > docs/configuration.md"
