"""Configuration: TOML in, typed Structs out; unknown keys and wrong types are refused with file, key and reason.

One file configures one service. The descriptions here are the documented sample (``zcompute config sample``) and the
configuration reference.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec


class ConfigError(Exception):
    """The configuration cannot be used; the message names file, key and reason."""


class Section(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """Base of all sections: unknown keys are errors."""


class ServiceConfig(Section, frozen=True):
    """[service]: who this process is."""

    id: Annotated[str, msgspec.Meta(description="unique name of the service, as keys and logs show it", min_length=1)]
    cell: Annotated[str, msgspec.Meta(description="the cell it belongs to; the root cell is named root")]
    state_dir: Annotated[str, msgspec.Meta(description="directory for what must survive a restart")]


class PeerConfig(Section, frozen=True):
    """One conductor to dial."""

    id: Annotated[str, msgspec.Meta(description="service id of that conductor")]
    address: Annotated[str, msgspec.Meta(description="where it listens, tcp://host:port")]
    public_key: Annotated[str, msgspec.Meta(description="its CURVE public key (z85)")] = ""


class BusConfig(Section, frozen=True):
    """[bus]: keys, where to listen (conductors only), whom to dial first."""

    listen: Annotated[str, msgspec.Meta(description="conductors only: tcp://address:port")] = ""
    key_file: Annotated[str, msgspec.Meta(description="file with this service's CURVE key pair, mode 0600")] = ""
    keyring: Annotated[str, msgspec.Meta(description="conductors only: the public keys that may connect")] = ""
    conductors: Annotated[
        list[PeerConfig], msgspec.Meta(description="conductors of the own cell; more are learnt from the map")
    ] = []
    root: Annotated[list[PeerConfig], msgspec.Meta(description="conductors of the root cell")] = []


class ReplicaConfig(Section, frozen=True):
    """One replica of the cell's MariaDB; password_file and tls are those of [database]."""

    url: Annotated[str, msgspec.Meta(description="mysql://user:password@host:port/name, a direct replica")]
    acknowledges: Annotated[
        bool,
        msgspec.Meta(description="durability replicated: it may acknowledge (rpl_semi_sync_slave_enabled)"),
    ] = True


class DatabaseConfig(Section, frozen=True):
    """[database]: conductors only."""

    url: Annotated[str, msgspec.Meta(description="mysql://user:password@host:port/name or sqlite:////path")]
    driver: Annotated[
        str, msgspec.Meta(description="native (MariaDB), portable, or auto", pattern="^(native|portable|auto)$")
    ] = "auto"
    password_file: Annotated[
        str, msgspec.Meta(description="MariaDB: file with the password, the newest first; read again when refused")
    ] = ""
    tls: Annotated[
        bool, msgspec.Meta(description="MariaDB: demand TLS; so do tls_ca and tls_cert. Else it is used where offered")
    ] = False
    tls_ca: Annotated[
        str, msgspec.Meta(description="MariaDB: who signs its certificate (PEM); empty: whom the system trusts")
    ] = ""
    tls_cert: Annotated[str, msgspec.Meta(description="MariaDB: our own certificate (PEM)")] = ""
    tls_key: Annotated[str, msgspec.Meta(description="MariaDB: the key of tls_cert (PEM), mode 0600")] = ""
    tls_verify: Annotated[
        str,
        msgspec.Meta(
            description="what of its certificate is verified: chain and host name, the chain, nothing",
            pattern="^(identity|ca|none)$",
        ),
    ] = "identity"
    durability: Annotated[
        str,
        msgspec.Meta(
            description="what is acknowledged survives the primary's loss (replicated: MariaDB), or its crash (local)",
            pattern="^(local|replicated)$",
        ),
    ] = "local"
    replicas: Annotated[
        list[ReplicaConfig],
        msgspec.Meta(description="MariaDB: the cell's other servers: replicas that take reads"),
    ] = []
    replica_lag_ms_max: Annotated[
        int, msgspec.Meta(description="a replica further behind takes no reads", ge=100, le=60_000)
    ] = 2000


