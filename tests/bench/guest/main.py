# SPDX-License-Identifier: MIT
"""One part in one process: `python3 bench.pyz prepare|PART|HELPER OPTIONS`, JSON on stdout.

`prepare` says what the machine is and how podman is called; the others are given that back. Exit
status 1 and a sentence on stderr when a part could not be measured at all.
"""

import dataclasses
import gc
import json
import os
import platform
import resource
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any, Final

from rnx.errors import RnxError
from tests.bench.guest import followers, load, podman, stamp, tls
from tests.bench.guest.errors import Broken
from tests.bench.guest.measure import CGROUPS
from tests.bench.guest.parts import PARTS
from tests.bench.guest.peers import SERVICE, Joblet
from tests.bench.guest.podman import Podman
from tests.bench.guest.setting import Setting

HELPERS: Final[dict[str, Callable[[dict[str, Any]], None]]] = {
    followers.ROLE: followers.follow,
    tls.SENDER: tls.send,
    tls.RECEIVER: tls.receive,
}


def main() -> int:
    part, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        if part in HELPERS:
            HELPERS[part](options)
            return 0
        answer = prepare(options) if part == "prepare" else measure(part, options)
    except (Broken, RnxError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


def prepare(options: dict[str, Any]) -> dict[str, Any]:
    """Raises Broken when Joblet itself does not run a job."""
    stamp.install()
    load.install()
    stamp.read(Joblet().run(stamp.PATH.name).output)
    stamp.read(SERVICE.run(stamp.PATH.name).output)
    found: Podman | None = None
    missing = str(options["no_podman"])
    if not missing:
        try:
            found = podman.find()
        except Broken as error:
            missing = str(error)
    return {
        "podman": None if found is None else dataclasses.asdict(found),
        "podman_is": missing if found is None else found.description,
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "systemd": SERVICE.run("systemctl --version").output.decode().split()[1],
        "python": platform.python_version(),
        "grpcio": metadata.version("grpcio"),
        "controllers": _controllers(),
    }


def measure(part: str, options: dict[str, Any]) -> dict[str, Any]:
    given = options["podman"]
    found = None if given is None else Podman(**{**given, "options": tuple(given["options"])})
    setting = Setting(
        options["runs"], options["rounds"], options["megabytes"], found, options["podman_is"]
    )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a pipe for each of many producers
    gc.collect()
    gc.freeze()
    return {"tables": PARTS[part](setting)}


def _controllers() -> str:
    return (CGROUPS / "cgroup.controllers").read_text().strip() or "none"
