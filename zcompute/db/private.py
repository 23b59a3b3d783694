"""An embedded MariaDB server: private data directory, private socket, ended with its parent.

For ``zcompute up``, tests and benchmarks. A data directory that is there already is used again.
"""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zcompute.db.errors import PrivateServerFailed, StoreError
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.url import MariaDbTarget

USER = "zcompute"
ADMINISTRATOR = "root"
SOCKET_PATH_BYTES_MAX = 100
START_DEADLINE_S = 30.0
INSTALL_DEADLINE_S = 120.0
STOP_DEADLINE_S = 10.0
ADMINISTER_DEADLINE_S = 30.0
_POLL_S = 0.02
_LOG_TAIL_CHARS = 2000
_PR_SET_PDEATHSIG = 1
_PLACES = ("/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/usr/libexec")

_DURABLE = ("--innodb-flush-log-at-trx-commit=1", "--sync-binlog=0")
_FAST = ("--innodb-flush-log-at-trx-commit=0", "--sync-binlog=0", "--skip-innodb-doublewrite")


@dataclass(frozen=True)
class Programs:
    """Where the server's programs are."""

    mariadbd: str
    install_db: str


def find_programs() -> Programs | None:
    """mariadbd and mariadb-install-db, on PATH or where distributions put them; None when one is missing."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *_PLACES))
    mariadbd = shutil.which("mariadbd", path=path)
    install_db = shutil.which("mariadb-install-db", path=path)
    return Programs(mariadbd, install_db) if mariadbd and install_db else None


class PrivateMariaDB:
    """One mariadbd of our own.

    ``port`` 0: no tcp port, the unix socket only. ``durable`` flushes the log at every commit. ``template``: a cleanly
    stopped data directory to copy instead of initialising one (0.1 s instead of 1 s); it must have been made by this
    class. The user's password is generated at the first start and kept beside the data directory, readable by its
    owner only. ``options`` may be changed: they count from the next start.
    """

    def __init__(
        self,
        datadir: str | Path,
        *,
        port: int = 0,
        durable: bool = True,
        template: str | Path | None = None,
        buffer_pool_mb: int = 64,
        options: tuple[str, ...] = (),
    ) -> None:
        self.datadir = Path(datadir).absolute()
        self.port = port
        self.user = USER
        self.password = ""
        self.socket = ""
        self._durable = durable
        self._template = None if template is None else Path(template).absolute()
        self._buffer_pool_mb = buffer_pool_mb
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: str | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    @property
    def log_path(self) -> Path:
        """The server's error log."""
        return self.datadir.parent / f"{self.datadir.name}.log"

    def start(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Initialise the data directory where it is missing, start the server, wait until it answers.

        Raises PrivateServerFailed with the end of the server's log.
        """
        if self.pid is not None:
            return
        programs = find_programs()
        if programs is None:
            raise PrivateServerFailed(
                "expected mariadbd and mariadb-install-db on PATH, found none: install mariadb-server, or use SQLite"
            )
        ends_at = time.monotonic() + deadline_s
        self._prepare(programs)
        self.socket = self._socket_path()
        self._process = self._spawn(programs)
        try:
            self._wait_ready(ends_at)
        except BaseException:
            self.stop()
            raise

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """End the server: SIGTERM, and SIGKILL when it has not ended within the deadline."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def kill(self) -> None:
        """SIGKILL, as a crash would; start() begins anew on the same data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def create_database(self, name: str) -> str:
        """Create the database where it is missing; returns its URL."""
        if not name.replace("_", "").isalnum() or not name.isascii():
            raise PrivateServerFailed(f"expected a database name of letters, digits and _, found {name!r}")
        self._run(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin".encode())
        return self.url(name)

    def administer(self, *statements: str) -> list[dict[str, Any]]:
        """Run statements as the server's administrator, who may do what its services may not; the rows of the last.

        Raises PrivateServerFailed.
        """
        rows: list[dict[str, Any]] = []
        try:
            connection = Connection(replace(self._target(), user=ADMINISTRATOR), timeout_s=ADMINISTER_DEADLINE_S)
        except StoreError as error:
            raise PrivateServerFailed(str(error)) from error
        try:
            for statement in statements:
                rows = connection.named_rows(statement.encode())
            return rows
        except (StoreError, ServerError) as error:
            raise PrivateServerFailed(f"the private database server refused a statement: {error}") from error
        finally:
            connection.cut()

    def url(self, database: str) -> str:
        """The URL of one of its databases."""
        place = f"127.0.0.1:{self.port}" if self.port else "127.0.0.1"
        return f"mysql://{self.user}:{self.password}@{place}/{database}?unix_socket={quote(self.socket)}"

    # -- the data directory ---------------------------------------------------------------------------------------

    @property
    def _secret_path(self) -> Path:
        return self.datadir / "zcompute.json"

    @property
    def _init_path(self) -> Path:
        return self.datadir / "zcompute.sql"

    def _prepare(self, programs: Programs) -> None:
        """Make the data directory, or use the one that is there."""
        if self._secret_path.exists():
            self.password = self._read_secret()
            return
        if (self.datadir / "mysql").exists():
            raise PrivateServerFailed(
                f"expected a data directory of zcompute in {self.datadir}, found another one (no zcompute.json): "
                "remove it or choose another directory"
            )
        self.datadir.parent.mkdir(parents=True, exist_ok=True)
        # Made beside its place and renamed, so that a start cut short leaves nothing half made.
        making = Path(tempfile.mkdtemp(prefix=f".{self.datadir.name}.", dir=self.datadir.parent))
        try:
            if self._template is not None:
                _run_program(["cp", "-a", "--reflink=auto", f"{self._template}/.", str(making)])
            else:
                self._install(programs, making)
            if self.datadir.exists():
                self.datadir.rmdir()
            making.rename(self.datadir)
        except OSError as error:
            raise PrivateServerFailed(f"expected {self.datadir} to be empty or missing: {error}") from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
        self.password = self._read_secret()

    def _install(self, programs: Programs, making: Path) -> None:
        _run_program(
            [
                programs.install_db,
                "--no-defaults",
                *_as_root(),
                f"--datadir={making}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
                "--innodb-log-file-size=16M",
            ],
            self._environment(),
        )
        password = secrets.token_urlsafe(24)
        # The server runs these itself at every start, before it accepts anyone; a replica's own must not be in its log.
        statements = [
            "SET SESSION sql_log_bin = 0;",
            f"ALTER USER IF EXISTS 'root'@'localhost' IDENTIFIED BY '{password}';",
        ]
        for host in ("localhost", "127.0.0.1"):
            statements.append(f"CREATE USER IF NOT EXISTS '{self.user}'@'{host}' IDENTIFIED BY '{password}';")
            statements.append(f"GRANT ALL PRIVILEGES ON *.* TO '{self.user}'@'{host}';")
            statements.append(f"REVOKE READ ONLY ADMIN ON *.* FROM '{self.user}'@'{host}';")  # replicas are read only
        _write_secret(making / self._init_path.name, "\n".join(statements) + "\n")
        _write_secret(making / self._secret_path.name, json.dumps({"user": self.user, "password": password}))

    def _read_secret(self) -> str:
        try:
            return str(json.loads(self._secret_path.read_text())["password"])
        except (OSError, ValueError, KeyError) as error:
            raise PrivateServerFailed(f"expected the password in {self._secret_path}: {error}") from error

    def _run(self, statement: bytes) -> None:
        try:
            connection = Connection(self._target())
        except StoreError as error:
            raise PrivateServerFailed(str(error)) from error
        try:
            connection.query(statement)
        except (StoreError, ServerError) as error:
            raise PrivateServerFailed(f"the private database server refused a statement: {error}") from error
        finally:
            connection.cut()

    def _target(self) -> MariaDbTarget:
        return MariaDbTarget(
            host="127.0.0.1",
            port=self.port,
            user=self.user,
            password=self.password,
            database="mysql",
            unix_socket=self.socket,
        )

    # -- the process ----------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        """A temporary directory of its own: a starting server deletes the #sql files of all others in a shared one."""
        directory = f"{self.datadir}.tmp"
        os.makedirs(directory, mode=0o700, exist_ok=True)
        return {**os.environ, "TMPDIR": directory}

    def _socket_path(self) -> str:
        beside = f"{self.datadir}.sock"
        if len(os.fsencode(beside)) <= SOCKET_PATH_BYTES_MAX:
            return beside
        self._socket_dir = tempfile.mkdtemp(prefix="zcompute-db-")
        return f"{self._socket_dir}/db.sock"

    def _spawn(self, programs: Programs) -> "subprocess.Popen[bytes]":
        network = ["--bind-address=127.0.0.1", f"--port={self.port}"] if self.port else ["--skip-networking"]
        command = [
            programs.mariadbd,
            "--no-defaults",
            *_as_root(),
            *network,
            "--skip-name-resolve",
            "--performance-schema=OFF",
            "--character-set-server=utf8mb4",
            "--innodb-rollback-on-timeout=ON",
            f"--innodb-buffer-pool-size={self._buffer_pool_mb}M",
            "--innodb-log-file-size=16M",
            "--max-connections=500",
            f"--datadir={self.datadir}",
            f"--socket={self.socket}",
            f"--pid-file={self.datadir}.pid",
            f"--log-error={self.log_path}",
            f"--init-file={self._init_path}",
            *(_DURABLE if self._durable else _FAST),
            *self.options,
        ]
        parent = os.getpid()
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.datadir,
                env=self._environment(),
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),
            )
        except OSError as error:
            raise PrivateServerFailed(f"cannot start {programs.mariadbd}: {error}") from error

    def _wait_ready(self, ends_at: float) -> None:
        while not self._answers():
            if self.pid is None:
                raise PrivateServerFailed(f"the private database server ended at its start: {self._log_tail()}")
            if time.monotonic() > ends_at:
                raise PrivateServerFailed(f"the private database server does not answer: {self._log_tail()}")
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        """The server sends a handshake packet to whoever connects, once it is ready."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(self.socket)
                return bool(probe.recv(1))
            except OSError:
                return False

    def _log_tail(self) -> str:
        try:
            return self.log_path.read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip()
        except OSError:
            return "(no log)"


def _write_secret(path: Path, content: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as secret:
        secret.write(content)


def _as_root() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []


def _die_with(parent: int) -> None:
    """In the child, before exec: get SIGTERM when the parent's thread that started us ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _run_program(command: list[str], environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=INSTALL_DEADLINE_S, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PrivateServerFailed(f"{command[0]} failed: {error}") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace")[-_LOG_TAIL_CHARS:].strip()
        raise PrivateServerFailed(f"{command[0]} ended with status {done.returncode}: {words}")
