"""One API process' worth of service, over a fake region on the real bus."""

import http.client
import json
import os
import time
from collections.abc import Iterator

import gevent
import pytest

from tests.api.fake_region import FakeRegion
from zcompute.api.server import ApiService
from zcompute.config import ApiConfig, BusConfig, Config, PeerConfig, ServiceConfig

TOKENS = """
[[tokens]]
token = "admin-token"
project_id = "ops"
user_id = "root"
is_admin = true

[[tokens]]
token = "demo-token"
project_id = "demo"
user_id = "ann"

[[tokens]]
token = "other-token"
project_id = "other"
user_id = "bob"
"""


class Answer:
    """A response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.raw = response.read()

    @property
    def body(self):
        return json.loads(self.raw)

    @property
    def fault(self) -> tuple[str, int, str]:
        """(name, code, message) of an error body, which has nothing else."""
        ((name, fault),) = self.body.items()
        assert fault["code"] == self.status
        return name, fault["code"], fault["message"]


class Client:
    """One keep-alive connection with a token."""

    def __init__(self, address: tuple[str, int], token: str | None = "demo-token") -> None:
        self.address = address
        self.token = token
        self.connection = http.client.HTTPConnection(*address, timeout=20)

    def ask(self, method: str, path: str, body=None, headers=None) -> Answer:
        sent = {"X-Auth-Token": self.token} if self.token else {}
        if isinstance(body, dict):
            body = json.dumps(body)
        if body is not None:
            sent["Content-Type"] = "application/json"
        self.connection.request(method, path, body, sent | (headers or {}))
        return Answer(self.connection.getresponse())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def create(self, headers=None, **fields) -> Answer:
        server = {"name": "web", "flavorRef": "1", "imageRef": "img"} | fields
        return self.ask("POST", "/v2.1/servers", {"server": server}, headers)

    def created(self, **fields) -> str:
        answer = self.create(**fields)
        assert answer.status == 202, answer.raw
        return answer.body["server"]["id"]

    def close(self) -> None:
        self.connection.close()


def wait_until(condition, what: str, timeout_s: float = 10.0) -> None:
    ends_at_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at_s, f"{what} did not happen within {timeout_s} s"
        gevent.sleep(0.01)


def api_config(tmp, region: FakeRegion, **api) -> Config:
    token_file = tmp / "tokens.toml"
    if not token_file.exists():
        token_file.write_text(TOKENS)
        os.chmod(token_file, 0o600)
    return Config(
        service=ServiceConfig(id="api-1", cell="root", state_dir=str(tmp)),
        bus=BusConfig(root=[PeerConfig(id="root-1", address=region.root.address)]),
        api=ApiConfig(**({"port": 0, "token_file": str(token_file), "deadline_ms": 3000, "list_limit_max": 50} | api)),
    )


def is_healthy(service: ApiService) -> bool:
    client = Client(service.address)
    try:
        return client.get("/healthz").status == 200
    finally:
        client.close()


@pytest.fixture(scope="module")
def fake_region() -> Iterator[FakeRegion]:
    region = FakeRegion()
    yield region
    region.close()


@pytest.fixture(scope="module")
def service(fake_region: FakeRegion, tmp_path_factory) -> Iterator[ApiService]:
    service = ApiService(api_config(tmp_path_factory.mktemp("api"), fake_region))
    service.start()
    wait_until(
        lambda: is_healthy(service) and all(service._region.linked(cell) for cell in ("c1", "c2")), "a linked region"
    )
    yield service
    service.stop()


@pytest.fixture
def region(fake_region: FakeRegion, service: ApiService) -> FakeRegion:
    fake_region.forget_servers()
    return fake_region


@pytest.fixture
def client(service: ApiService, region: FakeRegion) -> Iterator[Client]:
    client = Client(service.address)
    yield client
    client.close()


@pytest.fixture
def admin(service: ApiService, region: FakeRegion) -> Iterator[Client]:
    client = Client(service.address, "admin-token")
    yield client
    client.close()


@pytest.fixture
def other(service: ApiService, region: FakeRegion) -> Iterator[Client]:
    client = Client(service.address, "other-token")
    yield client
    client.close()
