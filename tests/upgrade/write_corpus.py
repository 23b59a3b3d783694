"""``python -m tests.upgrade.write_corpus [--seal]``: write fingerprints.json and this release's corpus.

While a release is not sealed its corpus is written anew each time, and versions that no sealed release has may change
their look. ``--seal`` belongs to the commit of a release: from then on the directory is never edited.
"""

import json
import sys

import msgspec

from tests.upgrade import corpus, declared, fingerprints
from zcompute import __version__


def main(arguments: list[str]) -> int:
    """Exit code 1 when something that is out has changed, 2 for wrong arguments."""
    if arguments not in ([], ["--seal"]):
        print(__doc__, file=sys.stderr)
        return 2
    present = fingerprints.present()
    broken = fingerprints.changed(fingerprints.released(), present)
    if broken:
        print("\n".join(broken), fingerprints.HOW_TO, sep="\n", file=sys.stderr)
        return 1
    known = fingerprints.merged(fingerprints.read(), present)
    written = fingerprints.text(known, declared.wire_names())
    fingerprints.FILE.write_text(written, encoding="utf-8")
    directory = corpus.DIRECTORY / __version__
    if corpus.sealed(__version__):
        print(f"release {__version__} is sealed: its corpus stays as it is", file=sys.stderr)
        return 1 if arguments else 0
    directory.mkdir(parents=True, exist_ok=True)
    (directory / fingerprints.FILE.name).write_text(written, encoding="utf-8")
    for name, entries in (("frames", corpus.frames()), ("payloads", corpus.payloads()), ("stored", corpus.stored())):
        lines = [json.dumps(msgspec.to_builtins(entry), sort_keys=True) for entry in entries]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if arguments:
        seal = json.dumps(corpus.checksums(__version__), indent=1)
        (directory / corpus.SEAL).write_text(seal + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
