"""Every reason for which the bus refuses something is found in its sources, is explained, and is seen by a named test.

A reason is what `Refusals.count`, a `Refused` or the `reason=` of a `FrameRefused` is given. Where a source gives no
constant, it is named here with the reasons that come of it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted((ROOT / "zcompute" / "bus").glob("*.py"))
DOCUMENT = (ROOT / "docs" / "operating" / "bus.md").read_text(encoding="utf-8")

COMPUTED = {
    ("admission.py", "str(error.details.get('reason', 'malformed'))"): set(),  # of a FrameRefused
    ("protocol.py", "str(error.details.get('reason', 'malformed'))"): set(),
    ("envelope.py", "'envelopes' if count > 0 else 'malformed'"): {"envelopes", "malformed"},
    ("link.py", "happening.reason"): set(),  # of a Refused
    ("protocol.py", "why_not"): {"streams_full", "stream_forbidden"},  # what StreamSender.follow returns
    ("serving.py", "error.wire_name"): {"Busy", "Forbidden", "InvalidRequest", "UnknownMethod", "UnsupportedVersion"},
}
"""Places that give no constant, and the reasons that begin there."""

TOLD_ONLY = {
    "attributes": "unit/bus/test_refusals.py::test_attributes_that_are_no_map_or_too_much_refuse_the_hello",
    "stale_hello": "unit/bus/test_refusals.py::test_a_hello_with_an_older_link_number_is_refused",
}
"""Reasons that travel in the error to the peer, and are counted as a refused hello."""

SEEN_BY = {
    "Busy": "unit/bus/test_calls.py::test_a_full_pool_answers_busy_and_disturbs_no_other_pool",
    "Forbidden": "unit/bus/test_calls.py::test_a_role_that_may_not_call_is_refused_and_counted",
    "InvalidRequest": "unit/bus/test_refusals.py::test_calls_that_no_caller_of_ours_would_send_are_refused_by_name",
    "UnknownMethod": "unit/bus/test_refusals.py::test_calls_that_no_caller_of_ours_would_send_are_refused_by_name",
    "UnsupportedVersion": "unit/bus/test_calls.py::test_the_receiver_checks_the_version_too",
    "bad_sequence": "unit/bus/test_refusals.py::test_sequences_that_were_never_sent_are_refused",
    "barred": "unit/bus/test_conduct.py::test_a_flood_of_bad_frames_ends_the_connection_and_bars_the_key_for_a_while",
    "before_welcome": "unit/bus/test_refusals.py::test_what_follows_a_bye_is_refused",
    "busy": "unit/bus/test_refusals.py::test_a_call_beyond_those_served_at_once_is_answered_busy",
    "envelopes": "unit/bus/test_refusals.py::test_much_before_a_hello_and_too_many_envelopes_are_refused",
    "event_version": "upgrade/test_versions.py::test_what_a_peers_version_cannot_say_is_refused_on_either_side",
    "events_overflow": "unit/bus/test_links.py::test_too_many_state_events_reset_the_link_which_then_gets_a_snapshot",
    "hello": "unit/bus/test_links.py::test_admission_may_block_and_refuse_with_an_error_and_is_asked_again",
    "hello_from_listener": "unit/bus/test_refusals.py::test_a_listener_says_no_hello",
    "hellos_full": "unit/bus/test_refusals.py::test_a_hello_that_nobody_can_look_at_is_told_busy",
    "inbox_overflow": "unit/bus/test_refusals.py::test_reports_that_nobody_takes_out_of_the_inbox_reset_the_link",
    "key": "unit/bus/test_links.py::test_an_unknown_key_never_gets_in",
    "late_welcome": "unit/bus/test_refusals.py::test_a_welcome_that_was_not_asked_for_is_refused",
    "malformed": "unit/bus/test_hostile.py::test_random_bytes_after_hello_disturb_nobody",
    "multipart": "unit/bus/test_hostile.py::test_a_message_of_several_parts_is_refused_whole",
    "no_hello": "unit/bus/test_links.py::test_a_listener_that_forgot_the_route_asks_for_a_hello",
    "no_report_handler": "unit/bus/test_refusals.py::test_reports_that_nobody_takes_are_refused",
    "over_credit": "unit/bus/test_refusals.py::test_reports_beyond_the_credit_are_dropped",
    "protocol_version": "unit/bus/test_hostile.py::test_another_protocol_version_is_told_which_one_is_spoken",
    "revoked": "unit/bus/test_refusals.py::test_the_link_of_a_key_that_is_taken_away_is_ended_on_both_sides",
    "revoked_frame": "unit/bus/test_links.py::test_a_revoked_keys_link_goes_down_and_stays_down",
    "routes_full": "unit/bus/test_refusals.py::test_a_route_beyond_the_limit_is_told_busy",
    "size": "unit/bus/test_refusals.py::test_much_before_a_hello_and_too_many_envelopes_are_refused",
    "stream_forbidden": "unit/bus/test_streams.py::test_a_role_that_may_not_follow_gets_nothing",
    "streams_full": "unit/bus/test_refusals.py::test_a_follow_beyond_the_limit_is_refused_and_told",
    "streams_unspoken": "unit/bus/test_refusals.py::test_a_stream_of_a_peer_that_knows_no_streams_is_told",
    "told_by_peer": "unit/bus/test_refusals.py::test_a_peer_that_tells_of_a_refusal_is_heard",
    "unasked_error": "unit/bus/test_refusals.py::test_a_route_counts_the_refusal_of_a_hello_that_it_never_says",
    "unread": "unit/bus/test_hostile.py::test_a_peer_that_never_reads_is_reset_and_costs_bounded_memory",
}
"""The test, in tests/, that sees `refused_REASON` count."""


def given(call: ast.Call) -> Iterator[ast.expr]:
    """What a call gives as a reason."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    counts = name == "count" and isinstance(call.func, ast.Attribute)
    if name == "Refused" or (counts and ast.unparse(call.func.value).endswith("refusals")):
        yield call.args[0]
    elif name == "FrameRefused":
        yield from (keyword.value for keyword in call.keywords if keyword.arg == "reason")


