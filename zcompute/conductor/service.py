"""The conductor's process: opens the store, listens, and lives one incarnation after the other until it is stopped."""

import errno
import gc
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable

import gevent
from gevent.event import Event

from zcompute.bus import BusConfigError, Endpoint, Keyring, Limits, Peer, register_error
from zcompute.bus.errors import Unavailable
from zcompute.conductor.doors import Doors, doors_of
from zcompute.conductor.errors import ConductorError
from zcompute.conductor.keywatch import KeyWatch
from zcompute.conductor.life import Life
from zcompute.conductor.notifiers.service import check_notifiers
from zcompute.conductor.primary import CellDatabase
from zcompute.config import Config, ConfigError, DatabaseConfig
from zcompute.db.errors import StoreError
from zcompute.keys import KeyFile, load_identity, read_keyring, read_keys
from zcompute.measure import Measure, Spread
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.lowering import attributes, lowering_for
from zcompute.objects.methods import TOPIC_EPOCHS, TOPIC_MAP

log = logging.getLogger(__name__)

ROLE = "conductor"
START_S_MAX = 15.0
STOP_S_MAX = 2.5
BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 5.0
LIMITS = Limits(lane_credit=100)  # 4 lanes at most: 400 of a link's 1,000, and 500 for keys of unknown lane
GARBAGE_THRESHOLDS = (50_000, 50, 50)  # Python's own (700, 10, 10) cost half of a conductor's time under load: all that
# waits for a commit is walked again and again, and hardly anything of it is ever part of a cycle
LONG_LIFE_S = 30.0  # a life of so long resets the back-off


