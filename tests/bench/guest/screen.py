# SPDX-License-Identifier: MIT
"""The part that measures how long a line takes from a job's write(2) to a follower's screen.

On a quiet machine: one job, a line now and then, shown by the command that people use. Each line is
the time of its own write.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Final

from rnx.errors import RnxError
from tests.bench.guest.errors import Broken
from tests.bench.guest.measure import Table, broken, percentile, row
from tests.bench.guest.peers import Joblet, said
from tests.bench.guest.podman import Podman
from tests.bench.guest.server import restart
from tests.bench.guest.setting import Setting

LINES: Final = 300
SKIPPED: Final = 20
"""The first ones show the way."""
PAUSE_S: Final = 0.01
START_S: Final = 1.5
"""Before the first line, for the follower to stand."""

# Pauses that differ, so that no timer of anybody's goes along with them.
PROGRAM: Final = f"""
import os, time
time.sleep({START_S})
for number in range({LINES}):
    os.write(1, b"%d\\n" % time.monotonic_ns())
    time.sleep({PAUSE_S} + number % 7 / 1000)
"""
COMMAND: Final = ("/usr/bin/python3", "-IS", "-c", PROGRAM)


def screen(setting: Setting) -> list[Table]:
    """p50 and p99, from the write to the line's arrival."""
    restart()
    joblet = Joblet()
    ways: dict[str, Callable[[], contextlib.AbstractContextManager[list[str]]]] = {
        "joblet: rnx job log --follow": lambda: _joblet(joblet),
        "systemd-run, journalctl --follow": _journal,
    }
    if setting.podman is not None:
        podman = setting.podman
        ways["podman logs --follow"] = lambda: _podman(podman)
    middle: dict[str, list[float]] = {}
    last: dict[str, list[float]] = {}
    errors: dict[str, str] = {}
    for _ in range(setting.rounds):
        for name, way in ways.items():
            if name in errors:
                continue
            try:
                with way() as argv:
                    times = _watch(argv)
            except Broken as error:
                errors[name] = str(error)
                continue
            middle.setdefault(name, []).append(percentile(times, 50))
            last.setdefault(name, []).append(percentile(times, 99))
    note = f"{LINES - SKIPPED} lines in each run"
    tables: list[Table] = []
    for word, found in (("median", middle), ("p99", last)):
        rows = [
            row(name, values, ours=name.startswith("joblet"), note=note)
            for name, values in found.items()
        ]
        rows += [broken(name, error) for name, error in errors.items()]
        tables.append(
            {"title": f"from a job's write to the follower's screen: {word}", "rows": rows}
        )
    return tables


def _watch(argv: list[str]) -> list[float]:
    """How late each line was, ms. Raises Broken if there are not enough."""
    late: list[float] = []
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            while len(late) < LINES:
                chunk = os.read(process.stdout.fileno(), 65536)
                now = time.monotonic_ns()
                if not chunk:
                    raise Broken(f"{argv[0]} showed {len(late)} of {LINES} lines")
                late += [(now - int(line)) / 1e6 for line in chunk.split() if line.isdigit()]
        finally:
            process.kill()
    return late[SKIPPED:]


@contextlib.contextmanager
def _joblet(joblet: Joblet) -> Iterator[list[str]]:
    job = joblet.start(*COMMAND)
    yield ["rnx", "job", "log", "--follow", job]
    with contextlib.suppress(RnxError):
        joblet.client.stop_job(job)


@contextlib.contextmanager
def _journal() -> Iterator[list[str]]:
    unit = f"joblet-bench-screen-{time.monotonic_ns()}.service"
    said(["systemd-run", "--quiet", "--collect", f"--unit={unit}", "--", *COMMAND])
    yield ["journalctl", "--follow", "--lines=all", "--output=cat", f"--unit={unit}"]
    subprocess.run(["systemctl", "stop", unit], check=False, capture_output=True)


@contextlib.contextmanager
def _podman(podman: Podman) -> Iterator[list[str]]:
    # the image has no Python; the machine's own is lent
    binds = [f"--volume={path}:{path}:ro" for path in ("/usr", "/lib", "/lib64")]
    options = ("--detach", "--log-driver=k8s-file", *binds)
    container = said([*podman.run(*options), *COMMAND]).strip()
    yield [*podman.command, "logs", "--follow", container]
    argv = [*podman.command, "rm", "--force", "--time=0", container]
    subprocess.run(argv, check=False, capture_output=True)