def reasons_in_sources() -> tuple[set[str], set[tuple[str, str]]]:
    """The constants, and the places that give none as (file, expression)."""
    constants: set[str] = set()
    computed: set[tuple[str, str]] = set()
    for path in SOURCES:
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        for reason in (reason for call in calls for reason in given(call)):
            if isinstance(reason, ast.Constant):
                constants.add(str(reason.value))
            else:
                computed.add((path.name, ast.unparse(reason)))
    return constants, computed


def returned_by(file: str, function: str) -> set[str]:
    """The string constants, but for the empty one, that a function returns."""
    source = next(path for path in SOURCES if path.name == file).read_text(encoding="utf-8")
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            returns = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return))
            found |= {value.value for value in returns if isinstance(value, ast.Constant) and value.value}
    return {value for value in found if isinstance(value, str)}


def test_every_reason_in_the_sources_is_listed_and_nothing_else() -> None:
    constants, computed = reasons_in_sources()
    assert computed == set(COMPUTED)
    assert returned_by("streams.py", "follow") == COMPUTED["protocol.py", "why_not"]
    assert constants | set().union(*COMPUTED.values()) == set(SEEN_BY) | set(TOLD_ONLY)


@pytest.mark.parametrize("reason", sorted(SEEN_BY | TOLD_ONLY))
def test_a_reason_is_explained_and_its_test_sees_it_count(reason: str) -> None:
    assert f"`{reason}`" in DOCUMENT, "explain it in docs/operating/bus.md"
    file, _, name = (SEEN_BY | TOLD_ONLY)[reason].partition("::")
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    test = next((node for node in functions if node.name == name), None)
    assert test is not None, f"tests/{file} has no {name}"
    counter = "refused_hello" if reason in TOLD_ONLY else f"refused_{reason}"
    assert counter in (ast.get_source_segment(source, test) or ""), f"{name} does not look at {counter}"