class ConductorConfig(Section, frozen=True):
    """[conductor]"""

    lanes: Annotated[int, msgspec.Meta(description="writer lanes, one connection each", ge=1, le=4)] = 2
    beat_ms: Annotated[int, msgspec.Meta(description="between two beats of the lease", ge=10)] = 100
    lease_ms: Annotated[
        int, msgspec.Meta(description="take-over after so long without a beat; 0 = 600, SQLite 3000", ge=0)
    ] = 0
    batch_rows_max: Annotated[int, msgspec.Meta(description="rows a batch", ge=1, le=5000)] = 500
    build_deadline_s: Annotated[int, msgspec.Meta(description="a build that takes longer ends in ERROR", ge=1)] = 300
    delete_deadline_s: Annotated[int, msgspec.Meta(description="a delete that takes longer parks", ge=1)] = 300
    reclaim_interval_s: Annotated[
        int, msgspec.Meta(description="a deleted server can be restored for so long; 0 = it goes at once", ge=0)
    ] = 0
    live_migration_permit_post_copy: Annotated[
        bool,
        msgspec.Meta(description="a live migration that is completed by force goes on in post-copy; else it is paused"),
    ] = False
    resize_confirm_window_s: Annotated[
        int, msgspec.Meta(description="a migrated server is confirmed by itself after so long; 0 = never", ge=0)
    ] = 0
    cross_move_deadline_s: Annotated[
        int, msgspec.Meta(description="root: a move to another cell not switched by then is rolled back", ge=10)
    ] = 3600
    cross_move_wait_s: Annotated[
        float,
        msgspec.Meta(
            description="root: a server that goes to another cell is stopped no sooner than so long after that has a "
            "row of it; longer than any list takes",
            ge=0,
        ),
    ] = 6.0
    shelved_offload_time_s: Annotated[
        int, msgspec.Meta(description="a shelved server leaves its host after so long; 0 = at once, -1 = never", ge=-1)
    ] = 0
    operations_retention_hours: Annotated[
        int, msgspec.Meta(description="a repeated request is recognised for so long", ge=1)
    ] = 168
    history_retention_hours: Annotated[
        float, msgspec.Meta(description="an instance's finished actions and their events are kept so long", gt=0)
    ] = 2160.0
    purge_every_s: Annotated[int, msgspec.Meta(description="between two looks for rows to let go", ge=1)] = 600
    root_outbox_rows_max: Annotated[
        int, msgspec.Meta(description="words owed to a root cell that is away; then new work is refused", ge=1)
    ] = 100_000
    allow_beside_compute: Annotated[
        bool, msgspec.Meta(description="start although a compute of the same host runs")
    ] = False


class FencingConfig(Section, frozen=True):
    """[fencing]: conductors of a cell, the same in each."""

    command: Annotated[
        list[str],
        msgspec.Meta(description="program and arguments that power a host off, {host} is its name; exit 0: it is off"),
    ] = []
    timeout_s: Annotated[
        float, msgspec.Meta(description="killed after so long, the host then counts as not fenced", gt=0, le=25)
    ] = 20.0


class QuotaConfig(Section, frozen=True):
    """[quota]: conductors of the root cell, the same in each."""

    instances: Annotated[
        int, msgspec.Meta(description="servers of a project without a limit of its own; -1: any", ge=-1, le=2147483647)
    ] = 10
    cores: Annotated[int, msgspec.Meta(description="their virtual cores; -1: any", ge=-1, le=2147483647)] = 20
    ram_mb: Annotated[int, msgspec.Meta(description="their memory in MiB; -1: any", ge=-1, le=2147483647)] = 51200
    server_groups: Annotated[
        int, msgspec.Meta(description="server groups of a project; -1: any", ge=-1, le=2147483647)
    ] = 10
    server_group_members: Annotated[
        int, msgspec.Meta(description="servers of a server group; -1: any", ge=-1, le=2147483647)
    ] = 10
    reconcile_s: Annotated[
        int, msgspec.Meta(description="between two looks through all usage rows; 0: none is made", ge=0)
    ] = 3600


class NotifierConfig(Section, frozen=True):
    """One notifier: the same tables in every conductor of a cell."""

    name: Annotated[
        str, msgspec.Meta(description="its cursor's name: another name begins anew", pattern="^[a-z0-9_-]{1,64}$")
    ]
    kind: Annotated[str, msgspec.Meta(description="log, webhook, or a plug-in's name")]
    url: Annotated[str, msgspec.Meta(description="webhook: http:// or https://, asked by POST")] = ""
    token_file: Annotated[str, msgspec.Meta(description="webhook: file with a bearer token, mode 0600")] = ""
    timeout_ms: Annotated[int, msgspec.Meta(description="how long one delivery may take", ge=100, le=60000)] = 5000
    batch_max: Annotated[int, msgspec.Meta(description="notifications of one delivery", ge=1, le=500)] = 100


class NotificationsConfig(Section, frozen=True):
    """[notifications]: how long they are kept, and to whom a cell's conductors give them."""

    retention_hours: Annotated[float, msgspec.Meta(description="kept so long", gt=0)] = 72.0
    retention_rows_max: Annotated[int, msgspec.Meta(description="kept of one partition", ge=1)] = 1_000_000
    purge_every_s: Annotated[int, msgspec.Meta(description="between two looks for rows to let go", ge=1)] = 60
    exists_s: Annotated[
        int, msgspec.Meta(description="period of instance.exists for billing; 0: none is told", ge=0, le=86400)
    ] = 3600
    notifiers: Annotated[list[NotifierConfig], msgspec.Meta(description="notifiers")] = []


