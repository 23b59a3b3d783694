"""The page on notifications is what the code says, and every payload has a sample."""

from pathlib import Path

from zcompute.cli import notifications_text
from zcompute.objects.notification_payloads import EVENT_KINDS, EVENT_TYPES

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_in_docs_is_what_the_code_says() -> None:
    written = (DOCS / "notifications.md").read_text(encoding="utf-8")
    assert written == notifications_text.reference(), "run: zcompute notifications reference > docs/notifications.md"


def test_every_payload_has_a_sample_of_its_present_version() -> None:
    shown = {
        (sample["payload"]["name"], sample["payload"]["version"]) for sample in notifications_text.samples().values()
    }
    assert shown == {(kind.payload.__name__, ".".join(map(str, kind.payload.VERSION))) for kind in EVENT_KINDS}


def test_samples_show_events_with_their_own_payloads_and_every_field() -> None:
    for event_type, sample in notifications_text.samples().items():
        payload = EVENT_TYPES[event_type]
        assert sample["payload"]["name"] == payload.__name__
        assert set(sample["payload"]["data"]) == set(payload.__struct_fields__)


def test_event_types_are_unique_and_fit_the_column() -> None:
    names = [name for kind in EVENT_KINDS for name in kind.event_types()]
    assert len(names) == len(set(names)) == len(EVENT_TYPES)
    assert max(map(len, names)) <= 64
