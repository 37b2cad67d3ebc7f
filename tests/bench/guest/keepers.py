# SPDX-License-Identifier: MIT
"""Who keeps output: Joblet, a pipe into `cat`, the journal, podman's k8s-file; and nobody at all.

Each checks what it kept afterwards, out of the time that is measured.
"""

import contextlib
import fcntl
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from rnx.errors import RnxError
from rnx.selection import Selection
from tests.bench.guest import store
from tests.bench.guest.errors import Broken
from tests.bench.guest.load import DIRECTORY, LINE_BYTES, Check, Load
from tests.bench.guest.peers import COMPLETED, Joblet, said
from tests.bench.guest.podman import Podman

FILES: Final = Path("/var/lib/joblet-bench")
"""On the same disk as the logs."""
PIPE_BYTES: Final = 1 << 20
"""As a job's."""
AT_A_TIME: Final = 16
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.001
LIST_POLL_S: Final = 0.02
JOURNAL_POLL_S: Final = 0.005
JOURNAL_PATIENCE_S: Final = 10.0
FINAL: Final = frozenset({COMPLETED, "FAILED", "STOPPED", "CANCELED"})
RIGHT: Final = "every byte as printed"
READ_BYTES: Final = 1 << 20


class JobletKeeper:
    """Jobs of Joblet."""

    name = "joblet"

    def __init__(self, joblet: Joblet) -> None:
        self._joblet = joblet
        self.jobs: dict[str, Load] = {}

    def start(self, loads: Sequence[Load]) -> None:
        def one(load: Load) -> str:
            return self._joblet.start(*load.command)

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            self.jobs = dict(zip(pool.map(one, loads), loads, strict=True))

    def wait_kept(self) -> int:
        for job, load in self.jobs.items():
            holds = functools.partial(store.holds, job, load.total)
            _until(holds, f"the output of job {job} in files")
        return time.monotonic_ns()

    def wait_ended(self) -> int:
        client = self._joblet.client

        def ended() -> bool:
            if len(self.jobs) == 1:
                return all(client.job_status(job).status in FINAL for job in self.jobs)
            final = {job.uuid for job in client.list_jobs().jobs if job.status in FINAL}
            return self.jobs.keys() <= final

        pause_s = LIST_POLL_S if len(self.jobs) > 1 else POLL_S
        _until(ended, "the end of all jobs", pause_s)
        return time.monotonic_ns()

    def check(self) -> str:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._check, self.jobs))
        return RIGHT

    def _check(self, job: str) -> None:
        check = Check(self.jobs[job])
        try:
            for chunk in self._joblet.client.job_logs(job, Selection(no_follow=True)):
                if chunk.HasField("gap"):
                    raise Broken(f"a gap in job {job}: {chunk.gap.kind} {chunk.gap.bytes}")
                check.update(chunk.payload)
            status = self._joblet.client.job_status(job)
        except RnxError as error:
            raise Broken(str(error)) from None
        check.done()
        if status.status != COMPLETED:
            raise Broken(f"job {job} is {status.status}: {status.reason_text}")

    def clean(self) -> None:
        """Stops what runs; removes the logs."""
        client = self._joblet.client

        def one(job: str) -> None:
            with contextlib.suppress(RnxError):
                if client.job_status(job).status not in FINAL:
                    client.stop_job(job)

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(one, self.jobs))
        store.remove(self._joblet.client, self.jobs)


class _Pipes:
    """Producers that are children of the bench, their output in pipes."""

    def __init__(self) -> None:
        self.producers: list[subprocess.Popen[bytes]] = []
        self.readers: list[subprocess.Popen[bytes]] = []

    def start(self, loads: Sequence[Load]) -> None:
        for load in loads:
            source, sink = os.pipe()
            fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self.producers.append(subprocess.Popen(load.command, stdout=sink))
            os.close(sink)
            self.take(load, source)
        self.begin()

    def take(self, load: Load, source: int) -> None:
        """A pipe to read, to be closed."""
        raise NotImplementedError

    def begin(self) -> None:
        """All pipes are there."""

    def wait_kept(self) -> int:
        return time.monotonic_ns()

    def wait_ended(self) -> int:
        for process in [*self.producers, *self.readers]:
            try:
                code = process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise Broken(f"{process.args!r} has not ended") from None
            if code != 0:
                raise Broken(f"{process.args!r} exited with {code}")
        return time.monotonic_ns()

    def check(self) -> str:
        return ""

    def clean(self) -> None:
        for process in [*self.producers, *self.readers]:
            process.kill()
            process.wait()


