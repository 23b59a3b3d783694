"""What any release wrote, this one reads, and it means the same."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.upgrade import corpus, declared, fingerprints
from tests.upgrade.corpus import Entry, meaning
from tests.upgrade.write_corpus import main
from zcompute import __version__
from zcompute.bus.envelope import decode_frame
from zcompute.bus.limits import Limits
from zcompute.objects.base import unpack

RELEASES = corpus.releases()


def entries(name: str) -> list[Any]:
    return [
        pytest.param(entry, id=f"{release} {entry.name}")
        for release in RELEASES
        for entry in corpus.read(release, f"{name}.jsonl")
    ]


def holds(now: Any, then: Any) -> bool:
    """Everything that was meant then is meant now; a later minor may have added fields."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(key in now and holds(now[key], value) for key, value in then.items())
    if isinstance(then, list) and isinstance(now, list):
        return len(now) == len(then) and all(map(holds, now, then))
    return bool(now == then)


def kind_of(entry: Entry, kinds: dict[str, Any]) -> Any:
    name = re.sub(r" (full|bare)$", "", entry.name)
    assert name in kinds, f"{name} of an earlier release is not known any more: keep it, or raise its interface's major"
    return kinds[name]


@pytest.mark.parametrize("entry", entries("frames"))
def test_a_frame_of_any_release_means_what_it_meant(entry: Entry) -> None:
    assert holds(meaning(decode_frame(entry.data, Limits())), entry.means)


@pytest.mark.parametrize("entry", entries("payloads"))
def test_a_payload_of_any_release_means_what_it_meant(entry: Entry) -> None:
    decoded = msgspec.msgpack.decode(entry.data, type=kind_of(entry, declared.payloads()))
    assert holds(meaning(decoded), entry.means)


@pytest.mark.parametrize("entry", entries("stored"))
def test_a_stored_object_of_any_release_means_what_it_meant(entry: Entry) -> None:
    assert holds(meaning(unpack(entry.data, kind_of(entry, declared.objects()))), entry.means)


def test_a_sealed_release_was_never_edited() -> None:
    for release in filter(corpus.sealed, RELEASES):
        seal = json.loads((corpus.DIRECTORY / release / corpus.SEAL).read_text(encoding="utf-8"))
        assert corpus.checksums(release) == seal, release


def test_this_release_has_its_corpus_and_it_is_whole() -> None:
    assert __version__ in RELEASES
    for name, present in (("frames", corpus.frames()), ("payloads", corpus.payloads()), ("stored", corpus.stored())):
        known = {entry.name for entry in corpus.read(__version__, f"{name}.jsonl")}
        missing = {entry.name for entry in present} - known
        assert corpus.sealed(__version__) or not missing, "run: python -m tests.upgrade.write_corpus"
    assert len(entries("frames")) > len(declared.envelopes())


def test_a_meaning_that_changed_is_found() -> None:
    assert holds({"a": [{"b": 1, "new": 2}]}, {"a": [{"b": 1}]})
    assert not holds({"a": [{"b": 2}]}, {"a": [{"b": 1}]})
    assert not holds({"a": []}, {"a": [{"b": 1}]})
    assert not holds({}, {"a": None})


def test_what_is_sealed_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DIRECTORY", tmp_path / "corpus")
    monkeypatch.setattr(fingerprints, "FILE", tmp_path / "fingerprints.json")
    (tmp_path / "corpus").mkdir()
    assert main([]) == main([]) == main(["--seal"]) == 0
    assert corpus.sealed(__version__)
    written = corpus.checksums(__version__)
    assert main(["--seal"]) == 1
    assert corpus.checksums(__version__) == written
    assert json.loads((tmp_path / "corpus" / __version__ / corpus.SEAL).read_text()) == written
    present = declared.fingerprints()
    present["objects"]["Instance"] = {"1.0": "changed"}
    monkeypatch.setattr(declared, "fingerprints", lambda: present)
    assert main([]) == 1
    assert main(["--what"]) == 2
