# SPDX-License-Identifier: MIT
"""The rig's command line, run from the top of the repository:

python3 -m tests.machine.rig build [SUITE…] [--no-vm] [--no-project]   whatever is missing
python3 -m tests.machine.rig shell SUITE [--bare] [COMMAND…]           a machine, gone at exit
python3 -m tests.machine.rig sweep                                     what dead runs left
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from tests.machine import project
from tests.machine.autopkgtest import testbed

from . import kernel, roots, snapshot
from .archive import archive
from .cache import Cache
from .errors import RigError
from .nspawn import Nspawn
from .rundir import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

log = logging.getLogger("rig")

KEEP_DAYS = 30
"""Roots, kernels, images and snapshots that nobody has used for so long are removed."""


def build(cache: Cache, suites: Sequence[str], *, vms: Sequence[str], layers: bool) -> None:
    """Makes what is missing, each thing as soon as what it needs is there."""
    begun = time.monotonic()
    for kind in ("root", "archive", "kernel", "image", "snapshot"):
        cache.prune(kind, KEEP_DAYS)

    def after(first: Future[Path], then: Callable[[], object]) -> None:
        first.result()
        then()

    with ThreadPoolExecutor(16) as pool:
        # The VM's suite first: a snapshot takes longest.
        ordered = sorted(suites, key=lambda suite: suite not in vms)
        root = {suite: pool.submit(roots.root, cache, suite) for suite in ordered}
        work: list[Future[object]] = [*root.values()]  # type: ignore[list-item]
        for suite in vms:
            work.append(pool.submit(kernel.kernel, cache, suite))
            need = root.get(suite) or pool.submit(roots.root, cache, suite)
            work.append(pool.submit(after, need, _freezing(cache, suite)))
        if layers:
            for suite, made in root.items():
                work.append(pool.submit(after, made, _installing(cache, suite)))
                work.append(pool.submit(_archive, cache, suite))
        done, _ = wait(work, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    log.info("everything is there after %.1f s", time.monotonic() - begun)


def _freezing(cache: Cache, suite: str) -> Callable[[], object]:
    return lambda: snapshot.snapshot(cache, suite)


def _installing(cache: Cache, suite: str) -> Callable[[], object]:
    return lambda: project.project_layer(suite, cache)


def _archive(cache: Cache, suite: str) -> object:
    """What the tests of the package install beside it."""
    testbed(suite, cache)
    return archive(cache, suite, roots.depends(roots.CONTROL.read_text()), roots.MINIMAL)


def shell(cache: Cache, suite: str, command: Sequence[str], *, bare: bool) -> int:
    layers = [] if bare else project.project_layer(suite, cache)
    begun = time.monotonic()
    with Nspawn(suite, layers=layers, cache=cache) as machine:
        log.info("%s is up after %.1f s", machine.name, time.monotonic() - begun)
        if command:
            return machine.shell(command)
        print(f"{suite}, a machine of its own: it goes when this shell ends", file=sys.stderr)
        return machine.shell()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python3 -m tests.machine.rig", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = top.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="make roots, VM and installed project if missing")
    builder.add_argument("suites", nargs="*", metavar="SUITE", help="all suites by default")
    builder.add_argument("--no-vm", action="store_true", help="nothing for VMs")
    builder.add_argument("--no-project", action="store_true", help="not the project of this tree")
    booter = commands.add_parser("shell", help="boot a machine and run a shell in it")
    booter.add_argument("suite", choices=roots.SUITES)
    booter.add_argument("--bare", action="store_true", help="without the project")
    booter.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")
    commands.add_parser("sweep", help="remove what dead runs left behind")
    return top


def main() -> int:
    arguments = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="rig: %(message)s", stream=sys.stderr)
    try:
        if os.geteuid() != 0:
            raise RigError("make machines", "that needs root")
        cache = Cache()
        sweep(cache)
        if arguments.command == "build":
            suites = [roots.check_suite(suite) for suite in arguments.suites or roots.SUITES]
            vms = [suite for suite in roots.vm_suites() if suite in suites and not arguments.no_vm]
            build(cache, suites, vms=vms, layers=not arguments.no_project)
        elif arguments.command == "shell":
            return shell(cache, arguments.suite, arguments.argv, bare=arguments.bare)
    except RigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
