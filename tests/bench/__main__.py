# SPDX-License-Identifier: MIT
"""`make bench`: a machine with Joblet installed and podman beside it, and what both of them cost.

    python3 -m tests.bench [--only logs] [--suite trixie] [--vm] [--write FILE] [--json FILE]

Everything is measured inside the machine, in one run, peers taking turns. Exit status 1 when
something broke; a slow figure is no failure.
"""

import argparse
import datetime
import io
import json
import logging
import os
import platform
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench import document, report
from tests.bench.guest.parts import PARTS
from tests.bench.guest.slow import DISK_RATE
from tests.bench.podman import podman_layer
from tests.machine.client import wait_served
from tests.machine.project import project_layer
from tests.machine.rig import SUITES, Cache, Machine, Nspawn, RigError, Vm
from tests.machine.rig.rundir import sweep

PROGRAM = "/usr/local/lib/joblet-bench.pyz"
GUEST = Path(__file__).with_name("guest")
RUNS = 60
VM_RUNS = 12
"""Emulated, everything takes ten times as long."""
QUIET_LOAD = 0.3
"""Of each core, in the minute before a run."""
PART_S = 900
PART_VM_S = 3600

ROUNDS = 3
MEGABYTES = 2000
"""Of each run in which output flows: what two cores do in a second or two, and as much as a
machine keeps in its page cache before it waits for the disk."""
MEGABYTES_VM = 50

GROUPS = {
    "jobs": ("launch", "whole", "rate", "memory", "list"),
    "logs": ("output", "writes", "followers", "screen", "storm"),
    "slow": ("slow",),
}
USUAL = ("jobs", "logs")
"""The others want a VM."""

LOGS = "/var/lib/joblet/logs"
FILES = "/var/lib/joblet-bench"
"""Both on the host's disk itself, as on a machine: a container's own disk is an overlay."""

log = logging.getLogger("bench")


