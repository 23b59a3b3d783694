"""The API's process: the region behind it, the application, the HTTP server."""

import gc
import logging
import socket
from collections.abc import Iterable

from zcompute.api.app import make_app
from zcompute.api.auth import Authenticator
from zcompute.api.listing import new_room
from zcompute.api.region import BusRegion
from zcompute.api.settings import LIMITS
from zcompute.api.wsgi import Server, listen
from zcompute.config import Config, ConfigError
from zcompute.keys import load_identity
from zcompute.measure import Measure

log = logging.getLogger(__name__)

ROLE = "api"
GARBAGE_THRESHOLDS = (50_000, 50, 50)  # as a conductor's: a page is hundreds of objects, none of them in a cycle


class ApiService:
    """One API process. ``start()`` returns when it listens; it answers 503 until the region is linked (/healthz)."""

    def __init__(self, config: Config, listener: socket.socket | None = None) -> None:
        """``listener``: a socket that listens already, shared with other processes."""
        if not config.api.token_file:
            raise ConfigError("api.token_file: expected a file with the tokens that are accepted, found none")
        if not config.bus.root:
            raise ConfigError("bus.root: expected the conductors of the root cell, found none")
        self._config = config
        self._listener = listener
        self._region = BusRegion(config, load_identity(config, ROLE))
        self._authenticator = Authenticator(config.api.token_file)
        self._room = new_room()
        self._server: Server | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; the port is the real one when 0 was configured."""
        if self._server is None:
            return self._config.api.host, self._config.api.port
        host, port = self._server.socket.getsockname()[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Listen, dial, serve. Raises OSError when the address cannot be had."""
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        config = self._config.api
        listener = self._listener or listen(config.host, config.port, LIMITS.backlog)
        self._region.start()
        app = make_app(self._region, self._authenticator, config, self._room)
        self._server = Server(listener, app, shared=self._listener is not None)
        self._server.start()
        log.info("listening address=%s:%d", *self.address)

    def measures(self) -> Iterable[Measure]:
        """Which cells answer, and what room lists have."""
        yield from self._region.measures()
        yield from self._room.measures()

    def stop(self) -> None:
        """Finish what is under way, for two seconds at most, then close everything."""
        server, self._server = self._server, None
        if server is not None:
            server.end(LIMITS.stop_s)
        self._region.stop()
