"""The file of fingerprints: which version of everything looks how. A version that is out keeps its fingerprint."""

import json
from pathlib import Path

from tests.upgrade import corpus, declared

FILE = Path(__file__).with_name("fingerprints.json")
HOW_TO = (
    "raise its version where it is declared (a version that no sealed release has may still change its look), "
    "then run: python -m tests.upgrade.write_corpus"
)

Fingerprints = dict[str, dict[str, dict[str, str]]]


def read(file: Path | None = None) -> Fingerprints:
    """A file of fingerprints; empty when there is none."""
    file = file or FILE
    found: Fingerprints = json.loads(file.read_text(encoding="utf-8"))["fingerprints"] if file.exists() else {}
    return found


def read_wire_names(file: Path | None = None) -> list[str]:
    """The errors that the file knows."""
    file = file or FILE
    found: list[str] = json.loads(file.read_text(encoding="utf-8"))["errors"] if file.exists() else []
    return found


def text(known: Fingerprints, wire_names: list[str]) -> str:
    """The file's text."""
    return json.dumps({"errors": wire_names, "fingerprints": known}, indent=1, sort_keys=True) + "\n"


def changed(known: Fingerprints, present: Fingerprints) -> list[str]:
    """What looks otherwise than its version says, and versions that went back."""
    return [
        f"{sort} {name} {version} is {fingerprint}, was {was[version]}"
        for sort, names in present.items()
        for name, versions in names.items()
        for version, fingerprint in versions.items()
        if version in (was := known.get(sort, {}).get(name, {})) and was[version] != fingerprint
    ]


def missing(known: Fingerprints, present: Fingerprints) -> list[str]:
    """Versions that the file does not have yet."""
    return [
        f"{sort} {name} {version}"
        for sort, names in present.items()
        for name, versions in names.items()
        for version in versions
        if version not in known.get(sort, {}).get(name, {})
    ]


def released() -> Fingerprints:
    """Those of every sealed release together."""
    together: Fingerprints = {}
    for release in corpus.releases():
        if corpus.sealed(release):
            together = merged(together, read(corpus.DIRECTORY / release / FILE.name))
    return together


def merged(known: Fingerprints, present: Fingerprints) -> Fingerprints:
    """Both; what is present counts."""
    return {
        sort: {
            name: {**known.get(sort, {}).get(name, {}), **present.get(sort, {}).get(name, {})}
            for name in sorted({*known.get(sort, {}), *present.get(sort, {})})
        }
        for sort in sorted({*known, *present})
    }


def present() -> Fingerprints:
    """What the code looks like now."""
    return declared.fingerprints()
