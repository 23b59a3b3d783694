"""What a dialler and a listener need of the endpoint to which they belong."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import zmq

from zcompute.bus.conduct import Conduct
from zcompute.bus.counters import Counters, Refusals
from zcompute.bus.envelope import Hello, Welcome
from zcompute.bus.identity import Identity, Keyring, Peer
from zcompute.bus.link import Link
from zcompute.bus.linkhome import LinkHome
from zcompute.bus.serving import Serving
from zcompute.bus.sessions import Sessions
from zcompute.bus.streams import Streams
from zcompute.bus.workers import WorkerPool

Greeting = TypeVar("Greeting", Hello, Welcome)


class Home(LinkHome, Protocol):
    """An endpoint, as those that carry its links see it."""

    counters: Counters
    refusals: Refusals
    identity: Identity
    keyring: Keyring | None
    admit: Callable[[Peer], None] | None
    context: zmq.Context[Any]
    sessions: Sessions
    conduct: Conduct
    streams: Streams
    admit_pool: WorkerPool

    @property
    def serving(self) -> Serving: ...

    def greet(self, greeting: type[Greeting]) -> Greeting:
        """Our hello or welcome."""

    def retry_blocked(self, link: Link) -> None:
        """The socket may take frames again."""

    def retry_all_blocked(self) -> None:
        """Some peer's queue may have room again."""
