# SPDX-License-Identifier: MIT
"""joblet-config.yml: what is read, what is refused, and in which words."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet import config
from joblet.config import server as server_module

MACHINE_ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"
PEM = "-----BEGIN {0}-----\nAAAA\n-----END {0}-----\n"

# The shape of the template that other Joblet servers ship.
PUBLISHED = """\
version: "3.0"
server: {address: "0.0.0.0", port: 50051, mode: server, timeout: 10s, nodeId: "8f94c5b2"}
joblet: {defaultCpuLimit: 0, defaultMemoryLimit: 0, defaultIoLimit: 0, maxConcurrentJobs: 0,
         jobTimeout: 0s, cleanupTimeout: 100ms}
cgroup:
  baseDir: /sys/fs/cgroup/joblet.slice/joblet.service
  namespaceMount: /sys/fs/cgroup
  enableControllers: [cpu, memory, io, pids, cpuset, devices]
  cleanupTimeout: 100ms
filesystem: {baseDir: /opt/joblet/jobs, tmpDir: "/tmp/job-{JOB_ID}", allowedMounts: [/usr/bin]}
grpc: {maxRecvMsgSize: 134217728, maxSendMsgSize: 134217728, maxHeaderListSize: 16777216,
       keepAliveTime: 10s, keepAliveTimeout: 3s, maxConcurrentStreams: 1000, connectionTimeout: 10s,
       maxConnectionIdle: 300s, maxConnectionAge: 1800s, maxConnectionAgeGrace: 30s}