class ConductorService:
    """``start`` returns when the first incarnation is ready, or START_S_MAX have passed (it goes on trying then)."""

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        """``reread`` reads the configuration anew, for a password of the database that has changed."""
        if config.database is None:
            raise ConfigError("section [database]: a conductor needs its cell's database, found none")
        if not config.bus.listen:
            raise ConfigError('section [bus]: a conductor needs listen = "tcp://address:port", found none')
        check_notifiers(config.notifications)
        self._config = config
        self._database = config.database
        self._reread = reread
        self._keyring: Keyring | None = read_keyring(config.bus.keyring)
        self._identity = load_identity(config, ROLE)
        self._keys = read_keys(config.bus.key_file) if config.bus.key_file else None
        self._doors: Doors | None = None
        self._watch = KeyWatch(config.bus.keyring, self._keyring, config.bus.key_file, self._follow_keys)
        self._base: CellDatabase | None = None
        self._life: Life | None = None
        self._ready = Event()
        self._stopping = Event()
        self._failure: BaseException | None = None
        self._lives = 0
        self._refused: Counter[str] = Counter()  # of all lives: what an outage turned away outlives the life it ended
        self._living: gevent.Greenlet | None = None
        self.address = config.bus.listen  # for port 0: the one that was taken

    def start(self) -> None:
        """Begin. Raises ConfigError, ConductorError, StoreError (a URL that cannot be), OSError for a port in use."""
        for kind in SERVICE_ERRORS:
            register_error(kind)
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        reread = self._reread_database if self._reread is not None else None
        base = self._base = CellDatabase(self._database, self._config.service.cell, reread, self._leave)
        endpoint = self._listen()
        base.start()
        self._living = gevent.spawn(self._live, base, endpoint)
        self._watch.start()
        self._ready.wait(START_S_MAX)
        if self._failure is not None:
            raise self._failure
        if not self._ready.is_set():
            log.warning("not ready yet after start_s_max=%s, going on", START_S_MAX)

    def run(self) -> None:
        """Start, and wait until ``stop`` is called from elsewhere."""
        self.start()
        self._stopping.wait()

    def stop(self) -> None:
        """End: partitions handed over to the living, links closed, the database released; within STOP_S_MAX."""
        self._stopping.set()
        self._watch.stop()
        if self._living is not None:
            if self._life is not None:
                gevent.spawn(self._life.stop)
            self._living.join(STOP_S_MAX)
            if not self._living.ready():
                log.warning("not ended within stop_s_max=%s", STOP_S_MAX)
                self._living.kill(timeout=0.3)
        if self._base is not None:
            self._base.stop()

    def measures(self) -> Iterable[Measure | Spread]:
        """What the present life measures; nothing between two lives."""
        life = self._life
        return () if life is None else life.measures()

    def _reread_database(self) -> DatabaseConfig:
        """[database] as it is configured now. Raises ValueError for a configuration that has none."""
        try:
            config = self._reread() if self._reread is not None else self._config
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return config.database or self._database

    def _leave(self, reason: str) -> None:
        """The primary is another one by now: the life on the former ends at once."""
        if self._life is not None:
            self._life.abandon(f"the primary is lost: {reason}")

    # -- lives ------------------------------------------------------------------------------------------------------

    def _live(self, base: CellDatabase, endpoint: Endpoint | None) -> None:
        """One life after the other; the pause between them grows while they are short."""
        pause_s = BACKOFF_S_MIN
        while not self._stopping.is_set():
            begun = time.monotonic()
            if not base.reopen():
                self._stopping.wait(BACKOFF_S_MIN)
                continue
            try:
                if endpoint is None:
                    endpoint = self._listen()
                place = self._doors.announced if self._doors is not None else (self.address, "")
                self._lives += 1
                life = self._life = Life(
                    self._config, base.store, endpoint, place, self._ready.set, self._lives, base.reading, base.stat,
                    self._refused,
                )  # fmt: skip
                log.info("incarnation over reason=%s", life.run())
            except (StoreError, OSError) as error:
                log.warning("incarnation failed error=%s: %s", type(error).__name__, error)
            except ConductorError as error:
                self._fail(error)
                return
            except (Exception, gevent.Timeout):  # a Timeout is no Exception; the next life must begin all the same
                log.exception("incarnation failed")
            if endpoint is not None:
                endpoint.close()
            endpoint = self._life = self._doors = None
            if time.monotonic() - begun > LONG_LIFE_S:
                pause_s = BACKOFF_S_MIN
            if base.moved:
                pause_s = BACKOFF_S_MIN
                continue
            self._stopping.wait(pause_s * random.uniform(0.7, 1.0))
            pause_s = min(BACKOFF_S_MAX, pause_s * 2)

    def _fail(self, error: ConductorError) -> None:
        """A failure that no new incarnation cures: told by start(), or the process stays without partitions."""
        log.error("the conductor cannot work: %s", error)
        self._failure = error
        self._ready.set()

    def _listen(self) -> Endpoint:
        """A new endpoint on the configured address. Raises OSError when the port is in use, ConfigError."""
        endpoint = Endpoint(
            self._identity,
            keyring=self._keyring,
            limits=LIMITS,
            admit=self._admit,
            topics=(TOPIC_MAP, TOPIC_EPOCHS),
            attributes=attributes,
            lowering=lowering_for,
        )
        doors = Doors(endpoint)
        try:
            addresses = doors.open(doors_of(self._keys, self.address))
        except BusConfigError as error:
            endpoint.close()
            number = getattr(error.__cause__, "errno", None)
            if number == errno.EADDRINUSE:
                raise OSError(errno.EADDRINUSE, f"{self.address} is in use by another process") from error
            raise ConfigError(f"[bus] listen: {error}") from error
        self._doors = doors
        if self._keys is None or not self._keys.listen:
            self.address = addresses[0]
        return endpoint

    # -- keys -------------------------------------------------------------------------------------------------------

    def _follow_keys(self, keys: KeyFile | None) -> None:
        """Bring ports and map into step with the key file; what fails now is tried again at the next look."""
        doors, life = self._doors, self._life
        if keys is None or doors is None or life is None:
            return
        self._keys = keys
        wanted = doors_of(keys, self.address)
        doors.open(wanted)
        try:
            told = doors.announced if life.announce(doors.announced) else ("", "")
        except StoreError as error:
            log.warning("address not announced error=%s", error)
            return
        doors.close_others(wanted, told)

    def _admit(self, peer: Peer) -> None:
        life = self._life
        if life is None:
            raise Unavailable(f"conductor {self._config.service.id} is not ready yet: try again")
        life.admit(peer)
