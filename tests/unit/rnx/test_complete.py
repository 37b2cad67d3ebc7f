# SPDX-License-Identifier: MIT
"""Completion: what rnx offers, through its protocol, and that three shells take it."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from joblet_pb import joblet_pb2 as pb
from rnx import complete
from rnx.cli import root
from rnx.client import Client
from rnx.output import Environment
from rnx.run_args import FLAGS
from rnx.session import Session
from tests.unit.rnx.conftest import write_config
from tests.unit.rnx.scripted import JOB, Script

TREE = Path(__file__).resolve().parents[3]
SCRIPTS = TREE / "tools" / "completion"
OTHER = "aa5e7a52-9b57-4d07-8d5e-6a1f3c2b4d10"
DEADLINE_S = 30.0  # of a shell on a busy machine


@pytest.fixture
def command(environ: dict[str, str], tmp_path: Path) -> Path:
    """A command `rnx` that the shells find."""
    made = tmp_path / "bin" / "rnx"
    made.parent.mkdir()
    made.write_text(f'#!/bin/sh\nexec {sys.executable} -m rnx "$@"\n')
    made.chmod(0o755)
    environ["PATH"] = f"{made.parent}{os.pathsep}{environ['PATH']}"
    return made


@pytest.fixture(autouse=True)
def jobs(script: Script) -> None:
    script.jobs = [
        pb.Job(uuid=OTHER, status="COMPLETED", command="true"),
        pb.Job(uuid=JOB, status="RUNNING", name="train", command="sh", args=["-c", "a\nb\x1b"]),
    ]


@pytest.fixture(autouse=True)
def patience(environ: dict[str, str], tmp_path: Path) -> None:
    """Processes that give a server more than a second: this machine may be busy."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import rnx.complete as c\nc.DEADLINE_S = 20.0\n")
    environ["PYTHONPATH"] = f"{site}{os.pathsep}{environ['PYTHONPATH']}"


