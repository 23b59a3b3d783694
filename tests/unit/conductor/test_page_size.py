"""Pages fit on the wire, whatever servers carry."""

import msgspec

from tests.unit.api.servers import build_request, instance
from zcompute.bus.limits import Limits
from zcompute.conductor.page_size import PAGE_BYTES_MAX, fitted
from zcompute.objects.instance import ServerSpec

LARGE = {f"{number:0255}": "ü" * 255 for number in range(128)}  # what the API lets in at most


def test_a_thousand_usual_servers_are_one_page_without_their_user_data() -> None:
    spec = ServerSpec(image_ref="0" * 36, metadata={"role": "web"}, user_data="x" * 65_535)
    rows = [instance(f"{n:036}", spec=msgspec.structs.replace(spec), host="h" * 60) for n in range(1000)]
    page, cut = fitted(rows)
    assert (len(page), cut) == (1000, False)
    assert all(row.spec.user_data is None for row in page)
    assert page[0].spec.metadata == {"role": "web"}


def test_a_page_that_would_not_go_over_the_wire_is_cut_and_says_so() -> None:
    rows = [instance(f"{n:036}", spec=ServerSpec(metadata=LARGE)) for n in range(100)]
    page, cut = fitted(rows)
    assert cut
    assert 1 <= len(page) < 100
    assert page == rows[: len(page)]
    size = len(msgspec.msgpack.encode(page))
    assert PAGE_BYTES_MAX / 2 < size <= PAGE_BYTES_MAX < Limits().payload_bytes_max


def test_the_first_row_always_goes() -> None:
    assert fitted([build_request("a"), build_request("b")], 1) == ([build_request("a")], True)
    assert fitted([build_request("a")], 1) == ([build_request("a")], False)
    assert fitted([], 1) == ([], False)
