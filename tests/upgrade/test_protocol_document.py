"""docs/protocol.md says what the code does: envelopes, errors, payloads and partitions."""

import re
from pathlib import Path

import msgspec
import pytest

from zcompute.bus import envelope, errors
from zcompute.compute.verbs import VERBS
from zcompute.objects import command, flavor, host, methods, partition, report
from zcompute.objects.interface import Method

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
STRUCTS = {
    kind.__name__: kind
    for kind in (
        partition.PartitionMap,
        partition.PartitionMapDelta,
        partition.ConductorInfo,
        host.HostInventory,
        flavor.Amounts,
        command.Order,
        command.StepArguments,
        report.Observation,
        report.StepResult,
    )
}


def rows(heading: str) -> list[list[str]]:
    """The cells of every table row below a heading, up to the next heading."""
    below = TEXT.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in below.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.rstrip()[1:-1].split("|")] for line in lines]


def declared(kind: type[msgspec.Struct]) -> list[str]:
    return [f"{field.encode_name}{'' if field.required else '?'}" for field in msgspec.structs.fields(kind)]


def named(cell: str) -> list[str]:
    """The field names of a cell, without what is said of their values."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|= \"[a-z_]+\"", "", cell)
    return [name.strip() for name in bare.split(",") if name.strip()]


def test_every_key_of_the_appendix_is_in_its_partition() -> None:
    vectors = re.findall(r"^\| `([^`]*)`[^|]*\| (\d+) \|$", TEXT, re.MULTILINE)
    assert len(vectors) >= 13
    assert {key: partition.partition_of(key) for key, _ in vectors} == {key: int(number) for key, number in vectors}


def test_the_table_of_kinds_names_every_envelope() -> None:
    kinds = {
        tag: kind
        for kind in vars(envelope).values()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and (tag := kind.__struct_config__.tag) is not None
    }
    found = {int(row[0]): row[1] for row in rows("4.") if row[0].isdigit()}
    assert sorted(found) == sorted(kinds)


NUMBERED = (
    "Busy",
    "DeadlineExceeded",
    "LinkDown",
    "LinkReset",
    "UnsupportedVersion",
    "UnknownMethod",
    "Forbidden",
    "InvalidRequest",
    "FrameRefused",
    "NotOwner",
    "Unavailable",
    "RemoteError",
)


def test_the_table_of_errors_is_the_closed_set() -> None:
    found = {int(row[0]): row[1].strip("`") for row in rows("12.") if row[0].isdigit()}
    assert tuple(found[number] for number in range(1, len(NUMBERED) + 1)) == NUMBERED, "a number is never given anew"
    assert sorted(found) == list(range(1, len(found) + 1))
    bus_errors = {name for name, kind in errors._registry.items() if getattr(kind, "__module__", "") == errors.__name__}
    assert set(found.values()) == bus_errors


@pytest.mark.parametrize("row", [row for row in rows("Appendix A") if row[0].split()[0] in STRUCTS], ids=lambda r: r[0])
def test_a_map_of_the_appendix_has_the_declared_fields(row: list[str]) -> None:
    kind = STRUCTS[row[0].split()[0]]
    assert [name for name in named(row[1]) if name != "type"] == declared(kind)
    tag = kind.__struct_config__.tag
    assert (f'type = "{tag}"' in row[1]) == (tag is not None)


@pytest.mark.parametrize("row", [row for row in rows("Appendix A") if "." in row[0].split()[0]], ids=lambda r: r[0])
def test_a_method_of_the_appendix_has_the_declared_fields(row: list[str]) -> None:
    full_name = row[0].split()[0]
    method = next(
        value
        for value in vars(methods).values()
        if isinstance(value, Method) and f"{value.interface}.{value.name}" == full_name
    )
    assert named(row[2]) == declared(method.request)
    if row[3] and not row[3].startswith("as "):
        assert method.reply is not None
        assert named(row[3]) == declared(method.reply)
    assert ("(cast)" in row[0]) == (method.reply is None)


def test_the_table_of_verbs_names_every_verb_that_an_agent_does() -> None:
    found = {verb.strip() for row in rows("Appendix A") for verb in row[0].split(",")}
    assert found >= VERBS
