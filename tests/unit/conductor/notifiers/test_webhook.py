"""Against a server of this file: what is posted, what counts as taken, what a receiver may do wrong."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gevent
import msgspec
import pytest

from zcompute.conductor.notifiers.service import BUILT_IN, check_notifiers
from zcompute.conductor.notifiers.sink import NotifierRefused, Told
from zcompute.conductor.notifiers.sink import open_sink as open_any_sink
from zcompute.conductor.notifiers.webhook import DeliveryRefused, Webhook, open_sink
from zcompute.config import ConfigError, NotificationsConfig, NotifierConfig
from zcompute.objects.base import pack
from zcompute.objects.notification import Notification


class Receiver:
    """Answers each POST with the next of ``answers`` (200 when there is none); 0: closes without an answer."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[int] = []
        self.connections = 0
        self.slow_s = 0.0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posts.append(msgspec.json.decode(body))
                receiver.headers.append(dict(self.headers))
                gevent.sleep(receiver.slow_s)
                answer = receiver.answers.pop(0) if receiver.answers else 200
                if not answer:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(answer)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook?x=1"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def hook(receiver: Receiver, **fields: Any) -> Webhook:
    return open_sink(NotifierConfig(name="hook", kind="webhook", url=receiver.url, **fields))


def told(*numbers: int) -> list[Told]:
    return [Told("c1", 7, n, pack(Notification(event_type=f"e{n}"))) for n in numbers]


def test_a_delivery_is_one_post_with_the_names_of_all(receiver: Receiver) -> None:
    sink = hook(receiver)
    sink.deliver(told(4, 5))
    sink.gap("c1", 7, 1, 3)
    sink.deliver(told(6))
    posted = receiver.posts
    names = [(each["cell"], each["partition"], each["n"], each["event_type"]) for each in posted[0]["notifications"]]
    assert names == [("c1", 7, 4, "e4"), ("c1", 7, 5, "e5")]
    assert posted[1] == {"gap": {"cell": "c1", "partition": 7, "from": 1, "to": 3}}
    assert receiver.headers[0]["X-Zcompute-Notifier"] == "hook"
    assert receiver.connections == 1
    sink.close()


@pytest.mark.parametrize("answer", [301, 400, 404, 500, 503])
def test_any_answer_but_2xx_means_not_taken(receiver: Receiver, answer: int) -> None:
    sink = hook(receiver)
    receiver.answers = [answer]
    with pytest.raises(DeliveryRefused, match=str(answer)):
        sink.deliver(told(1))
    sink.deliver(told(1))
    assert len(receiver.posts) == 2
    sink.close()


def test_a_kept_connection_that_was_closed_is_made_anew(receiver: Receiver) -> None:
    sink = hook(receiver)
    sink.deliver(told(1))
    receiver.answers = [0]
    sink.deliver(told(2))
    assert [each["notifications"][0]["n"] for each in receiver.posts] == [1, 2, 2]
    sink.close()


def test_a_receiver_that_does_not_answer_in_time_has_not_taken_it(receiver: Receiver) -> None:
    sink = hook(receiver, timeout_ms=100)
    receiver.slow_s = 1.0
    with pytest.raises((gevent.Timeout, OSError)):
        sink.deliver(told(1))
    assert not sink._idle
    receiver.slow_s = 0.0
    sink.deliver(told(1))
    sink.close()


def test_nobody_there_is_an_error(receiver: Receiver) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sink = open_sink(NotifierConfig(name="hook", kind="webhook", url=f"http://127.0.0.1:{port}/"))
    with pytest.raises(OSError):
        sink.deliver(told(1))


def test_a_token_goes_along_and_must_be_private(receiver: Receiver, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o644)
    with pytest.raises(ConfigError, match="0600"):
        hook(receiver, token_file=str(token))
    token.chmod(0o600)
    hook(receiver, token_file=str(token)).deliver(told(1))
    assert receiver.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("notifier", "says"),
    [
        (NotifierConfig(name="a", kind="webhook", url="ftp://x"), "http"),
        (NotifierConfig(name="a", kind="webhook", url="http://x", token_file="/none"), "token_file"),
    ],
)
def test_what_cannot_be_opened_is_refused_before_the_conductor_begins(notifier: NotifierConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_notifiers(NotificationsConfig(notifiers=[notifier]))


def test_a_plug_in_that_is_not_there_is_refused_by_name_and_keeps_no_conductor_from_beginning() -> None:
    absent = NotifierConfig(name="a", kind="smoke-signals")
    with pytest.raises(NotifierRefused, match=r"notifier a: .* log, webhook, found smoke-signals"):
        open_any_sink(absent, BUILT_IN)
    check_notifiers(NotificationsConfig(notifiers=[absent]))


def test_names_are_unique() -> None:
    twice = [NotifierConfig(name="a", kind="log"), NotifierConfig(name="a", kind="log")]
    with pytest.raises(ConfigError, match="unique"):
        check_notifiers(NotificationsConfig(notifiers=twice))
    check_notifiers(NotificationsConfig(notifiers=twice[:1]))