def main() -> int:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="-- %(message)s", stream=sys.stderr)
    try:
        if os.geteuid() != 0:
            raise RigError("boot a machine", "that needs root")
        cache = Cache()
        sweep(cache)
        podman, why = podman_or_not(arguments, cache)
        begun = time.monotonic()
        with (
            tempfile.TemporaryDirectory(prefix="bench-", dir=cache.root) as disk,
            machine_for(arguments, podman, cache, Path(disk)) as machine,
        ):
            wait_served(machine)
            outcome = measure(machine, arguments, why)
        log.info("%.0f s", time.monotonic() - begun)
    except RigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if arguments.write:
        name = "slow" if "slow" in arguments.parts else "figures"
        figures = document.figures(outcome, datetime.datetime.now(tz=datetime.UTC).date())
        arguments.write.write_text(document.put(arguments.write.read_text(), name, figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(outcome, indent=1) + "\n")
    return 1 if outcome["broken"] else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description="Measurements of Joblet, with peers beside it."
    )
    suite = os.environ.get("SUITE", SUITES[0])
    parser.add_argument("--suite", choices=SUITES, default=suite, help="$SUITE, or %(default)s")
    parser.add_argument("--vm", action="store_true", help="in QEMU, with a kernel of its own")
    parser.add_argument("--runs", type=int, help=f"of each launch: {RUNS}, in a VM {VM_RUNS}")
    words = [*GROUPS, *PARTS]
    parser.add_argument(
        "--only",
        metavar="WORD,...",
        default=",".join(USUAL),
        help=f"groups ({', '.join(GROUPS)}) or parts of them ({', '.join(PARTS)})",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of output: %(default)s")
    parser.add_argument(
        "--megabytes", type=int, help=f"in each of these: {MEGABYTES}, in a VM {MEGABYTES_VM}"
    )
    parser.add_argument("--no-podman", action="store_true", help="without podman beside it")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the figures, into a document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, for programs")
    arguments = parser.parse_args()
    only = "" if arguments.only == ",".join(USUAL) else f" ONLY={arguments.only}"
    arguments.command = "make bench-slow" if arguments.only == "slow" else f"make bench{only}"
    arguments.parts = []
    for word in arguments.only.split(","):
        if word not in words:
            parser.error(f"no part {word!r}: there are {', '.join(words)}")
        arguments.parts += GROUPS.get(word, [word])
    arguments.megabytes = arguments.megabytes or (MEGABYTES_VM if arguments.vm else MEGABYTES)
    if "slow" in arguments.parts and not arguments.vm:
        parser.error("what is slow is a disk of a VM: --vm")
    if arguments.rounds < 1 or arguments.megabytes < 1:
        parser.error("--rounds and --megabytes must be 1 or more")
    arguments.runs = arguments.runs or (VM_RUNS if arguments.vm else RUNS)
    if arguments.runs < 2:
        parser.error("--runs must be 2 or more")
    return arguments


def podman_or_not(arguments: argparse.Namespace, cache: Cache) -> tuple[list[Path], str]:
    """Its layer; or none, and why."""
    if arguments.no_podman:
        return [], "left out with --no-podman"
    try:
        return [podman_layer(arguments.suite, cache)], ""
    except RigError as error:
        log.warning("%s", error)
        return [], f"cannot {error.what}: {error.why}"


def machine_for(
    arguments: argparse.Namespace, podman: list[Path], cache: Cache, disk: Path
) -> Machine:
    """`disk`: an empty directory of the host for what is written much."""
    suite = arguments.suite
    project = project_layer(suite, cache)
    if arguments.vm:
        # podman changes rarely, so it is part of the snapshot
        return Vm(suite, layers=podman, payload=project, cache=cache)
    # the project uppermost: its users and groups are the ones that count
    binds = {disk / "logs": LOGS, disk / "files": FILES}
    for path in binds:
        path.mkdir()
    return Nspawn(suite, layers=[*podman, *project], binds=binds, cache=cache)


def measure(machine: Machine, arguments: argparse.Namespace, no_podman: str) -> dict[str, Any]:
    """Prints as it goes. Raises RigError when the machine does not run a job."""
    machine.write(PROGRAM, archive())
    load = os.getloadavg()
    limit = PART_VM_S if arguments.vm else PART_S
    options: dict[str, Any] = {
        "runs": arguments.runs,
        "rounds": arguments.rounds,
        "megabytes": arguments.megabytes,
        "no_podman": no_podman,
    }
    facts = run(machine, "prepare", options, limit)
    where = describe(arguments, facts, load)
    print(where, flush=True)
    outcome: dict[str, Any] = {"suite": arguments.suite, "vm": arguments.vm, "machine": facts}
    outcome.update(command=arguments.command, where=where)
    outcome.update(load_before=load, tables=[], broken=False)
    if isinstance(machine, Vm):
        machine.throttle(DISK_RATE)
    for part in arguments.parts:
        begun = time.monotonic()
        try:
            tables = run(machine, part, {**options, **facts}, limit)["tables"]
        except RigError as error:
            tables = [{"title": part, "rows": [{"name": part, "error": error.detail}]}]
        for table in tables:
            print(f"\n{report.text(table)}", flush=True)
        outcome["tables"] += tables
        outcome["broken"] |= any(
            "error" in row and row["error"] != facts["podman_is"] and not row.get("known")
            for table in tables
            for row in table["rows"]
        )
        log.info("%s: %.0f s", part, time.monotonic() - begun)
    outcome["load_after"] = os.getloadavg()
    print(f"\nload of the host: {words(load)} before, {words(outcome['load_after'])} after")
    if outcome["broken"]:
        print(machine.trouble(60), file=sys.stderr)
    return outcome


def run(machine: Machine, part: str, options: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """What the guest's program says. Raises CommandFailed when it does not."""
    argv = ["/usr/bin/python3", PROGRAM, part, json.dumps(options)]
    answer: dict[str, Any] = json.loads(machine.run(argv, timeout=limit, check=True).stdout)
    return answer


def archive() -> bytes:
    """The guest's modules as a program of one file, under the names that they have here."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as program:
        program.writestr("tests/__init__.py", "")
        program.writestr("tests/bench/__init__.py", "")
        for path in sorted(GUEST.glob("*.py")):
            program.write(path, f"tests/bench/guest/{path.name}")
        program.writestr(
            "__main__.py", "import sys\nfrom tests.bench.guest.main import main\nsys.exit(main())\n"
        )
    return data.getvalue()


def describe(
    arguments: argparse.Namespace, facts: Mapping[str, Any], load: tuple[float, float, float]
) -> str:
    kind = "QEMU" if arguments.vm else "systemd-nspawn"
    return (
        f"{processor()}\n"
        f"{arguments.suite} in {kind}: kernel {facts['kernel']}, systemd {facts['systemd']}, "
        f"Python {facts['python']}, grpcio {facts['grpcio']}\n"
        f"{facts['cores']} cores, load {words(load)}{noise(load)}, "
        f"cgroup controllers: {facts['controllers']}\n"
        f"beside it: {facts['podman_is'] if facts['podman'] else 'systemd alone'}\n"
        f"{arguments.runs} runs of launches, {arguments.rounds} of output of "
        f"{arguments.megabytes} MB; p10 and p90: a tenth of the runs is below, a tenth above"
    )


def processor() -> str:
    """This host's, and its memory."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{model[1] if model else platform.machine()}, {total / 2**30:.0f} GiB of RAM"


def noise(load: tuple[float, float, float]) -> str:
    """A word on what else this host does: before a run nothing of ours does anything."""
    quiet = load[0] < QUIET_LOAD * (os.cpu_count() or 1)
    return "" if quiet else " (NOT QUIET: others took part of the cores, and only ratios count)"


def words(load: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.1f}" for value in load)


if __name__ == "__main__":
    sys.exit(main())
