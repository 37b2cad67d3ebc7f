# SPDX-License-Identifier: MIT
"""joblet-config.yml, the server's configuration: the keys that Joblet clients and servers publish,
as far as they mean something here, and some of our own (sections `limits`, `isolation`, `stream`,
`journal` and `paths`, and spill_directory, on_full and sync_interval of `log_persistence`).

A key that nobody knows gives a warning; the published keys without a meaning here give one note.
"""

import dataclasses
import hashlib
import hmac
import os
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from joblet.config.kinds import (
    DEFAULT_MAX_TASKS,
    FORMAT,
    LEVEL,
    MAX_INT32,
    MAX_JOBS,
    MAX_TASKS,
    MIN_CPU_PERCENT,
    MIN_MEMORY_MIB,
    MIN_TASKS,
    PATH,
    PROFILES,
    Address,
    Choice,
    Duration,
    Flag,
    Pem,
    Size,
    Text,
    Whole,
    setting,
)
from joblet.config.reading import (
    ConfigurationError,
    document,
    fill,
    mapping,
    read,
    shown,
    unknown,
    value,
)

SEARCH: Final = (
    "/opt/joblet/config/joblet-config.yml",
    "config/joblet-config.yml",
    "joblet-config.yml",
    "/etc/joblet/joblet-config.yml",
)
MACHINE_ID: Final = "/etc/machine-id"
# An id made from a machine's id must not reveal it (machine-id(5)), so it is hashed with this one.
APPLICATION_ID: Final = uuid.UUID("5c6f1d0e-8a4b-4f0b-9d0c-7a3f3f6e2b91")
GIB: Final = 1 << 30
# What is done with output that comes faster than the disk takes it (server.logs.overflow); jobs
# may choose, too.
OVERFLOW_STRATEGIES: Final = ("compress", "spill", "sample", "alert")
ON_FULL: Final = ("block", "drop")


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    address: str = setting("address", Address(), "0.0.0.0")  # noqa: S104 - a remote executor listens
    port: int = setting("port", Whole(1, 65535), 50051)
    # Scripts read it, so a server always has one: without a value, made from the machine's id.
    node_id: str = setting(
        "nodeId", Text(r"[!-~]{0,128}", "text without spaces, at most 128 characters"), ""
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Security:
    """The server's certificate and key, and the CA that signs clients: PEM text, "" if absent."""

    server_cert: str = setting("serverCert", Pem("CERTIFICATE", "a certificate as PEM text"), "")
    server_key: str = setting(
        "serverKey",
        Pem("PRIVATE KEY", "a private key as PEM text, without a passphrase"),
        "",
        secret=True,
    )
    ca_cert: str = setting("caCert", Pem("CERTIFICATE", "a certificate as PEM text"), "")


@dataclasses.dataclass(frozen=True, slots=True)
class Joblet:
    """What a job gets when its client asks for nothing, and how many there may be."""

    default_cpu_limit: int = setting(
        "defaultCpuLimit", Whole(MIN_CPU_PERCENT, MAX_INT32, "none"), 0
    )  # %
    default_memory_limit: int = setting(
        "defaultMemoryLimit", Whole(MIN_MEMORY_MIB, MAX_INT32, "none"), 0
    )  # MiB
    default_io_limit: int = setting("defaultIoLimit", Whole(1, 2**53, "none"), 0)  # bytes a second
    max_concurrent_jobs: int = setting("maxConcurrentJobs", Whole(1, MAX_JOBS, "no limit"), 0)
    job_timeout_us: int = setting("jobTimeout", Duration("1ms", "8784h", "none"), "0s")

    @property
    def job_bound(self) -> int:
        """How many jobs may run at once: what is configured, at most one per range of user ids."""
        return self.max_concurrent_jobs or MAX_JOBS


@dataclasses.dataclass(frozen=True, slots=True)
class Cgroup:
    # From SIGTERM to SIGKILL when a job is stopped. The bound keeps a shutdown of the host from
    # waiting for one job's patience.
    grace_us: int = setting("cleanupTimeout", Duration("1ms", "5m", "SIGKILL at once"), "5s")


@dataclasses.dataclass(frozen=True, slots=True)
class Grpc:
    """0 is "for ever" for the three ages. A connection's age is unlimited unless set, because the
    end of a connection is the end of every stream on it.
    """

    max_recv_bytes: int = setting("maxRecvMsgSize", Size(1 << 20, MAX_INT32), 134_217_728)
    max_send_bytes: int = setting("maxSendMsgSize", Size(1 << 20, MAX_INT32), 134_217_728)
    max_header_bytes: int = setting("maxHeaderListSize", Size(8192, MAX_INT32), 16_777_216)
    keepalive_time_us: int = setting("keepAliveTime", Duration("1s", "24h"), "10s")
    # Longer than the 3 s that others use: behind a full buffer on a slow line, the answer to a
    # ping comes late, and a follower would be cut off for being slow.
    keepalive_timeout_us: int = setting("keepAliveTimeout", Duration("100ms", "1h"), "20s")
    max_streams: int = setting("maxConcurrentStreams", Whole(1, MAX_INT32), 1000)
    handshake_timeout_us: int = setting("connectionTimeout", Duration("100ms", "10m"), "10s")
    max_idle_us: int = setting("maxConnectionIdle", Duration("1s", "8784h", "ever"), "300s")
    max_age_us: int = setting("maxConnectionAge", Duration("1s", "8784h", "ever"), "0s")
    max_age_grace_us: int = setting("maxConnectionAgeGrace", Duration("1s", "8784h", "ever"), "0s")


@dataclasses.dataclass(frozen=True, slots=True)
class Logging:
    level: str = setting("level", LEVEL, "INFO")
    format: str = setting("format", FORMAT, "text")


@dataclasses.dataclass(frozen=True, slots=True)
class LimitPolicy:
    """Ours: what to do about a limit this host cannot enforce, a job's tasks by default, and the
    smallest memory limit that a client may ask for."""

    on_missing_controller: str = setting(
        "on_missing_controller", Choice(("refuse", "warn")), "refuse"
    )
    default_max_tasks: int = setting(
        "default_max_tasks", Whole(MIN_TASKS, MAX_TASKS), DEFAULT_MAX_TASKS
    )
    min_memory: int = setting(
        "min_memory", Size(MIN_MEMORY_MIB << 20, 1 << 50), MIN_MEMORY_MIB << 20
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Isolation:
    """Ours: how jobs are kept apart from the machine, where their clients do not say."""

    profile: str = setting("profile", Choice(PROFILES), "default")


@dataclasses.dataclass(frozen=True, slots=True)
class Buffers:
    # At most this much output in one message; clients refuse messages of 4 MiB and more.
    chunk_bytes: int = setting("chunk_size", Size(4096, (4 << 20) - 65536), 512 << 10)


@dataclasses.dataclass(frozen=True, slots=True)
class Monitoring:
    # How often the server looks at its host: `rnx monitor status` shows the last look.
    interval_us: int = setting("system_interval", Duration("1s", "1h"), "10s")


@dataclasses.dataclass(frozen=True, slots=True)
class Streaming:
    """Ours: answers that come in many messages, such as a job's output."""

    # Who reads on takes up a removed stream where it stood, so it need not be long; but what is
    # read slowly must get through a whole message in that time.
    stall_timeout_us: int = setting("stall_timeout", Duration("100ms", "24h", "never"), "1m")


@dataclasses.dataclass(frozen=True, slots=True)
class LogPersistence:
    """How output is kept. Published, except spill_directory, on_full, sync_interval, compress and
    the two bounds of bytes."""

    retention_days: int = setting("retention_days", Whole(1, 36500, "ever"), 7)
    max_bytes_per_job: int = setting("max_bytes_per_job", Size(16 << 20, 1 << 50, "no limit"), 0)
    max_bytes: int = setting(
        "max_bytes", Size(64 << 20, 1 << 60, "four fifths of the filesystem they are on"), 0
    )
    compress: bool = setting("compress", Flag(), default=True)
    # The published default of 2 MiB would be hundreds of files a second at full speed.
    rotation_bytes: int = setting("rotation_size_bytes", Size(1 << 20, 1 << 40), 64 << 20)
    queue_chunks: int = setting("queue_size", Whole(16, 10_000_000), 100_000)
    memory_limit: int = setting(
        "memory_limit", Size(16 << 20, 1 << 44, "a tenth of the RAM, at most 1 GiB"), 0
    )
    batch_chunks: int = setting("batch_size", Whole(1, 100_000), 100)
    flush_interval_us: int = setting("flush_interval", Duration("1ms", "1m"), "100ms")
    overflow_strategy: str = setting("overflow_strategy", Choice(OVERFLOW_STRATEGIES), "compress")
    spill_directory: str = setting("spill_directory", PATH, "/var/lib/joblet/spill")
    on_full: str = setting("on_full", Choice(ON_FULL), "block")
    sync_interval_us: int = setting("sync_interval", Duration("10ms", "10m"), "1s")

    def segment_bytes(self) -> int:
        """How large a segment is, so that a job's bound is kept to within an eighth."""
        if not self.max_bytes_per_job:
            return self.rotation_bytes
        return min(self.rotation_bytes, self.max_bytes_per_job // 8)

    def all_bytes(self, filesystem_bytes: int) -> int:
        """How much all logs may take, on a filesystem of this size."""
        return self.max_bytes or filesystem_bytes * 4 // 5

    def stage_bytes(self, ram_bytes: int) -> int:
        """How much staged output may wait for the disk, on a machine with so much RAM."""
        return self.memory_limit or min(GIB, ram_bytes // 10)


@dataclasses.dataclass(frozen=True, slots=True)
class JournalCopies:
    """Ours: how much of what jobs print is copied to the host's journal, which takes some 10 MB a
    second and a core for it. Rates are bytes a second; a line counts 500 more than its own."""

    rate: int = setting("copy_rate", Size(1024, 1 << 40, "no copies"), 250_000)
    burst: int = setting("copy_burst", Size(1 << 16, 1 << 40), 1_000_000)
    rate_of_all: int = setting("copy_rate_of_all", Size(1024, 1 << 40), 500_000)
    burst_of_all: int = setting("copy_burst_of_all", Size(1 << 16, 1 << 40), 2_000_000)


@dataclasses.dataclass(frozen=True, slots=True)
class Paths:
    """Ours. What is below them is made and owned as the units and tmpfiles.d say."""

    state_dir: str = setting("state_dir", PATH, "/var/lib/joblet/state")
    logs_dir: str = setting("logs_dir", PATH, "/var/lib/joblet/logs")
    stage_dir: str = setting("stage_dir", PATH, "/run/joblet-stage")
    init_socket: str = setting("init_socket", PATH, "/run/joblet-init.sock")


@dataclasses.dataclass(frozen=True, slots=True)
class ServerConfig:
    """Each field is a section of the file, by its name."""

    server: Server = Server()
    security: Security = Security()
    joblet: Joblet = Joblet()
    cgroup: Cgroup = Cgroup()
    grpc: Grpc = Grpc()
    logging: Logging = Logging()
    limits: LimitPolicy = LimitPolicy()
    isolation: Isolation = Isolation()
    buffers: Buffers = Buffers()
    stream: Streaming = Streaming()
    log_persistence: LogPersistence = LogPersistence()
    monitoring: Monitoring = Monitoring()
    journal: JournalCopies = JournalCopies()
    paths: Paths = Paths()


# Published by other Joblet servers, without a meaning here: what they set is fixed, measured, or
# init mode's matter. An empty set is a whole section.
WITHOUT_MEANING: Final[Mapping[str, frozenset[str]]] = {
    "server": frozenset({"mode", "timeout"}),
    "joblet": frozenset({"cleanupTimeout"}),
    "cgroup": frozenset({"baseDir", "namespaceMount", "enableControllers"}),
    "logging": frozenset({"output"}),
    "buffers": frozenset({"pubsub_buffer_size"}),
    "monitoring": frozenset({"enabled", "cloud_detection"}),
    **dict.fromkeys(
        (
            "filesystem",
            "network",
            "volumes",
            "runtime",
            "gpu",
            "ipc",
            "state",
            "persist",
        ),
        frozenset[str](),
    ),
}

# Environment variables that override a setting: section and key.
OVERRIDES: Final = {
    "JOBLET_SERVER_ADDRESS": ("server", "address"),
    "JOBLET_LOG_LEVEL": ("logging", "level"),
    "JOBLET_LOG_FORMAT": ("logging", "format"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, where it is from ("" for the defaults), and what to tell the operator:
    `warnings` deserve a look, `notes` do not.
    """

    config: ServerConfig
    source: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find(environ: Mapping[str, str], *, cwd: Path) -> Path | None:
    """The server's configuration file: JOBLET_CONFIG_PATH (which need not exist: then loading says
    so), else the first that exists of the places in SEARCH.
    """
    if named := environ.get("JOBLET_CONFIG_PATH"):
        return cwd / named
    return next((path for place in SEARCH if os.path.lexists(path := cwd / place)), None)


def load(path: Path | None, *, environ: Mapping[str, str], machine_id: str | None = None) -> Loaded:
    """The configuration from `path` (None: the defaults) with the environment's overrides.

    machine_id: what /etc/machine-id holds, to make a node id from where none is configured; with
    None the node id may stay empty.
    Raises ConfigurationError. Reads one file.
    """
    if path is None:
        return parse("", "", environ=environ, machine_id=machine_id)
    text, status = read(path)
    loaded = parse(text, str(path), environ=environ, machine_id=machine_id)
    if loaded.config.security.server_key and status.st_mode & stat.S_IRWXO:
        warning = f"{path} holds the server's key and is open to every user: chmod 0640 {path}"
        return dataclasses.replace(loaded, warnings=(*loaded.warnings, warning))
    return loaded


def parse(
    text: str, source: str, *, environ: Mapping[str, str], machine_id: str | None = None
) -> Loaded:
    """Like load, from text; `source` is the file's name in messages."""
    raw = document(text, source)
    warnings: list[str] = []
    _version(raw.pop("version", "3.0"), source, warnings)
    _move_log_settings(raw, source, warnings)
    kinds: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(ServerConfig)}
    sections: dict[str, Any] = {}
    ignored: list[str] = []
    for name, kind in kinds.items():
        section = mapping(raw.pop(name, None), name, source)
        without = WITHOUT_MEANING.get(name, frozenset())
        ignored += [f"{name}.{key}" for key in section if key in without]
        section = {key: given for key, given in section.items() if key not in without}
        sections[name] = fill(kind, section, f"{name}.", source)
        known = [f.metadata["key"] for f in dataclasses.fields(kind)]
        warnings += [unknown(key, known, f"{name}.", source) for key in section]
    ignored += [key for key in raw if key in WITHOUT_MEANING]
    warnings += [unknown(key, list(kinds), "", source) for key in raw if key not in WITHOUT_MEANING]
    for variable, (name, key) in OVERRIDES.items():
        if given := environ.get(variable):
            sections[name] = _override(sections[name], key, given, f"{variable} in the environment")
    if machine_id is not None and not sections["server"].node_id:
        sections["server"] = dataclasses.replace(sections["server"], node_id=node_id(machine_id))
    note = f"{source}: without a meaning in this server: {', '.join(ignored)}"
    return Loaded(ServerConfig(**sections), source, tuple(warnings), (note,) if ignored else ())


def require_certificates(loaded: Loaded) -> None:
    """Raises ConfigurationError unless there is all that mutual TLS needs."""
    fields = dataclasses.fields(Security)
    missing = [
        f"security.{f.metadata['key']}"
        for f in fields
        if not getattr(loaded.config.security, f.name)
    ]
    if not missing:
        return
    where = (
        f"no {', no '.join(missing)} in {loaded.source}" if loaded.source else "there is no file"
    )
    places = "" if loaded.source else f" (looked for {', '.join(SEARCH)})"
    raise ConfigurationError(where + places, hint="make certificates with: joblet cert init")


def node_id(machine_id: str) -> str:
    """A stable id for this machine that does not reveal `machine_id` (32 hex digits): the same as
    `systemd-id128 -u -a APPLICATION_ID machine-id` prints. Raises ConfigurationError.
    """
    try:
        key = bytes.fromhex(machine_id.strip())
    except ValueError:
        key = b""
    if len(key) != 16 or not any(key):
        raise ConfigurationError(
            f"server.nodeId is not set, and {MACHINE_ID} holds no machine id to make one from",
            hint="set server.nodeId, or run systemd-machine-id-setup",
        )
    digest = hmac.digest(key, APPLICATION_ID.bytes, hashlib.sha256)[:16]
    return str(uuid.UUID(bytes=digest, version=4))


def read_machine_id(path: str = MACHINE_ID) -> str:
    """What the file holds, or "" if it cannot be read: a machine without an id."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _override(section: Any, key: str, given: str, name: str) -> Any:
    field = next(f for f in dataclasses.fields(section) if f.metadata["key"] == key)
    return dataclasses.replace(section, **{field.name: value(field.metadata, given, name)})


def _move_log_settings(raw: dict[str, Any], source: str, warnings: list[str]) -> None:
    """log_persistence may stand in `buffers` too, and its `directory` is our paths.logs_dir."""
    buffers = raw.get("buffers")
    if isinstance(buffers, dict) and (nested := buffers.pop("log_persistence", None)) is not None:
        if "log_persistence" in raw:
            warnings.append(
                f"buffers.log_persistence in {source} is not read: log_persistence is there too"
            )
        else:
            raw["log_persistence"] = nested
    logs = raw.get("log_persistence")
    if not isinstance(logs, dict) or (directory := logs.pop("directory", None)) is None:
        return
    paths = mapping(raw.get("paths"), "paths", source)
    if "logs_dir" in paths:
        warnings.append(
            f"log_persistence.directory in {source} is not read: paths.logs_dir is there too"
        )
        return
    checked = value(
        {"kind": PATH, "secret": False}, directory, f"log_persistence.directory in {source}"
    )
    raw["paths"] = {**paths, "logs_dir": checked}


def _version(given: object, source: str, warnings: list[str]) -> None:
    if str(given).partition(".")[0] != "3":
        warnings.append(f"version in {source} is {shown(given)}; this server reads version 3.0")
