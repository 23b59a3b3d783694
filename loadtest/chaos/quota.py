"""Creators of a project with a limit, beside the other traffic: the limit is never passed, and nothing leaks."""

import secrets
import time
import tomllib
import uuid

import gevent

from loadtest.chaos.check import Violation
from loadtest.chaos.cluster import Cluster
from zcompute.cli.client import ApiClient, ApiFailed, error_text
from zcompute.cli.exits import CommandError
from zcompute.cli.up.boots import IMAGE
from zcompute.cli.up.keys import write_private
from zcompute.db.errors import StoreError
from zcompute.db.store import Store
from zcompute.objects.cell import ROOT_CELL

PROJECT = "chaos-limited"
LIMIT = 5
CREATORS = 4
AT_ONCE = 3  # servers of a request: more than there is room for, mostly
REQUEST_S = 30.0
BOOT_S = 60.0
PAUSE_S = 0.1
WATCH_S = 0.05
REST_S = 40.0
QUOTA = "quota"


class LimitedProject:
    """Make it before the region starts: its token is in the API's token file. ``seen_max``: most servers that were
    charged at any look."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._token = secrets.token_urlsafe(24)
        self._greenlets: list[gevent.Greenlet] = []
        self._stopping = False
        self.created = self.refused = self.seen_max = 0
        self._wrong: list[Violation] = []
        path = cluster.paths.tokens
        if not cluster.token:  # made when it is asked for first
            raise CommandError("the region has no administrator's token")
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["tokens"]
        row = {"token": self._token, "project_id": PROJECT, "user_id": "chaos"}
        write_private(path, {"tokens": [*rows, row]})

    def start(self) -> None:
        """Set the limit and begin. Raises CommandError where the limit cannot be set."""
        client = self._cluster.client(timeout_s=REQUEST_S)
        body = {"quota_set": {"instances": LIMIT}}
        status, answer = client.repeated(
            "PUT", f"/v2.1/os-quota-sets/{PROJECT}", body, deadline=time.monotonic() + REQUEST_S
        )
        client.close()
        if status != 200:
            raise CommandError(f"the limit was not set: {status} {error_text(answer)}")
        self._greenlets = [gevent.spawn(self._create_and_delete) for _ in range(CREATORS)]
        self._greenlets.append(gevent.spawn(self._watch))

    def stop(self, timeout_s: float) -> None:
        """End what is under way. Raises what a creator raised."""
        self._stopping = True
        gevent.joinall(self._greenlets, timeout=timeout_s)
        for greenlet in self._greenlets:
            if greenlet.ready():
                greenlet.get()
        gevent.killall(self._greenlets)

    def check(self) -> list[Violation]:
        """What is charged is what the project has; it is deleted then, and nothing is charged any more."""
        found = list(self._wrong)
        if self.seen_max > LIMIT:
            found.append(Violation(QUOTA, PROJECT, f"{self.seen_max} servers were charged at once, of {LIMIT}"))
        client = self._client()
        store = self._cluster.store(ROOT_CELL)
        try:
            found += self._await_equal(client, store)
            self._delete_all(client)
            found += self._await_equal(client, store, nothing=True)
        except (ApiFailed, StoreError) as error:
            found.append(Violation(QUOTA, PROJECT, f"not looked at: {error}"))
        finally:
            store.close()
            client.close()
        return found

    def _await_equal(self, client: ApiClient, store: Store, *, nothing: bool = False) -> list[Violation]:
        deadline = time.monotonic() + REST_S
        while True:
            rows = client.repeated("GET", "/v2.1/servers", deadline=deadline)[1]["servers"]
            used = self._charged(store)
            if used == len(rows) and not (nothing and used):
                return []
            if time.monotonic() > deadline:
                return [Violation(QUOTA, PROJECT, f"{used} servers are charged, it has {len(rows)}")]
            gevent.sleep(PAUSE_S)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _client(self) -> ApiClient:
        return ApiClient(self._cluster.api_url, self._token, REQUEST_S)

    def _create_and_delete(self) -> None:
        client = self._client()
        while not self._stopping:
            try:
                self._create(client)
                self._delete_all(client)
            except ApiFailed:
                gevent.sleep(PAUSE_S)  # the outcome is not known: the next list shows what there is
        client.close()

    def _create(self, client: ApiClient) -> None:
        server = {
            "name": "limited", "flavorRef": "1", "imageRef": IMAGE, "networks": "auto", "min_count": 1,
            "max_count": AT_ONCE,
        }  # fmt: skip
        key = {"Idempotency-Key": str(uuid.uuid4())}
        deadline = time.monotonic() + BOOT_S
        status, answer = client.repeated("POST", "/v2.1/servers", {"server": server}, deadline=deadline, headers=key)
        if status == 202:
            self.created += 1
        elif status == 403:
            self.refused += 1
        else:
            self._wrong.append(Violation(QUOTA, PROJECT, f"create: status {status}: {error_text(answer)}"))
        gevent.sleep(PAUSE_S)

    def _delete_all(self, client: ApiClient) -> None:
        """Whatever the project has, whoever made it: creators meet one another's deletes."""
        deadline = time.monotonic() + BOOT_S
        for row in client.repeated("GET", "/v2.1/servers", deadline=deadline)[1]["servers"]:
            status, answer = client.repeated("DELETE", f"/v2.1/servers/{row['id']}", deadline=deadline)
            if status not in (204, 404, 409):
                self._wrong.append(Violation(QUOTA, row["id"], f"delete: status {status}: {error_text(answer)}"))

    def _watch(self) -> None:
        store = self._cluster.store(ROOT_CELL)
        try:
            while not self._stopping:
                try:
                    self.seen_max = max(self.seen_max, self._charged(store))
                except StoreError:
                    gevent.sleep(PAUSE_S)  # a fault has the database
                gevent.sleep(WATCH_S)
        finally:
            store.close()

    @staticmethod
    def _charged(store: Store) -> int:
        usages = store.project_usages("", 10)
        return next((usage.instances for usage in usages if usage.project_id == PROJECT), 0)