class CatKeeper(_Pipes):
    """The limit: nobody can keep what comes out of a pipe with less."""

    name = "cat > file"

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[Load, Path] = {}

    def take(self, load: Load, source: int) -> None:
        FILES.mkdir(exist_ok=True)
        path = self._files[load] = FILES / f"cat-{load.number}"
        with path.open("wb") as target:
            self.readers.append(subprocess.Popen(["cat"], stdin=source, stdout=target))
        os.close(source)

    def wait_kept(self) -> int:
        for load, path in self._files.items():
            _until(functools.partial(_has_size, path, load.total), f"{load.total} bytes in {path}")
        return time.monotonic_ns()

    def check(self) -> str:
        for load, path in self._files.items():
            check = Check(load)
            with path.open("rb") as file:
                while chunk := file.read(READ_BYTES):
                    check.update(chunk)
            check.done()
        return RIGHT

    def clean(self) -> None:
        super().clean()
        for path in self._files.values():
            path.unlink(missing_ok=True)


class CatNull(_Pipes):
    """What the producers can do at most with a reader each that keeps nothing."""

    name = "cat > /dev/null"

    def take(self, load: Load, source: int) -> None:
        argv = ["cat"]
        self.readers.append(subprocess.Popen(argv, stdin=source, stdout=subprocess.DEVNULL))
        os.close(source)


class SpliceNull(_Pipes):
    """The cheapest reader there is: one process for all pipes, which splices them away, and rests
    as long as they may fill, so that it takes hardly any CPU from the producers."""

    name = "splice to /dev/null, every 2 ms"

    PROGRAM = """
import os, sys, time
left = [int(word) for word in sys.argv[1:]]
null = os.open("/dev/null", os.O_WRONLY)
while left:
    for fd in left[:]:
        try:
            if os.splice(fd, null, 1 << 20, flags=2) == 0:
                left.remove(fd)
        except BlockingIOError:
            pass
    time.sleep(0.002)
"""

    def __init__(self) -> None:
        super().__init__()
        self._sources: list[int] = []

    def take(self, load: Load, source: int) -> None:
        os.set_blocking(source, False)
        self._sources.append(source)

    def begin(self) -> None:
        argv = [sys.executable, "-IS", "-c", self.PROGRAM, *map(str, self._sources)]
        self.readers.append(subprocess.Popen(argv, pass_fds=self._sources))
        for source in self._sources:
            os.close(source)


class JournalKeeper:
    """`systemd-run`, as it comes: output to the journal. Its limit on the rate is taken off."""

    name = "systemd-run, to the journal"

    def __init__(self) -> None:
        self._units: dict[str, Load] = {}

    def start(self, loads: Sequence[Load]) -> None:
        base = f"joblet-bench-{time.monotonic_ns()}"
        self._units = {f"{base}-{load.number}.service": load for load in loads}
        # an interval of 0 would leave the journal's own limit
        limits = [
            "--property=LogRateLimitIntervalSec=1s",
            "--property=LogRateLimitBurst=1000000000",
        ]
        options = ["--quiet", "--collect", *limits]

        def one(unit: str) -> None:
            said(["systemd-run", *options, f"--unit={unit}", "--", *self._units[unit].command])

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(one, self._units))

    def wait_kept(self) -> int:
        """Until the last line of each is in the journal, or it is clear that it will not be."""
        kept = time.monotonic_ns()
        for unit, load in self._units.items():
            last = load.last_line.rstrip(b"\n").decode()
            with contextlib.suppress(Broken):  # check() says what is missing
                has = functools.partial(_last_is, unit, last)
                _until(has, "the journal", JOURNAL_POLL_S, JOURNAL_PATIENCE_S)
                kept = time.monotonic_ns()
        return kept

    def wait_ended(self) -> int:
        return time.monotonic_ns()

    def check(self) -> str:
        said(["journalctl", "--sync"])
        kept = whole = 0
        right = True
        for unit, load in self._units.items():
            argv = ["journalctl", "--quiet", f"--unit={unit}", "--output=cat"]
            argv.append(f"SYSLOG_IDENTIFIER={Path(load.command[0]).name}")
            output = subprocess.run(argv, stdout=subprocess.PIPE, check=False).stdout
            kept += output.count(b"\n")
            whole += load.total // LINE_BYTES
            check = Check(load)
            check.update(output)
            try:
                check.done()
            except Broken:
                right = False
        if right:
            return RIGHT
        return f"kept {kept} of {whole} lines"

    def clean(self) -> None:
        # they end by themselves when the gate is gone; what is left of a broken run is ended here
        if self._units:
            pattern = next(iter(self._units)).rpartition("-")[0] + "-*"
            subprocess.run(["systemctl", "stop", pattern], check=False, capture_output=True)


