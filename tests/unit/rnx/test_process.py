# SPDX-License-Identifier: MIT
"""rnx as a process: signals, pipes, what it imports."""

import ast
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rnx as package
from joblet_pb import joblet_pb2 as pb
from tests.unit.rnx.scripted import JOB, Script, plain

SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))


def start(environ: dict[str, str], *words: str, **options: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "rnx", *words]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environ, **{**streams, **options})


class Endless:
    """A log that goes on until the client has gone."""

    def __init__(self, chunk: bytes) -> None:
        self.chunk = chunk
        self.left = threading.Event()

    def __call__(self, request: pb.GetJobLogsRequest, context: Any) -> Iterator[pb.DataChunk]:
        context.add_callback(self.left.set)
        at = 0
        while context.is_active():
            at += len(self.chunk)
            yield pb.DataChunk(payload=self.chunk, offset_end=at, stream=1)
            self.left.wait(0.01)


def running() -> pb.GetJobStatusResponse:
    return pb.GetJobStatusResponse(uuid=JOB, status="RUNNING")


def test_ctrl_c_leaves_a_followed_job_running(environ: dict[str, str], script: Script) -> None:
    endless = Endless(b"tick\n")
    script.plays, script.statuses = [endless], [running()]
    with start(environ, "run", "--follow", "x") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"tick\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    lines = err.decode().splitlines()
    assert lines[0] == f"rnx: job {JOB}"
    assert lines[1].startswith(f"rnx: job {JOB} keeps running; ")
    assert len(lines) == 2
    assert endless.left.wait(30)
    assert not script.of(pb.StopJobRequest)


def test_ctrl_c_ends_the_showing_of_a_log_in_order(environ: dict[str, str], script: Script) -> None:
    script.plays, script.statuses = [Endless(b"tick\n")], [running()]
    with start(environ, "job", "log", JOB) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"tick\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"Stopping log stream...\n")


@pytest.mark.parametrize("words", [("log", JOB), ("run", "-f", "x")])
def test_a_reader_that_leaves_is_no_error(
    environ: dict[str, str], script: Script, words: tuple[str, ...]
) -> None:
    """As `rnx job log … | head -1`."""
    endless = Endless(b"x" * 65536)
    script.plays, script.statuses = [endless], [running()]
    with start(environ, *words) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(30) == 141
    assert err in (b"", f"rnx: job {JOB}\n".encode())
    assert endless.left.wait(30)


def test_results_go_nowhere_when_nobody_reads(environ: dict[str, str], script: Script) -> None:
    script.jobs = [pb.Job(uuid=JOB, status="RUNNING", command="x" * 70)] * 2000
    with start(environ, "list") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_a_full_disk_is_told(environ: dict[str, str], script: Script) -> None:
    script.plays = [plain(b"data")]
    script.statuses = [pb.GetJobStatusResponse(uuid=JOB, status="COMPLETED")]
    with Path("/dev/full").open("wb") as full:
        process = start(environ, "log", JOB, stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err == b"Error: cannot write the output: No space left on device\n"


def test_closed_streams_are_borne(environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "rnx", "list"]
    shell = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", *command]
    assert subprocess.run(shell, env=environ, check=False, timeout=30).returncode == 0


def test_the_c_library_below_is_silent(environ: dict[str, str], tmp_path: Path) -> None:
    """It would write its own lines about a failed handshake."""
    config = Path(environ["RNX_CONFIG"])
    text = config.read_text()
    config.write_text(text.replace("127.0.0.1", "localhost").replace("MII", "MIJ", 1))
    process = start(environ, "list")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith(b"Error: cannot ")
    assert err.count(b"\n") == 1


def test_a_bug_is_a_line_and_no_traceback(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import rnx.config\ndef load(path): raise KeyError('x')\nrnx.config.load = load\n"
    )
    environ["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environ['PYTHONPATH']}"
    process = start(environ, "run", "--follow", "x")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 125
    assert err == (
        b"Error: cannot go on, this is a bug in rnx: KeyError: 'x' (sitecustomize.py:2)\n"
    )


# ------------------------------------------------------------------------------------------ imports


def loaded(environ: dict[str, str], *words: str) -> set[str]:
    """Names of the modules that are loaded when rnx has run with these words."""
    code = (
        "import json, sys\nfrom rnx.cli import main\n"
        f"main({list(words)!r})\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=True, capture_output=True, timeout=30
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (("--help",), {"grpc", "yaml", "google.protobuf"}),
        (("run", "--help"), {"grpc", "yaml", "google.protobuf"}),
        (("run", "--bad", "x"), {"grpc", "yaml", "google.protobuf"}),
        (("nodes",), {"grpc", "google.protobuf"}),
        (("list", "--node=nowhere"), {"grpc", "google.protobuf"}),
        (("list",), {"rnx.commands.run", "rnx.commands.status", "rnx.follow", "joblet"}),
    ],
)
def test_nothing_is_loaded_that_is_not_needed(
    environ: dict[str, str], words: tuple[str, ...], absent: set[str]
) -> None:
    assert not loaded(environ, *words) & absent


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_rnx_never_imports_joblet_and_only_its_client_imports_grpc(path: Path) -> None:
    for module in imports(ast.parse(path.read_text())):
        top = module.partition(".")[0]
        assert top != "joblet"
        assert top != "grpc" or path.name == "client.py"


def imports(tree: ast.AST) -> Iterator[str]:
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            yield inner.module or ""