def offered(environ: dict[str, str], *words: str) -> list[tuple[str, str, str]]:
    """Kind, word and description of what may stand in the place of the last word."""
    asked = {
        "COMP_WORDS": " ".join(["rnx", *words]),
        "COMP_CWORD": str(len(words)),
        "_RNX_COMPLETE": "zsh_complete",
    }
    done = subprocess.run(
        [sys.executable, "-m", "rnx"],
        env=environ | asked, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.stderr == ""
    text = done.stdout.removesuffix("\n")
    lines = iter(text.split("\n") if text else [])
    return list(zip(lines, lines, lines, strict=True))


def words(environ: dict[str, str], *given: str) -> list[str]:
    return [word for _, word, _ in offered(environ, *given)]


def test_commands_are_offered(environ: dict[str, str]) -> None:
    assert {"job", "run", "list", "nodes", "version"} <= set(words(environ, ""))
    assert words(environ, "job", "st") == ["status", "stop"]
    assert words(environ, "runtime", "") == ["list"]
    assert words(environ, "monitor", "") == ["status"]


def test_jobs_are_offered_newest_first_with_what_they_are(environ: dict[str, str]) -> None:
    for command in (("log",), ("job", "status")):
        assert offered(environ, *command, "") == [
            ("plain", JOB, "RUNNING train: sh -c a\\nb\\x1b"),
            ("plain", OTHER, "COMPLETED: true"),
        ]
    assert words(environ, "log", "aa") == [OTHER]


def test_stop_offers_what_can_be_stopped(environ: dict[str, str]) -> None:
    assert words(environ, "job", "stop", "") == [JOB]


def test_delete_offers_what_has_ended(environ: dict[str, str]) -> None:
    assert words(environ, "job", "delete", "") == [OTHER]
    assert words(environ, "delete", "0") == []
    assert words(environ, "job", "de") == ["delete", "delete-all"]


def test_the_node_asked_is_the_one_of_the_command_line(
    environ: dict[str, str], tmp_path: Path
) -> None:
    empty = write_config(tmp_path / "other.yml", {"prod": {}, "a b": {}, "$(x)": {}})
    assert words(environ, "--node", "") == ["default"]
    assert words(environ, "list", "--config", str(empty), "--node", "") == ["prod"]
    assert words(environ, "run", "--config", str(empty), "--node", "") == ["prod"]
    assert words(environ, "log", "--node", "default", "aa") == [OTHER]
    assert words(environ, "log", "--node", "prod", "") == []


def test_an_id_that_a_shell_would_make_more_of_is_left_out(
    environ: dict[str, str], script: Script
) -> None:
    script.jobs = [pb.Job(uuid="$(reboot)"), pb.Job(uuid="a b"), pb.Job(uuid="a\nb")]
    assert words(environ, "log", "") == []


def test_flags_of_run_end_where_the_command_begins(environ: dict[str, str]) -> None:
    assert words(environ, "run", "--") == [flag.name for flag in FLAGS]
    assert words(environ, "job", "run", "--merge", "--max-m") == ["--max-memory"]
    for before in (["ls"], ["--name", "x", "ls"], ["--"], ["--name"]):
        assert words(environ, "run", *before, "--") == []
    assert words(environ, "run", "--log-driver", "") == ["journald"]
    assert words(environ, "run", "--log-driver", "s") == []
    assert [kind for kind, _, _ in offered(environ, "run", "--config", "")] == ["file"]
    assert [kind for kind, _, _ in offered(environ, "log", "--config", "")] == ["file"]


@pytest.mark.parametrize("given", [("volume", ""), ("log", JOB, "")])
def test_where_nothing_fits_nothing_is_offered(
    environ: dict[str, str], given: tuple[str, ...]
) -> None:
    assert words(environ, *given) == []


def test_whatever_fails_is_silent(environ: dict[str, str], tmp_path: Path) -> None:
    del environ["RNX_CONFIG"]
    environ["HOME"] = str(tmp_path / "nobody")
    assert words(environ, "log", "") == []
    environ["RNX_CONFIG"] = str(tmp_path / "broken.yml")
    Path(environ["RNX_CONFIG"]).write_text("nodes: [")
    assert words(environ, "log", "") == []
    assert words(environ, "--node", "") == []


def test_a_server_is_not_waited_for_longer_than_a_second(
    environ: dict[str, str], env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines = []

    def list_jobs(client: Client, *, deadline_s: float) -> pb.Jobs:
        deadlines.append(deadline_s)
        return pb.Jobs()

    monkeypatch.setattr(Client, "list_jobs", list_jobs)
    env.environ = environ
    context = click.Context(root, obj=Session(env))
    assert complete.jobs()(context, click.Argument(["uuid"]), "") == []
    assert deadlines == [1.0]


def test_commands_are_completed_without_grpc(environ: dict[str, str]) -> None:
    code = (
        "import sys, rnx.cli\nrnx.cli.main()\n"
        "print(*sorted({'grpc', 'yaml', 'google.protobuf'} & set(sys.modules)), file=sys.stderr)"
    )
    asked = {"COMP_WORDS": "rnx job r", "COMP_CWORD": "2", "_RNX_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ | asked, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert (done.stdout, done.stderr.strip()) == ("plain,run\n", "")


class Terminal:
    """A shell at a terminal."""

    def __init__(self, argv: list[str], environ: dict[str, str]) -> None:
        self.shown = ""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, environ | {"TERM": "dumb", "PS1": "> "})

    def types(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def shows(self, text: str) -> None:
        """Waits for it."""
        until = time.monotonic() + DEADLINE_S
        while text not in self.shown:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"no {text!r} in {self.shown!r}"
            self.shown += os.read(self._fd, 65536).decode(errors="replace")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminal(
    request: pytest.FixtureRequest, environ: dict[str, str], command: Path, tmp_path: Path
) -> Iterator[Terminal]:
    """With rnx's completion as it is installed."""
    functions = tmp_path / "functions"
    functions.mkdir()
    shutil.copy(SCRIPTS / "_rnx", functions)
    if request.param == "bash":
        argv = ["bash", "--norc", "--noprofile", "-i"]
        setup = f"source {SCRIPTS / 'rnx.bash'}"
    else:
        argv = ["zsh", "-f", "-i"]
        setup = f"fpath=({functions} $fpath); autoload -U compinit; compinit -u -D"
    made = Terminal(argv, environ)
    try:
        made.types(f"{setup}; echo re''ady\n")
        made.shows("ready")
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("terminal", ["bash", "zsh"], indirect=True)
def test_a_shell_completes_a_job(terminal: Terminal) -> None:
    """The first TAB, too; what the line has become is what the shell would run."""
    terminal.types("rnx job stop \t")
    terminal.shows(f"rnx job stop {JOB}")
    terminal.types("\x15rnx job log aa\t")
    terminal.shows(f"rnx job log {OTHER}")


def test_fish_completes_a_job(environ: dict[str, str], command: Path) -> None:
    def completes(line: str) -> list[str]:
        code = f"source {SCRIPTS / 'rnx.fish'}; complete --do-complete '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code],
            env=environ, capture_output=True, text=True, check=True, timeout=DEADLINE_S,
        )  # fmt: skip
        return done.stdout.splitlines()

    assert completes("rnx job stop ") == [f"{JOB}\tRUNNING train: sh -c a\\nb\\x1b"]
    assert completes("rnx job log aa") == [f"{OTHER}\tCOMPLETED: true"]
    assert completes("rnx --node ") == ["default"]
    assert completes("rnx run --mer") == [
        "--merge\tOne pipe for stdout and stderr: their exact order, as one stream."
    ]