class PodmanKeeper:
    """Detached containers, conmon writing podman's k8s-file on the same disk."""

    name = "podman run -d, k8s-file"

    def __init__(self, podman: Podman) -> None:
        self._podman = podman
        self._containers: dict[str, Load] = {}

    def start(self, loads: Sequence[Load]) -> None:
        FILES.mkdir(exist_ok=True)
        bind = f"--volume={DIRECTORY}:{DIRECTORY}"

        def one(load: Load) -> str:
            log = f"--log-opt=path={self._file(load)}"
            options = ("--detach", "--log-driver=k8s-file", log, bind)
            return said([*self._podman.run(*options), *load.command]).strip()

        with ThreadPoolExecutor(4) as pool:
            self._containers = dict(zip(pool.map(one, loads), loads, strict=True))

    def _file(self, load: Load) -> Path:
        return FILES / f"podman-{load.number}.log"

    def wait_kept(self) -> int:
        for load in self._containers.values():
            ends = functools.partial(_ends_with, self._file(load), load.last_line)
            _until(ends, f"the end of the log of job {load.number}")
        return time.monotonic_ns()

    def wait_ended(self) -> int:
        said([*self._podman.command, "wait", *self._containers])
        return time.monotonic_ns()

    def check(self) -> str:
        right = True
        for load in self._containers.values():
            check = Check(load)
            with self._file(load).open("rb") as file:
                for content in k8s_contents(file):
                    check.update(content)
            try:
                check.done()
            except Broken:
                right = False
        return RIGHT if right else "bytes differ from what was printed"

    def clean(self) -> None:
        if self._containers:
            argv = [*self._podman.command, "rm", "--force", "--time=0", *self._containers]
            subprocess.run(argv, check=False, capture_output=True)
        for load in self._containers.values():
            self._file(load).unlink(missing_ok=True)


def k8s_contents(lines: Iterator[bytes]) -> Iterator[bytes]:
    """What a k8s-file log holds: `TIME STREAM TAG CONTENT`, TAG P for a piece of a line and F for
    its end. Raises Broken."""
    for line in lines:
        fields = line.split(b" ", 3)
        if len(fields) != 4 or fields[2] not in (b"P", b"F"):
            raise Broken(f"no line of a k8s-file log: {line[:100]!r}")
        yield fields[3] if fields[2] == b"F" else fields[3].removesuffix(b"\n")


def _last_is(unit: str, message: str) -> bool:
    """Whether the journal has that as a unit's last message."""
    from systemd import journal  # the machine has it, the host that imports this need not

    with journal.Reader() as reader:
        reader.add_match(_SYSTEMD_UNIT=unit)
        reader.seek_tail()
        return bool(reader.get_previous().get("MESSAGE") == message)


def _has_size(path: Path, size: int) -> bool:
    return path.stat().st_size >= size


def _ends_with(path: Path, line: bytes) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(line)))
            return file.read() == line
    except FileNotFoundError:
        return False


def _until(
    done: Callable[[], bool],
    what: str,
    pause_s: float = POLL_S,
    limit_s: float = PATIENCE_S,
) -> None:
    """Raises Broken at the deadline."""
    end = time.monotonic() + limit_s
    try:
        while not done():
            if time.monotonic() > end:
                raise Broken(f"{what}: not there after {limit_s:.0f} s")
            time.sleep(pause_s)
    except RnxError as error:
        raise Broken(str(error)) from None
