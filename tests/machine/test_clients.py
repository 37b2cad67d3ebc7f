# SPDX-License-Identifier: MIT
"""Clients that exist, against the installed server: the wheel of this tree and the published SDK,
both with the newest gRPC and protobuf, while the server has its distribution's. rnx lives in one
environment with the SDK there, and is tried with the oldest of what it needs, too.

With JOBLET_FULL=1 there is one test more, which takes as long as gRPC's patience.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from rnx import __version__ as VERSION
from tests.machine.client import Rnx, wait_served
from tests.machine.clientenv import NEWEST, Sdk, SdkError, oldest, rnx_command
from tests.machine.rig import Result, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.machine.rig import Cache, Nspawn

SDKS = ("2.5.1", "2.5.2")
NOBODY = "00000000-0000-4000-8000-000000000000"
EVERY_BYTE = bytes(range(256))
STOP_S = 1.0
STOPS = 3

# what of the SDK's calls this server does not serve: method of the wire, call, exception
NOT_SERVED: list[tuple[str, Callable[[Sdk], Any], str]] = [
    ("CancelJob", lambda sdk: sdk.jobs.cancel_job(NOBODY), "JobOperationError"),
    ("GetJobMetrics", lambda sdk: sdk.jobs.get_job_metrics(NOBODY), "JobNotFoundError"),
    ("StreamJobMetrics", lambda sdk: sdk.jobs.stream_job_metrics(NOBODY), "JobNotFoundError"),
    ("GetJobTelematics", lambda sdk: sdk.jobs.get_job_telematics(NOBODY), "JobNotFoundError"),
    ("StreamJobTelematics", lambda sdk: sdk.jobs.stream_job_telematics(NOBODY), "JobNotFoundError"),
    ("CreateNetwork", lambda sdk: sdk.networks.create_network("n", "10.0.0.0/24"), "NetworkError"),
    ("ListNetworks", lambda sdk: sdk.networks.list_networks(), "NetworkError"),
    ("RemoveNetwork", lambda sdk: sdk.networks.remove_network("n"), "NetworkError"),
    ("CreateVolume", lambda sdk: sdk.volumes.create_volume("v", "1MB"), "VolumeError"),
    ("ListVolumes", lambda sdk: sdk.volumes.list_volumes(), "VolumeError"),
    ("RemoveVolume", lambda sdk: sdk.volumes.remove_volume("v"), "VolumeError"),
    (
        "StreamSystemMetrics",
        lambda sdk: sdk.monitoring.stream_system_metrics(),
        "JobletConnectionError",
    ),
    ("GetRuntimeInfo", lambda sdk: sdk.runtimes.get_runtime_info("r"), "RuntimeNotFoundError"),
    ("TestRuntime", lambda sdk: sdk.runtimes.test_runtime("r"), "RuntimeNotFoundError"),
    ("RemoveRuntime", lambda sdk: sdk.runtimes.remove_runtime("r"), "RuntimeNotFoundError"),
    ("BuildRuntime", lambda sdk: sdk.runtimes.build_runtime("a: b"), "RuntimeError"),
    (
        "ValidateRuntimeYAML",
        lambda sdk: sdk.runtimes.validate_runtime_yaml("a: b"),
        "ValidationError",
    ),
]

# what of run_job's arguments this server does not serve
NOT_SERVED_ARGUMENTS: dict[str, Any] = {
    "uploads": [{"path": "a"}],
    "schedule": "2036-01-01T00:00:00Z",
    "volumes": ["v"],
    "runtime": "r",
    "gpu_count": 1,
    "gpu_memory_mb": 1,
}


class HostRnx(Rnx):
    """rnx as a process of the host, which reaches the machine's server by a forwarded port."""

    def __init__(self, machine: Nspawn, command: list[str], config: Path) -> None:
        super().__init__(machine)
        self.command = command
        self.environ = {"RNX_CONFIG": str(config), "HOME": str(config.parent), "PATH": "/usr/bin"}

    def __call__(self, *words: str, timeout: float = 60) -> Result:
        begun = time.monotonic()
        with self.spawn(*words) as process:
            out, err = process.communicate(timeout=timeout)
            return Result(words, process.returncode, out, err, time.monotonic() - begun)

    @contextlib.contextmanager
    def spawn(self, *words: str | bytes) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen(
            [*self.command, *words],
            bufsize=0,  # readline() and communicate() share the pipe, so neither may read ahead
            env=self.environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextlib.contextmanager
    def following(self, *words: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        """The job and its follower, once that shows the job's first line."""
        with self.spawn("run", "--follow", *words) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            job = process.stderr.readline().split()[-1].decode()
            assert process.stdout.readline() == b"up\n"
            yield job, process


def configured(machine: Nspawn, port: int, path: Path) -> Path:
    """The machine's configuration of rnx, for a client that dials this port of the host."""
    text = machine.read("/etc/joblet/rnx-config.yml")
    here = f"127.0.0.1:{port}".encode()
    assert b"127.0.0.1:50051" in text
    path.write_bytes(text.replace(b"127.0.0.1:50051", here))
    return path


@pytest.fixture
def config(machine: Nspawn, tmp_path: Path) -> Iterator[Path]:
    with machine.forward(50051) as port:
        yield configured(machine, port, tmp_path / "rnx-config.yml")


@pytest.fixture
def rnx(machine: Nspawn, config: Path, cache: Cache) -> HostRnx:
    return HostRnx(machine, rnx_command(cache), config)


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest, config: Path, cache: Cache) -> Iterator[Sdk]:
    with Sdk(cache, str(request.param), config) as made:
        yield made


# ------------------------------------------------------------------------------------- rnx's wheel


BESIDE_THE_SDK = """
import csv, importlib.metadata, io, pathlib, sys
def files(name):
    record = importlib.metadata.distribution(name).read_text("RECORD")
    return {row[0] for row in csv.reader(io.StringIO(record))}
ours, theirs = files("joblet-rnx"), files("joblet-sdk-python")
assert ours and theirs and not ours & theirs, ours & theirs
site = pathlib.Path(importlib.metadata.distribution("joblet-rnx").locate_file(""))
for name in sys.argv[1:]:
    __import__(name)
import joblet.proto.joblet_pb2 as published
from joblet_pb import joblet_pb2 as served
import joblet, rnx
for module in (joblet, rnx, served):
    assert pathlib.Path(module.__file__).is_relative_to(site), module
asked = published.GetJobLogsRequest(uuid="j").SerializeToString()
assert served.GetJobLogsRequest.FromString(asked).uuid == "j"
"""
"""No file of one is the other's, and a process may use both, whichever it imports first."""


def versions_of(python: str, names: list[str]) -> list[str]:
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    seen = subprocess.run([python, "-c", code, *names], check=True, capture_output=True)
    return seen.stdout.decode().split()


def test_the_wheel_lives_beside_the_published_sdk(cache: Cache) -> None:
    command = rnx_command(cache)
    for order in (("joblet.proto.joblet_pb2", "rnx.client"), ("rnx.client", "joblet")):
        words = [command[0], "-W", "ignore", "-I", "-c", BESIDE_THE_SDK, *order]
        subprocess.run(words, check=True, timeout=60)
    environ = {"HOME": "/nonexistent", "PATH": "/usr/bin"}
    ran = subprocess.run([*command, "--version"], env=environ, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"rnx {VERSION}\n".encode(), b"")


@pytest.mark.parametrize("requirements", [NEWEST, oldest()], ids=["newest", "oldest"])
def test_the_wheel_works_with(
    requirements: tuple[str, ...], machine: Nspawn, config: Path, cache: Cache
) -> None:
    rnx = HostRnx(machine, rnx_command(cache, requirements), config)
    names, pins = zip(*(pin.split("==") for pin in requirements), strict=True)
    assert versions_of(rnx.command[0], list(names)) == list(pins)
    shown = rnx("--help")
    assert (shown.code, shown.errors) == (0, "")
    assert shown.text.startswith("Usage: rnx ")

    ran = rnx("run", "--name=from-afar", "--follow", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert ran.code == 3
    assert sorted(ran.stdout.split()) == [b"err", b"out"]
    job = ran.errors.split()[-1]
    (listed,) = [each for each in rnx.json("list") if each["id"] == job]
    assert (listed["name"], listed["status"], listed["exit_code"]) == ("from-afar", "FAILED", 3)
    assert listed["node_id"]
    status = rnx.status(job)
    assert (status["status"], status["reason"], status["exitCode"]) == ("FAILED", "exited", 3)
    assert sorted(rnx.log(job[:12]).split()) == [b"err", b"out"]

    bytes_of = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 20000)"
    assert rnx("run", "--follow", "python3", "-c", bytes_of).stdout == EVERY_BYTE * 20000
    assert rnx.json("runtime", "list") == []
    assert rnx.json("monitor", "status")["hostInfo"]["nodeId"]
    refused = rnx("--node=viewer", "run", "true")
    assert refused.code == 1
    assert "role viewer is not allowed" in refused.errors


def test_exit_codes_of_follow(rnx: HostRnx) -> None:
    cases = {
        ("sh", "-c", "exit 0"): 0,
        ("sh", "-c", "exit 1"): 1,
        ("sh", "-c", "exit 255"): 255,
        ("sh", "-c", "kill -KILL $$"): 128 + 9,
        ("sh", "-c", "kill -SEGV $$"): 128 + 11,
        ("sh", "-c", "kill -TERM $$"): 128 + 15,
        ("--timeout=300ms", "sleep", "60"): 124,
        ("--max-cpu=much", "true"): 125,
        ("no-such-command",): 125,
        ("/etc/hostname",): 125,  # there, but no command
        ("--work-dir=/nowhere", "true"): 125,
        ("--node=nowhere", "true"): 125,
    }
    with contextlib.ExitStack() as stack:
        running = {
            words: stack.enter_context(rnx.spawn("run", "--follow", *words)) for words in cases
        }
        ended = {words: process.communicate(timeout=60)[1] for words, process in running.items()}
        codes = {words: process.returncode for words, process in running.items()}
    assert codes == cases
    assert not [text for text in ended.values() if b"Traceback" in text or b"bug in rnx" in text]


def test_a_followed_job_that_someone_else_ends(rnx: HostRnx, machine: Nspawn) -> None:
    sleeper = ("sh", "-c", "echo up; exec sleep 300")
    with rnx.following(*sleeper) as (job, follower):
        stopped = rnx.json("stop", job)
        assert stopped["status"] == "STOPPED"
        _, err = follower.communicate(timeout=30)
        assert follower.returncode == 128 + 15
        assert b"ended: stopped" in err
    with rnx.following(*sleeper) as (job, follower):
        machine.run(["systemctl", "stop", f"joblet-{job}.scope"]).check()
        _, err = follower.communicate(timeout=30)
        assert follower.returncode == 128 + 15
        assert b"ended: unit-stopped" in err
        assert rnx.status(job)["status"] == "STOPPED"
    with rnx.following(*sleeper) as (job, follower):
        machine.run(["systemctl", "kill", "--signal=KILL", f"joblet-{job}.scope"]).check()
        follower.communicate(timeout=30)
        assert follower.returncode == 128 + 9


def test_a_follower_survives_the_servers_death(
    fresh_machine: Nspawn, tmp_path: Path, cache: Cache
) -> None:
    """And a job whose command cannot be executed is no success, followed or not."""
    wait_served(fresh_machine)
    with fresh_machine.forward(50051) as port:
        config = configured(fresh_machine, port, tmp_path / "rnx-config.yml")
        rnx = HostRnx(fresh_machine, rnx_command(cache), config)
        count = "echo up; for i in $(seq 30); do echo $i; sleep 0.1; done; exit 5"
        with rnx.following("sh", "-c", count) as (_, follower):
            server = ["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "joblet.service"]
            fresh_machine.run(server).check()
            out, err = follower.communicate(timeout=60)
        assert follower.returncode == 5
        assert out.split() == [b"%d" % n for n in range(1, 31)]
        assert b"trying again" in err

        fresh_machine.write("/usr/local/bin/headless", "#!/no/such/shell\n", mode=0o755)
        followed, started = rnx("run", "--follow", "headless"), rnx("run", "headless")
        assert followed.code == 125
        assert "launch-failed" in followed.errors
        assert started.code == 1
        assert "did not begin: launch-failed" in started.errors
        assert "Status: FAILED" in started.text
        assert "running" not in started.text


def test_mistakes_are_explained(rnx: HostRnx, config: Path) -> None:
    no_server = config.with_name("no-server.yml")
    port = config.read_bytes().partition(b"127.0.0.1:")[2].partition(b'"')[0]
    no_server.write_bytes(config.read_bytes().replace(port, b"1"))
    broken = config.with_name("broken.yml")
    broken.write_text("nodes: [")
    mistakes: dict[tuple[str | bytes, ...], str] = {
        ("status", ""): "it is empty",
        ("log", b"\xff"): r"'\xff' is not UTF-8 text",
        ("stop", NOBODY): f"job not found: {NOBODY}",
        ("run", b"\xff"): r"'\xff' is not UTF-8 text",
        ("run", "--max-cpu=much", "true"): "Try `rnx run --help`.",
        ("job", "run"): "Try `rnx job run --help`.",
        ("frobnicate",): "cannot use rnx frobnicate: there is no such command",
        ("job", "delete", NOBODY): f"job not found: {NOBODY}",
        ("job", "cancel", NOBODY): "not served yet",
        ("--node=nowhere", "list"): "it has default, viewer",
        ("--config=", "list"): "it names no file",
        (f"--config={config}.not", "list"): "client configuration file not found",
        (f"--config={broken}", "list"): "in line",
        (f"--config={no_server}", "list"): "connection refused",
    }
    with contextlib.ExitStack() as stack:
        running = {words: stack.enter_context(rnx.spawn(*words)) for words in mistakes}
        for words, process in running.items():
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out) == (1, b""), words
            assert mistakes[words] in err.decode(), words
            assert b"Traceback" not in err, words
            assert b"bug in rnx" not in err, words


def left_of(machine: Nspawn, job: str) -> list[str]:
    """What the host has of a job, outside the journal."""
    places = f"/var/lib/joblet/logs/{job} /var/lib/joblet/jobs/{job}"
    return machine.run(f"ls -d {places} 2>/dev/null || true").text.split()


def test_jobs_are_deleted(rnx: HostRnx, machine: Nspawn) -> None:
    with rnx.following("sh", "-c", "echo up; exec sleep 300") as (job, follower):
        for words in (["delete", job], ["job", "delete", job[:13]]):
            refused = rnx(*words)
            assert (refused.code, refused.stdout) == (1, b"")
            assert "has not ended (status: RUNNING); stop the job first" in refused.errors
        assert "role viewer is not allowed" in rnx("--node=viewer", "delete", job).errors
        rnx("stop", job).check()
        follower.communicate(timeout=30)
    assert left_of(machine, job) == [f"/var/lib/joblet/logs/{job}"]
    deleted = rnx("job", "delete", job[:13]).check()
    assert deleted.text == (
        f"Job deleted successfully:\nID: {job}\nMessage: Job deleted successfully"
    )
    assert left_of(machine, job) == []
    for words in (["delete", job], ["status", job], ["log", job], ["stop", job]):
        gone = rnx(*words)
        assert (gone.code, f"job not found: {job}" in gone.errors) == (1, True), words
    audit = machine.run(f"journalctl -o cat JOBLET_WHAT=DeleteJob JOBLET_JOB_ID={job}")
    said = audit.text.splitlines()
    assert [line.endswith(f": DeleteJob {job[:8]}: ok") for line in said].count(True) == 1
    assert any("it has not ended" in line for line in said)


def test_all_jobs_are_deleted(fresh_machine: Nspawn, tmp_path: Path, cache: Cache) -> None:
    """Those that run stay, through a restart, too; and what the last server had begun is done."""
    wait_served(fresh_machine)
    with fresh_machine.forward(50051) as port:
        config = configured(fresh_machine, port, tmp_path / "rnx-config.yml")
        rnx = HostRnx(fresh_machine, rnx_command(cache), config)
        jobs = [rnx.start("echo", str(number)) for number in range(12)]
        runs = rnx.start("sleep", "300")
        for job in jobs:
            rnx.ended(job)
        assert [each["id"] for each in rnx.json("list")] == [*jobs, runs]
        assert [each["id"] for each in rnx.json("list", "--limit=3")] == [*jobs[-2:], runs]
        lines = rnx("list").check().text.splitlines()
        assert [line.split()[0] for line in lines[2:]] == [*jobs, runs]
        done = rnx.json("delete-all")
        assert (done["success"], done["deleted_count"], done["skipped_count"]) == (True, 12, 1)
        assert done["message"] == "Successfully deleted 12 jobs, skipped 1 running/scheduled jobs"
        assert [each["id"] for each in rnx.json("list")] == [runs]
        logs = fresh_machine.run("ls /var/lib/joblet/logs").check().text.split()
        assert logs == [runs]

        # as if the server had been killed behind the mark
        job = rnx.start("echo", "more")
        rnx.ended(job)
        fresh_machine.run("systemctl stop joblet.service").check()
        mark = f"UPDATE jobs SET deleting = 1 WHERE id = '{job}'"
        code = (
            "import sqlite3; db = sqlite3.connect('/var/lib/joblet/state/joblet.db');"
            f' db.execute("{mark}"); db.commit(); db.close()'
        )
        fresh_machine.run(["runuser", "-u", "joblet", "--", "python3", "-c", code]).check()
        fresh_machine.run("systemctl start joblet.service").check()
        wait_served(fresh_machine)
        assert [each["id"] for each in rnx.json("list")] == [runs]
        assert left_of(fresh_machine, job) == []
        assert rnx.status(runs)["status"] == "RUNNING"
        rnx("stop", runs).check()
        all_of_it = rnx("delete-all").check().text
        assert all_of_it.startswith("Jobs deleted successfully:\nDeleted: 1\nSkipped: 0\n")
        assert rnx("list").text == "No jobs found"


def test_what_a_terminal_shows(rnx: Rnx, machine: Nspawn) -> None:
    """Colour for a person, never for a script; help without a stdout is no bug."""
    job = rnx.start("true")
    rnx.ended(job)
    script = f"""
        script -qec 'rnx status {job}' /dev/null | grep Status:
        NO_COLOR=1 script -qec 'rnx status {job}' /dev/null | grep Status:
        rnx status {job} | grep Status:
        rnx --help >&- || echo failed
        rnx run --follow seq 1000000 | head -1
    """
    shown = machine.run(script)
    lines = [line.strip() for line in shown.stdout.splitlines()]
    plain = b"Status: COMPLETED"
    assert lines == [b"Status: \x1b[32mCOMPLETED\x1b[0m", plain, plain, b"1"]
    assert "bug" not in shown.errors


# -------------------------------------------------------------------------------- the published SDK


def stops_at_once(sdk: Sdk, start: Callable[[], dict[str, Any]]) -> None:
    """The contract says within a second; the quickest of a few, because the host may be busy."""
    seconds = []
    for _ in range(STOPS):
        job = start()["job_uuid"]
        stopped = sdk.jobs.stop_job(job)
        seconds.append(sdk.seconds)
        assert (stopped["uuid"], stopped["status"], stopped["exit_code"]) == (job, "STOPPED", -1)
        assert stopped["end_time"]
    assert min(seconds) < STOP_S


@pytest.mark.parametrize("sdk", ["2.5.1"], indirect=True)
def test_the_high_level_calls_of_the_sdk(sdk: Sdk) -> None:
    started = sdk.jobs.run_job(
        "sh",
        ["-c", "echo $GREETING $SECRET; sleep 0.5; echo err >&2; exit 3"],
        name="of-the-sdk",
        environment={"GREETING": "hi"},
        secret_environment={"SECRET": "told"},
        work_dir="/tmp",
    )
    job = started["job_uuid"]
    assert started["status"] == "RUNNING"
    assert started["command"] == "sh"
    assert started["args"][0] == "-c"
    assert started["start_time"].startswith("20")

    assert b"".join(sdk.jobs.get_job_logs(job)) == b"hi ****\nerr\n"
    assert b"".join(sdk.jobs.get_job_logs(job[:12])) == b"hi ****\nerr\n"
    status = sdk.jobs.get_job_status(job)
    seen = {key: status[key] for key in ("uuid", "name", "status", "exit_code", "work_dir")}
    assert seen == {
        "uuid": job,
        "name": "of-the-sdk",
        "status": "FAILED",
        "exit_code": 3,
        "work_dir": "/tmp",
    }
    assert status["environment"] == {"GREETING": "hi"}
    assert status["secret_environment"] == {"SECRET": "***"}
    assert status["node_id"]
    assert status["end_time"] >= status["start_time"]

    later = sdk.jobs.run_job("true")["job_uuid"]
    listed = [each["uuid"] for each in sdk.jobs.list_jobs()]
    assert [uuid for uuid in listed if uuid in (job, later)] == [job, later]
    (one,) = [each for each in sdk.jobs.list_jobs() if each["uuid"] == job]
    assert (one["name"], one["status"], one["exit_code"]) == ("of-the-sdk", "FAILED", 3)
    assert one["secret_environment"] == {"SECRET": "***"}

    stops_at_once(sdk, lambda: sdk.jobs.run_job("sleep", ["300"]))
    assert sdk.jobs.list_jobs()[-1]["status"] == "STOPPED"
    assert sdk.runtimes.list_runtimes() == []


@pytest.mark.parametrize("sdk", ["2.5.2"], indirect=True)
def test_the_newest_sdk_through_its_stub(sdk: Sdk) -> None:
    """Its own run_job, get_job_status and list_jobs fail in the client, after the call."""
    stub = sdk.jobs.stub
    script = "echo hi; sleep 0.3; echo err >&2; exit 4"
    job = stub.RunJob(command="sh", args=["-c", script], timeout="1m")["job_uuid"]
    assert b"".join(sdk.jobs.get_job_logs(job)) == b"hi\nerr\n"
    chunks = stub.GetJobLogs(uuid=job)
    assert b"".join(chunk.get("payload", b"") for chunk in chunks) == b"hi\nerr\n"
    status = stub.GetJobStatus(uuid=job)
    assert (status["status"], status["exit_code"], status["timeout"]) == ("FAILED", 4, "1m")
    assert job in [each["uuid"] for each in stub.ListJobs()["jobs"]]

    stops_at_once(sdk, lambda: stub.RunJob(command="sleep", args=["300"]))
    assert stub.ListJobs()["jobs"][-1]["status"] == "STOPPED"
    assert sdk.runtimes.list_runtimes() == []

    quick = stub.RunJob(command="sleep", args=["300"], timeout="300ms")["job_uuid"]
    eventually(lambda: stub.GetJobStatus(uuid=quick)["status"] == "FAILED", what="the time-out")


def test_the_sdk_finds_the_server_healthy(sdk: Sdk) -> None:
    eventually(sdk.health_check, what="the server's first look at its host")
    status = sdk.monitoring.get_system_status()
    assert status["available"] is True
    # what published clients read unasked
    for part in ("host", "cpu", "memory", "processes", "cloud", "server_version"):
        assert status[part] is not None, part
    assert status["host"]["hostname"]
    assert len(status["cpu"]["load_average"]) == 3
    assert status["memory"]["total_bytes"] > status["memory"]["used_bytes"] > 0
    assert status["processes"]["total_processes"] > 0


def test_the_sdk_deletes_jobs(sdk: Sdk) -> None:
    """Its list is of the newest; what it deletes is gone for it."""
    stub = sdk.jobs.stub

    def begun(command: str, argument: str) -> str:
        answer = stub.RunJob(command=command, args=[argument])
        return str(answer.get("job_uuid") or answer["jobUuid"])  # 2.5.1 has other names

    ran = [begun("echo", str(number)) for number in range(3)]
    for job in ran:
        b"".join(sdk.jobs.get_job_logs(job))
    runs = begun("sleep", "300")
    with pytest.raises(SdkError, match=r"has not ended \(status: RUNNING\)") as caught:
        sdk.jobs.delete_job(runs)
    assert caught.value.kind == "JobOperationError"
    deleted = sdk.jobs.delete_job(ran[0])
    assert (deleted["uuid"], deleted["success"]) == (ran[0], True)
    assert deleted["message"] == "Job deleted successfully"
    with pytest.raises(SdkError, match="job not found"):
        sdk.jobs.get_job_logs(ran[0])
    listed = [each["uuid"] for each in stub.ListJobs()["jobs"]]
    assert [job for job in listed if job in (*ran, runs)] == [*ran[1:], runs]

    all_of_it = sdk.jobs.delete_all_jobs()
    assert all_of_it["success"]
    assert all_of_it["deleted_count"] >= 2
    assert all_of_it["skipped_count"] >= 1
    assert all_of_it["message"].startswith("Successfully deleted ")
    left = [each["uuid"] for each in stub.ListJobs()["jobs"]]
    assert [job for job in left if job in (*ran, runs)] == [runs]
    sdk.jobs.stop_job(runs)


def test_errors_of_the_sdk_say_why(sdk: Sdk) -> None:
    unknown = {
        "JobNotFoundError": (sdk.jobs.get_job_status, sdk.jobs.get_job_logs),
        "JobOperationError": (sdk.jobs.stop_job, sdk.jobs.delete_job),
    }
    for kind, calls in unknown.items():
        for call in calls:
            with pytest.raises(SdkError, match=f"job not found: {NOBODY}") as caught:
                call(NOBODY)
            assert caught.value.kind == kind

    for method, serve, kind in NOT_SERVED:
        with pytest.raises(SdkError, match=f"cannot serve {method}: this version") as caught:
            serve(sdk)
        assert caught.value.kind == kind, method

    for name, value in NOT_SERVED_ARGUMENTS.items():
        with pytest.raises(SdkError, match=rf"cannot run the job: .*{name}.* not served") as caught:
            sdk.jobs.run_job("true", **{name: value})
        assert caught.value.kind == "JobOperationError"

    with pytest.raises(SdkError, match="command not found: no-such-command"):
        sdk.jobs.run_job("no-such-command")
    with pytest.raises(SdkError, match="max_memory is negative"):
        sdk.jobs.run_job("true", max_memory=-1)


if os.environ.get("JOBLET_FULL") == "1":
    IDLE_S = 100
    """The SDK sends a ping every 30 s, and gRPC's own patience ends with the third."""

    SERVER_SILENT = "printf 'grpc:\\n  keepAliveTime: 1h\\n' >> /etc/joblet/joblet-config.yml"
    """As installed, the server's own pings come first, and the client's never."""

    @pytest.mark.parametrize("before", ["", SERVER_SILENT], ids=["as-installed", "server-silent"])
    def test_an_idle_log_stream_stays_up(
        before: str, fresh_machine: Nspawn, tmp_path: Path, cache: Cache
    ) -> None:
        restart = "systemctl restart joblet.service"
        fresh_machine.run(f"{before}\n{restart}").check()
        wait_served(fresh_machine)
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(fresh_machine.forward(50051))
            config = configured(fresh_machine, port, tmp_path / "rnx-config.yml")
            rnx = HostRnx(fresh_machine, rnx_command(cache), config)
            job = rnx.start("sh", "-c", f"echo begun; sleep {IDLE_S}; echo done; exit 3")
            sdks = [stack.enter_context(Sdk(cache, version, config)) for version in SDKS]
            for sdk in sdks:
                sdk.ask(("jobs", "get_job_logs"), (job,), {})
            follower = stack.enter_context(rnx.spawn("log", job))
            for sdk in sdks:
                assert b"".join(sdk.answer(IDLE_S + 60)) == b"begun\ndone\n"
                assert sdk.seconds > IDLE_S - 10
            out, err = follower.communicate(timeout=30)
            assert (follower.returncode, out, err) == (0, b"begun\ndone\n", b"")
            assert rnx.status(job)["exitCode"] == 3