class SchedulerConfig(Section, frozen=True):
    """[scheduler]"""

    cpu_allocation_ratio: Annotated[float, msgspec.Meta(description="virtual cores per core of a host", gt=0)] = 16.0
    ram_allocation_ratio: Annotated[float, msgspec.Meta(description="memory promised per memory of a host", gt=0)] = 1.0
    disk_allocation_ratio: Annotated[float, msgspec.Meta(description="disk promised per disk of a host", gt=0)] = 1.0


class FakeHostConfig(Section, frozen=True):
    """One fake host."""

    name: Annotated[str, msgspec.Meta(description="name of the host", min_length=1)]
    vcpus: Annotated[int, msgspec.Meta(description="cores", ge=1)] = 100
    memory_mb: Annotated[int, msgspec.Meta(description="memory in MiB", ge=1)] = 51200
    disk_gb: Annotated[int, msgspec.Meta(description="disk in GiB", ge=0)] = 100
    availability_zone: Annotated[str, msgspec.Meta(description="availability zone")] = "nova"


class ComputeConfig(Section, frozen=True):
    """[compute]"""

    driver: Annotated[str, msgspec.Meta(description="virtualisation driver", pattern="^fake$")] = "fake"
    hosts: Annotated[list[FakeHostConfig], msgspec.Meta(description="hosts of the fake driver")] = []
    fake_dir: Annotated[str, msgspec.Meta(description="where the fake driver keeps its hosts' domains")] = ""
    build_ms: Annotated[int, msgspec.Meta(description="how long a fake build takes", ge=0)] = 0
    delete_ms: Annotated[int, msgspec.Meta(description="how long a fake delete takes", ge=0)] = 0
    step_ms: Annotated[int, msgspec.Meta(description="how long any other fake change takes", ge=0)] = 0
    beat_ms: Annotated[int, msgspec.Meta(description="between two beats of a host", ge=50)] = 2000
    workers_max: Annotated[int, msgspec.Meta(description="builds and deletes at once", ge=1)] = 16


class ApiConfig(Section, frozen=True):
    """[api]"""

    host: Annotated[str, msgspec.Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(description="port to listen on", ge=0, le=65535)] = 8774
    token_file: Annotated[str, msgspec.Meta(description="file with the tokens that are accepted, mode 0600")] = ""
    body_bytes_max: Annotated[int, msgspec.Meta(description="largest request body", ge=1024)] = 114688
    deadline_ms: Annotated[int, msgspec.Meta(description="how long a request may take", ge=100)] = 30000
    list_limit_max: Annotated[int, msgspec.Meta(description="largest page of a list", ge=1)] = 1000
    workers: Annotated[int, msgspec.Meta(description="processes that serve behind one address", ge=1, le=64)] = 1
    require_known_images: Annotated[
        bool, msgspec.Meta(description="refuse to build servers of images that `zcompute image list` does not show")
    ] = False


class LogConfig(Section, frozen=True):
    """[log]"""

    level: Annotated[
        str, msgspec.Meta(description="debug, info, warning or error", pattern="^(debug|info|warning|error)$")
    ] = "info"
    file: Annotated[str, msgspec.Meta(description="append to this file; empty: standard error")] = ""
    dump_dir: Annotated[
        str, msgspec.Meta(description="where SIGUSR2 writes the state; empty: beside the file, else state_dir")
    ] = ""


class MetricsConfig(Section, frozen=True):
    """[metrics]: Prometheus metrics over HTTP, off by default."""

    listen: Annotated[
        str,
        msgspec.Meta(description="127.0.0.1:port (conductors and api), or unix:path (all; relative to state_dir)"),
    ] = ""


class Config(Section, frozen=True):
    """A whole file. Which sections a service needs: [service] and [bus] always; its own by kind."""

    service: ServiceConfig
    bus: BusConfig = BusConfig()
    database: DatabaseConfig | None = None
    conductor: ConductorConfig = ConductorConfig()
    fencing: FencingConfig = FencingConfig()
    quota: QuotaConfig = QuotaConfig()
    notifications: NotificationsConfig = NotificationsConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    compute: ComputeConfig = ComputeConfig()
    api: ApiConfig = ApiConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()


T = TypeVar("T", bound=Section)


def parse(text: str, kind: type[T], source: str = "configuration") -> T:
    """Parse TOML into ``kind``. Raises ConfigError naming source, key and reason."""
    try:
        raw: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}".replace("Object ", "section ")) from error


def load(path: str | Path) -> Config:
    """Read a service's configuration file. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    return parse(text, Config, str(path))