logging: {level: INFO, format: text, output: stdout}
network: {enabled: true}
monitoring: {enabled: true, system_interval: 10s}
buffers: {pubsub_buffer_size: 10000, chunk_size: 1048576}
volumes: {base_path: /opt/joblet/volumes}
runtime: {base_path: /opt/joblet/runtimes}
gpu: {enabled: false}
ipc: {enabled: true}
state: {}
persist: {}
"""


def parse(text: str, **environ: str) -> config.Loaded:
    return config.parse(text, "FILE", environ=environ)


def refusal(text: str, **environ: str) -> str:
    with pytest.raises(config.ConfigurationError) as info:
        parse(text, **environ)
    return str(info.value)


def test_the_published_template_is_understood_without_a_warning() -> None:
    loaded = parse(PUBLISHED)
    assert loaded.warnings == ()
    assert loaded.config.server.node_id == "8f94c5b2"
    assert loaded.config.cgroup.grace_us == 100_000
    assert loaded.config.grpc.keepalive_timeout_us == 3_000_000
    assert loaded.config.grpc.max_age_us == 1_800_000_000
    assert loaded.config.monitoring.interval_us == 10_000_000
    (note,) = loaded.notes
    for key in (
        "server.mode",
        "server.timeout",
        "cgroup.baseDir",
        "logging.output",
        "filesystem",
        "ipc",
    ):
        assert key in note


def test_defaults() -> None:
    loaded = config.load(None, environ={}, machine_id=MACHINE_ID)
    defaults = loaded.config
    assert (loaded.source, loaded.warnings, loaded.notes) == ("", (), ())
    assert (defaults.server.address, defaults.server.port) == ("0.0.0.0", 50051)
    assert defaults.cgroup.grace_us == 5_000_000
    assert defaults.limits.on_missing_controller == "refuse"
    assert defaults.limits.default_max_tasks == config.DEFAULT_MAX_TASKS
    assert defaults.joblet.default_cpu_limit == defaults.joblet.default_memory_limit == 0
    assert defaults.joblet.job_bound == config.MAX_JOBS == 4094
    assert defaults.grpc.max_recv_bytes == defaults.grpc.max_send_bytes == 134_217_728
    assert defaults.buffers.chunk_bytes < 4 << 20
    assert defaults.paths.state_dir == "/var/lib/joblet/state"
    assert defaults.paths.init_socket == "/run/joblet-init.sock"


def test_an_empty_file_is_the_defaults() -> None:
    for text in ("", "\n# nothing\n", "---\n", "server:\njoblet:\n"):
        assert parse(text).config == config.ServerConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server: {port: x}", "server.port in FILE is 'x', not a number from 1 to 65535"),
        ("server: {port: 0}", "server.port in FILE is 0, not a number from 1 to 65535"),
        ("server: {port: true}", "server.port in FILE is True, not a number"),
        ("server: []", "server in FILE is [], not a mapping"),
        ("- a", "FILE is ['a'], not a mapping"),
        ("server: {1: 2}", "server in FILE has the key 1, which is not text"),
        (
            "server: {address: 10.0.0.1:5}",
            "server.address in FILE is '10.0.0.1:5', not an IP address",
        ),
        (
            "cgroup: {cleanupTimeout: 5}",
            "cgroup.cleanupTimeout in FILE is 5, not a duration such as",
        ),
        ("cgroup: {cleanupTimeout: 2h}", "from 1ms to 5m, or 0s for SIGKILL at once"),
        ("joblet: {defaultMemoryLimit: 4}", "not a number from 16 to 2147483647, or 0 for none"),
        ("joblet: {defaultCpuLimit: 1}", "not a number from 5 to"),
        ("joblet: {maxConcurrentJobs: 5000}", "not a number from 1 to 4094, or 0 for no limit"),
        ("logging: {level: LOUD}", "'LOUD', not one of DEBUG, INFO, WARN, ERROR"),
        ("limits: {on_missing_controller: ignore}", "not one of refuse, warn"),
        ("limits: {default_max_tasks: 0}", "not a number from 8 to 4194304"),
        ("log_persistence: {memory_limit: 5XB}", "'5XB', not a size such as"),
        (
            "log_persistence: {compress: 1}",
            "log_persistence.compress in FILE is 1, not true or false",
        ),
        ("log_persistence: {overflow_strategy: pray}", "not one of compress, spill, sample, alert"),
        (
            "log_persistence: {directory: logs}",
            "log_persistence.directory in FILE is 'logs', not an absolute path",
        ),
        ("paths: {state_dir: var/lib}", "'var/lib', not an absolute path"),
        ("buffers: {chunk_size: 4194304}", "chunk_size in FILE is 4194304, not a size"),
        ("a: [", "FILE is not YAML at line 1: "),
        ("a: b\n\tc: d", "FILE is not YAML at line 2: "),
        ("a: \x00", "FILE is not YAML: it has a character that YAML forbids"),
        ("a: 2024-13-45", "FILE has a value that YAML does not allow"),
        ("[" * 5000, "FILE is nested too deeply"),
    ],
)
def test_refusals_name_the_file_the_key_and_what_is_allowed(text: str, words: str) -> None:
    message = refusal(text)
    assert message.startswith("cannot read the configuration: ")
    assert words in message
    assert "\n" not in message


def test_no_message_shows_a_key() -> None:
    secret = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"
    pem = f"-----BEGIN PRIVATE KEY-----\n  {secret}\n"
    for text in (
        f"security: {{serverKey: {secret}}}",
        f'security: ["{secret}-----BEGIN"]',
        f"security:\n  serverKey: |\n  {pem}  x: [\n",
        f"server:\n  nodeId: |\n    -----BEGIN PRIVATE KEY-----\n    {secret}\n",
        f"security:\n  serverKey: |\n    -----BEGIN ENCRYPTED PRIVATE KEY-----\n    {secret}\n",
    ):
        assert secret not in refusal(text)
    loaded = config.ServerConfig(security=server_module.Security(server_key=secret))
    assert secret not in repr(loaded)


def test_unknown_keys_are_warnings_with_a_guess() -> None:
    loaded = parse("server: {prot: 1}\nservers: {}\nwhatever: 1\n")
    assert loaded.warnings == (
        "server.prot in FILE is not a known key (is it server.port?)",
        "servers in FILE is not a known key (is it server?)",
        "whatever in FILE is not a known key",
    )


def test_another_version_is_a_warning() -> None:
    assert parse('version: "3.0"').warnings == parse("version: 3").warnings == ()
    (warning,) = parse('version: "4.0"').warnings
    assert "version in FILE is '4.0'" in warning


def test_log_persistence_at_both_places() -> None:
    nested = "buffers: {log_persistence: {queue_size: 500, directory: /srv/logs}}"
    loaded = parse(nested)
    assert loaded.config.log_persistence.queue_chunks == 500
    assert loaded.config.paths.logs_dir == "/srv/logs"
    assert loaded.warnings == ()
    loaded = parse(f"{nested}\nlog_persistence: {{queue_size: 600}}")
    assert loaded.config.log_persistence.queue_chunks == 600
    assert loaded.config.paths.logs_dir == "/var/lib/joblet/logs"
    assert len(loaded.warnings) == 1
    loaded = parse("paths: {logs_dir: /a}\nlog_persistence: {directory: /b}")
    assert loaded.config.paths.logs_dir == "/a"
    assert len(loaded.warnings) == 1


def test_the_stage_is_a_tenth_of_the_ram_at_most_a_gibibyte() -> None:
    stage = parse("").config.log_persistence
    assert stage.stage_bytes(1 << 30) == (1 << 30) // 10
    assert stage.stage_bytes(1 << 40) == 1 << 30
    assert (
        parse("log_persistence: {memory_limit: 2GB}").config.log_persistence.stage_bytes(1)
        == 2 << 30
    )


def test_bounds_of_what_is_kept() -> None:
    how = parse("").config.log_persistence
    assert (how.retention_days, how.max_bytes_per_job, how.compress) == (7, 0, True)
    assert how.all_bytes(1000) == 800
    assert how.segment_bytes() == 64 << 20
    how = parse(
        "log_persistence: {max_bytes: 1TB, max_bytes_per_job: 80MB, compress: false}"
    ).config.log_persistence
    assert how.all_bytes(1000) == 1 << 40
    assert how.segment_bytes() == 10 << 20
    assert not how.compress


def test_the_environment_overrides() -> None:
    loaded = parse(
        "logging: {level: ERROR}",
        JOBLET_SERVER_ADDRESS="127.0.0.1",
        JOBLET_LOG_LEVEL="debug",
        JOBLET_LOG_FORMAT="json",
    )
    assert loaded.config.server.address == "127.0.0.1"
    assert (loaded.config.logging.level, loaded.config.logging.format) == ("DEBUG", "json")
    assert parse("logging: {level: ERROR}", JOBLET_LOG_LEVEL="").config.logging.level == "ERROR"
    assert "JOBLET_LOG_LEVEL in the environment is 'x', not one of" in refusal(
        "", JOBLET_LOG_LEVEL="x"
    )


def test_the_node_id_is_stable_and_does_not_reveal_the_machine_id() -> None:
    first = config.load(None, environ={}, machine_id=MACHINE_ID + "\n").config.server.node_id
    assert (
        first == "c2784697-9c3b-4dba-bff0-d7a4b7381793"
    )  # what systemd-id128 makes of the two ids
    assert first == config.node_id(MACHINE_ID) != config.node_id("0" * 31 + "1")
    given = config.parse("server: {nodeId: mine}", "FILE", environ={}, machine_id=MACHINE_ID)
    assert given.config.server.node_id == "mine"


@pytest.mark.parametrize("machine_id", ["", "uninitialized\n", "0" * 32, "12", "x" * 32])
def test_without_a_machine_id_a_node_id_must_be_set(machine_id: str) -> None:
    with pytest.raises(config.ConfigurationError, match=r"server\.nodeId is not set") as info:
        config.load(None, environ={}, machine_id=machine_id)
    assert "set server.nodeId" in info.value.text
    config.parse("server: {nodeId: mine}", "FILE", environ={}, machine_id=machine_id)


def test_reading_the_machine_id(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    assert config.read_machine_id(str(file)) == ""
    file.write_text(f"{MACHINE_ID}\n")
    assert config.read_machine_id(str(file)) == MACHINE_ID


def test_certificates_are_required_by_name() -> None:
    certificate, key = PEM.format("CERTIFICATE"), PEM.format("EC PRIVATE KEY")
    security = server_module.Security(server_cert=certificate, server_key=key, ca_cert=certificate)
    complete = config.Loaded(config.ServerConfig(security=security), "FILE")
    config.require_certificates(complete)
    broken = dataclasses.replace(security, server_key="", ca_cert="")
    with pytest.raises(
        config.ConfigurationError, match=r"no security\.serverKey, no security\.caCert in FILE"
    ):
        config.require_certificates(config.Loaded(config.ServerConfig(security=broken), "FILE"))
    with pytest.raises(
        config.ConfigurationError, match=r"there is no file.*/etc/joblet/joblet-config\.yml"
    ) as info:
        config.require_certificates(config.Loaded(config.ServerConfig()))
    assert "joblet cert init" in info.value.hint


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [str(tmp_path / "opt.yml"), "config/c.yml", "c.yml", str(tmp_path / "etc.yml")]
    monkeypatch.setattr(server_module, "SEARCH", tuple(places))
    cwd = tmp_path / "cwd"
    (cwd / "config").mkdir(parents=True)
    assert config.find({}, cwd=cwd) is None
    for place in reversed(places):
        (cwd / place).touch()
        assert config.find({}, cwd=cwd) == cwd / place
    assert config.find({"JOBLET_CONFIG_PATH": "/x/named.yml"}, cwd=cwd) == Path("/x/named.yml")
    assert config.find({"JOBLET_CONFIG_PATH": ""}, cwd=cwd) == cwd / places[0]


def test_published_search_order() -> None:
    assert config.SEARCH == (
        "/opt/joblet/config/joblet-config.yml",
        "config/joblet-config.yml",
        "joblet-config.yml",
        "/etc/joblet/joblet-config.yml",
    )


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    def why(path: Path) -> config.ConfigurationError:
        with pytest.raises(config.ConfigurationError) as info:
            config.load(path, environ={})
        return info.value

    missing = why(tmp_path / "none.yml")
    assert "No such file or directory" in str(missing)
    assert "joblet cert init" in missing.hint
    assert "is not a regular file" in str(why(tmp_path))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is not a regular file" in str(why(fifo))  # and it does not hang
    large = tmp_path / "large"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    assert "is larger than" in str(why(large))
    binary = tmp_path / "binary"
    binary.write_bytes(b"a: \xff")
    assert "is not UTF-8 text (byte 3)" in str(why(binary))


def test_a_key_open_to_everyone_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "c.yml"
    body = PEM.format("PRIVATE KEY").replace("\n", "\n    ")
    file.write_text(f"security:\n  serverKey: |\n    {body}")
    file.chmod(0o640)
    assert config.load(file, environ={}).warnings == ()
    file.chmod(0o644)
    (warning,) = config.load(file, environ={}).warnings
    assert "chmod 0640" in warning


def test_yaml_is_not_imported_for_the_defaults() -> None:
    code = (
        "import sys, joblet.config as c; c.load(None, environ={}); assert 'yaml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3)
)
SECTIONS = [getattr(config.ServerConfig(), f.name) for f in dataclasses.fields(config.ServerConfig)]
KEYS = [f.metadata["key"] for section in SECTIONS for f in dataclasses.fields(section)]
sections = st.sampled_from([f.name for f in dataclasses.fields(config.ServerConfig)])


@given(
    st.dictionaries(
        sections, values | st.dictionaries(st.sampled_from(KEYS), values, max_size=4), max_size=4
    )
)
def test_any_yaml_is_read_or_refused_with_a_message(raw: dict[str, object]) -> None:
    import yaml

    text = yaml.safe_dump(raw, allow_unicode=True)
    message = ""
    try:
        loaded = config.parse(text, "FILE", environ={})
    except config.ConfigurationError as error:
        message = str(error)
    else:
        assert isinstance(loaded.config, config.ServerConfig)
    assert not message or "FILE" in message
