import msgspec
import pytest

from zcompute.api.auth import Caller
from zcompute.api.creation import admin_pass, boolean, create_request, hostname, last_part, operation_id_of
from zcompute.api.errors import ApiError, BadRequest
from zcompute.api.schemas import CREATE_SERVER, decode, describe

ANN = Caller("demo", "ann", False, b"secret of ann")
BOB = Caller("demo", "bob", False, b"secret of bob")


def request_of(text: str):
    return create_request(decode(CREATE_SERVER, text.encode()), ANN, "op")


def test_the_digest_does_not_depend_on_how_the_json_is_written():
    one = request_of('{"server": {"name": "a", "flavorRef": "1", "metadata": {"x": "1", "y": "2"}}}')
    other = request_of('{"server":{"metadata":{"y":"2","x":"1"},"flavorRef":"1","name":"a"}}')
    explicit = request_of(
        '{"server": {"name": "a", "flavorRef": 1, "metadata": {"x": "1", "y": "2"}, '
        '"networks": "auto", "min_count": "1", "max_count": 1}}'
    )
    assert one.digest == other.digest == explicit.digest
    assert one.digest != request_of('{"server": {"name": "b", "flavorRef": "1"}}').digest


def test_the_image_that_is_booted_from_may_be_named_as_a_block_device():
    device = '{"uuid": "img", "source_type": "image", "destination_type": "local", "boot_index": 0}'
    text = '{"server": {"name": "a", "flavorRef": 1, "imageRef": "img", "block_device_mapping_v2": [%s]}}'
    assert request_of(text % device).spec.image_ref == "img"
    with pytest.raises(BadRequest, match="block_device_mapping_v2"):
        request_of(text % f"{device}, {device}")


def test_an_empty_list_of_networks_is_auto():
    assert request_of('{"server": {"name": "a", "flavorRef": "1", "networks": []}}').spec.networks == "auto"


def test_operation_ids_depend_on_project_and_key():
    assert operation_id_of("k", "p") == operation_id_of("k", "p")
    assert len({operation_id_of("k", "p"), operation_id_of("k", "q"), operation_id_of("l", "p")}) == 3
    assert operation_id_of("k", "p").startswith("k-")


def test_a_repeat_has_the_same_password_and_nobody_else_knows_it():
    assert admin_pass(ANN, "op") == admin_pass(ANN, "op")
    assert len({admin_pass(ANN, "op"), admin_pass(BOB, "op"), admin_pass(ANN, "op2")}) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Web Server_1", "web-server-1"), ("a.b.", "a.b"), ("\u00fcml\u00e4ut", "mlut"), ("!!", ""), ("x" * 80, "x" * 63)],
)
def test_host_names_are_made_as_nova_makes_them(name, expected):
    assert hostname(name) == expected


def test_references_may_be_urls():
    assert last_part("http://api/v2.1/flavors/7/") == "7"
    assert last_part("a/b") == "a/b"


@pytest.mark.parametrize(("value", "expected"), [(True, True), ("on", True), ("F", False), ("", False), ("Yes", True)])
def test_booleans_are_read_as_nova_reads_them(value, expected):
    assert boolean(value, "field") is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Object contains unknown field `x` - at `$.server`",
            "Invalid input for field/attribute server. Additional properties are not allowed ('x' was unexpected)",
        ),
        ("Object missing required field `server`", "'server' is a required property"),
        (
            "Expected `str`, got `int` - at `$.server.name`",
            "Invalid input for field/attribute server.name. Expected `str`, got `int`",
        ),
        (
            "Expected `str` of length >= 1 - at `key in $.server.metadata`",
            "Invalid input for field/attribute server.metadata. Expected `str` of length >= 1",
        ),
        ("Expected `object`, got `array`", "Invalid input for field/attribute body. Expected `object`, got `array`"),
    ],
)
def test_validation_is_told_in_novas_words(message, expected):
    assert describe(message) == expected


def test_an_error_body_has_one_name():
    assert msgspec.json.decode(ApiError("m").body()) == {"computeFault": {"code": 500, "message": "m"}}
    waiting = msgspec.json.decode(ApiError("m", retry_after_s=3).body())
    assert waiting["computeFault"]["retryAfter"] == "3"
