# SPDX-License-Identifier: MIT
"""`make demo`: a throw-away machine with Joblet in it, and what a person wants to see of it.

With --job it runs that command line instead, through rnx in the machine, and exits with its code.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time

from tests.machine.project import project_layer
from tests.machine.rig import Cache, Nspawn, RigError
from tests.machine.rig.roots import SUITES

BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
READY_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--job", default="")
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0])
    arguments = parser.parse_args()
    try:
        if os.geteuid() != 0:
            raise RigError("boot a machine", "that needs root")
        cache = Cache()
        note(f"a throw-away Debian {arguments.suite} machine, with this tree installed")
        layers = project_layer(arguments.suite, cache)
        begun = time.monotonic()
        with Nspawn(arguments.suite, layers=layers, cache=cache) as machine:
            machine.run("systemctl is-active --wait joblet.service", timeout=READY_S)
            note(f"it is up after {time.monotonic() - begun:.1f} s")
            if arguments.job:
                return machine.shell(["rnx", "run", "--follow", "sh", "-c", arguments.job])
            return show(machine)
    except RigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def show(machine: Nspawn) -> int:
    """A walk through what there is; the exit status says whether all of it worked."""
    bad = 0
    bad += say(
        machine,
        "rnx run --follow sh -c 'echo hello from $(hostname), as uid $(id -u); exit 3'",
        code=3,
    )
    controllers = machine.run("cat /sys/fs/cgroup/cgroup.controllers").text
    limits = "--max-cpu 50 --max-memory 256"
    count = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done; sleep 60"
    if "memory" not in controllers:
        note(
            "this machine's kernel gives it no cgroup controllers, so a job with limits is refused:"
        )
        bad += say(machine, f"rnx run {limits} sleep 1", code=1)
        limits = ""
    job = start(machine, f"rnx run {limits} --name counter sh -c {shlex.quote(count)}")
    bad += not job
    bad += say(machine, f"timeout 2 rnx log --follow {job}", code=124)
    bad += say(machine, f"rnx status {job}")
    bad += say(machine, f"systemctl status --no-pager joblet-{job}.scope")
    bad += say(machine, f"journalctl --no-pager -n 5 -u joblet-{job}.scope")
    bad += say(machine, f"rnx stop {job}")
    bad += say(machine, "rnx list")
    note("done; the machine goes")
    return 1 if bad else 0


def start(machine: Nspawn, command: str) -> str:
    """Run what starts a job; its id."""
    print(f"{BOLD}# {command}{PLAIN}", flush=True)
    result = machine.run(command)
    print(result.text, flush=True)
    return next(
        (line.split()[1] for line in result.text.splitlines() if line.startswith("ID:")), ""
    )


def say(machine: Nspawn, command: str, *, code: int = 0) -> bool:
    """Show a command and what it prints; True when its exit status is not the expected one."""
    print(f"{BOLD}# {command}{PLAIN}", flush=True)
    result = machine.run(command)
    for text in (result.text, result.errors):
        if text:
            print(text)
    print(flush=True)
    if result.code != code:
        print(f"it exited with {result.code}, not {code}", file=sys.stderr)
    return result.code != code


def note(text: str) -> None:
    print(f"{BOLD}-- {text}{PLAIN}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
