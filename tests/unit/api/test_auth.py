import os

import pytest

from zcompute.api import auth
from zcompute.api.auth import Authenticator, TokenRow, Tokens, read_tokens
from zcompute.api.errors import Unauthorized
from zcompute.config import ConfigError

ONE = '[[tokens]]\ntoken = "t1"\nproject_id = "p"\nuser_id = "u"\nis_admin = true\n'


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text(ONE)
    path.chmod(0o600)
    return path


def test_a_token_stands_for_its_caller(token_file):
    caller = Authenticator(str(token_file)).authenticate("t1", "http://api")
    assert (caller.project_id, caller.user_id, caller.is_admin) == ("p", "u", True)


@pytest.mark.parametrize("token", [None, "", "t", "t11", "T1", "\ud800"])
def test_any_other_token_is_unauthorized(token_file, token):
    with pytest.raises(Unauthorized) as caught:
        Authenticator(str(token_file)).authenticate(token, "http://api")
    assert caught.value.headers == {"WWW-Authenticate": 'Keystone uri="http://api"'}


def test_callers_have_secrets_of_their_own():
    tokens = Tokens([TokenRow(token=token, project_id="p", user_id="u") for token in ("a", "b")])
    assert tokens.find("a").secret != tokens.find("b").secret


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tokens = 1", "tokens"),
        ("[[tokens]]\ntoken = 't'", "project_id"),
        ("[[tokens]]\ntoken = ''\nproject_id = 'p'\nuser_id = 'u'", "empty"),
        ("[[tokens]]\ntoken = 't'\nproject_id = 'p'\nuser_id = 'u'\nrole = 'x'", "role"),
        ("[[", "TOML"),
    ],
)
def test_a_bad_token_file_is_refused_by_file_and_reason(token_file, text, reason):
    token_file.write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_tokens(str(token_file))
    assert str(token_file) in str(caught.value)


def test_a_missing_token_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tokens(str(tmp_path / "none"))


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(token_file, monkeypatch):
    authenticator = Authenticator(str(token_file))
    now = auth.time.monotonic()
    monkeypatch.setattr(auth.time, "monotonic", lambda: now)

    def write(text: str, at_ns: int) -> None:
        nonlocal now
        token_file.write_text(text)
        os.utime(token_file, ns=(at_ns, at_ns))
        now += 10

    write(ONE.replace("t1", "t2"), 10**18)
    assert authenticator.authenticate("t2", "").project_id == "p"
    with pytest.raises(Unauthorized):
        authenticator.authenticate("t1", "")
    write("broken", 2 * 10**18)
    assert authenticator.authenticate("t2", "").project_id == "p"
