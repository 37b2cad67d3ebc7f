# SPDX-License-Identifier: MIT
"""Who is measured: Joblet through its client library, and what a sysadmin would use instead.

Each runs one command to its end and tells when that began and ended. A client that is a process is
a part of what it costs to use it, so its start counts; Joblet's is a connection that stays open.
"""

import dataclasses
import subprocess
import time
from pathlib import Path
from typing import Protocol

from joblet_pb import joblet_pb2 as pb
from rnx import config
from rnx.client import Client
from rnx.errors import RnxError
from tests.bench.guest.errors import Broken

CONFIGURATION = Path("/etc/joblet/rnx-config.yml")
COMPLETED = "COMPLETED"


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Times as of time.monotonic_ns(). answered: when RunJob was, 0 for a client without an answer
    before the end."""

    begin_ns: int
    end_ns: int
    output: bytes
    answered_ns: int = 0


class Peer(Protocol):
    @property
    def name(self) -> str: ...

    def run(self, command: str) -> Run:
        """The command, found in the PATH, from the request to its known end. Raises Broken."""


class Joblet:
    """A node's client, with the connection made: many threads may use it.

    A run is what `rnx run --follow` does: RunJob, the log to its end, the status.
    """

    name = "joblet"

    def __init__(self) -> None:
        try:
            self.client = Client(config.load(CONFIGURATION).node(config.DEFAULT_NODE))
            self.client.list_jobs()
        except RnxError as error:
            raise Broken(str(error)) from None

    def start(self, command: str, *args: str) -> str:
        """The id of a job that runs, or has ended already."""
        try:
            return self.client.run_job(pb.RunJobRequest(command=command, args=args)).job_uuid
        except RnxError as error:
            raise Broken(str(error)) from None

    def run(self, command: str) -> Run:
        begin = time.monotonic_ns()
        output = bytearray()
        try:
            job = self.start(command)
            answered = time.monotonic_ns()
            for chunk in self.client.job_logs(job):
                output += chunk.payload
            status = self.client.job_status(job)
        except RnxError as error:
            raise Broken(str(error)) from None
        end = time.monotonic_ns()
        if status.status != COMPLETED:
            raise Broken(f"job {job} is {status.status}: {status.reason_text}")
        return Run(begin, end, bytes(output), answered)


class Process:
    """A client that is a process of its own: `argv`, then the command."""

    def __init__(self, name: str, *argv: str) -> None:
        self.name = name
        self.argv = argv

    def run(self, command: str) -> Run:
        begin = time.monotonic_ns()
        with subprocess.Popen(
            [*self.argv, *command.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            output = process.stdout.read() if process.stdout else b""
            code = process.wait()
        end = time.monotonic_ns()
        if code != 0:
            said = output.decode(errors="replace").strip()[-300:]
            raise Broken(f"{self.name} exited with {code}: {said}")
        return Run(begin, end, output)


def said(argv: list[str]) -> str:
    """What a command prints. Raises Broken if it fails."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()[-300:]
        raise Broken(f"{argv[0]} exited with {done.returncode}: {words}")
    return done.stdout.decode(errors="replace")


SCOPE = Process("systemd-run --scope", "systemd-run", "--quiet", "--scope", "--")
SERVICE = Process(
    "systemd-run --wait --pipe",
    *("systemd-run", "--quiet", "--collect", "--wait", "--pipe", "--"),
)
RNX = Process("joblet: rnx run --follow, a process", "rnx", "run", "--follow")
