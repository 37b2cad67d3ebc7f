# SPDX-License-Identifier: MIT
"""`make bench`: a machine with Joblet installed and podman beside it, and what both of them cost.

    python3 -m tests.bench [--suite trixie] [--vm] [--parts launch,rate] [--json FILE]

Everything but the log store is measured inside the machine, in one run, peers taking turns. Exit
status 1 when something broke; a slow figure is no failure.
"""

import argparse
import io
import json
import logging
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench import report
from tests.bench.guest.parts import PARTS
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
PART_S = 600
PART_VM_S = 3600

LOGS = "logs"
"""The part that measures the log store by itself, on the host's own disk and Python."""
LOGS_ARGV = (
    sys.executable,
    str(Path(__file__).with_name("logs_throughput.py")),
    *("--mib", "256", "--repeat", "1"),
)

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
        with machine_for(arguments, podman, cache) as machine:
            wait_served(machine)
            outcome = measure(machine, arguments, why)
        if LOGS in arguments.parts:
            print("\nthe log store alone, on this host's disk: lines of 100 bytes", flush=True)
            outcome["broken"] |= subprocess.call(LOGS_ARGV, stderr=subprocess.DEVNULL) != 0
        log.info("%.0f s", time.monotonic() - begun)
    except RigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
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
    every = [*PARTS, LOGS]
    parser.add_argument("--parts", help=f"some of {','.join(every)}", default=",".join(every))
    parser.add_argument("--no-podman", action="store_true", help="without podman beside it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, for programs")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts.split(",")
    if unknown := [part for part in arguments.parts if part not in every]:
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(every)}")
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


def machine_for(arguments: argparse.Namespace, podman: list[Path], cache: Cache) -> Machine:
    suite = arguments.suite
    project = project_layer(suite, cache)
    if arguments.vm:
        # podman changes rarely, so it is part of the snapshot
        return Vm(suite, layers=podman, payload=project, cache=cache)
    # the project uppermost: its users and groups are the ones that count
    return Nspawn(suite, layers=[*podman, *project], cache=cache)


def measure(machine: Machine, arguments: argparse.Namespace, no_podman: str) -> dict[str, Any]:
    """Prints as it goes. Raises RigError when the machine does not run a job."""
    machine.write(PROGRAM, archive())
    load = os.getloadavg()
    limit = PART_VM_S if arguments.vm else PART_S
    options: dict[str, Any] = {"runs": arguments.runs, "no_podman": no_podman}
    facts = run(machine, "prepare", options, limit)
    print(describe(arguments, facts, load), flush=True)
    outcome: dict[str, Any] = {"suite": arguments.suite, "vm": arguments.vm, "machine": facts}
    outcome.update(load_before=load, tables=[], broken=False)
    for part in [part for part in arguments.parts if part != LOGS]:
        begun = time.monotonic()
        try:
            tables = run(machine, part, {**options, **facts}, limit)["tables"]
        except RigError as error:
            tables = [{"title": part, "rows": [{"name": part, "error": error.detail}]}]
        for table in tables:
            print(f"\n{report.text(table)}", flush=True)
        outcome["tables"] += tables
        outcome["broken"] |= any(
            "error" in row and row["error"] != facts["podman_is"]
            for table in tables
            for row in table["rows"]
        )
        log.info("%s: %.0f s", part, time.monotonic() - begun)
    outcome["load_after"] = os.getloadavg()
    print(f"\nload of the host: {words(load)} before, {words(outcome['load_after'])} after")
    if outcome["broken"]:
        print(machine.trouble(), file=sys.stderr)
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
        f"{arguments.suite} in {kind}: kernel {facts['kernel']}, systemd {facts['systemd']}, "
        f"Python {facts['python']}, grpcio {facts['grpcio']}\n"
        f"{facts['cores']} cores, load {words(load)}, cgroup controllers: {facts['controllers']}\n"
        f"beside it: {facts['podman_is'] if facts['podman'] else 'systemd alone'}\n"
        "p10 and p90: a tenth of the runs is below, a tenth above"
    )


def words(load: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.1f}" for value in load)


if __name__ == "__main__":
    sys.exit(main())
