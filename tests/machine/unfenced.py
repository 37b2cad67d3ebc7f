# SPDX-License-Identifier: MIT
"""A job with one of its fences taken away: runs in a machine as root, with what is installed there.

    python3 -I unfenced.py FENCE COMMAND [ARGUMENT ...]

FENCE is one of FENCES. Prints what the job prints. Init mode and its policy have no part in it, for
they have no such switch: what is taken away is taken out of the code of this process, and the
zygote that it forks. test_sandbox.py is the other end.
"""

import contextlib
import os
import select
import socket
import sys
import uuid
from pathlib import Path

sys.path.insert(0, "/usr/share/joblet")

from joblet.init import seccomp
from joblet.init.directories import Directories
from joblet.launch import command, ops, pid1, protocol, zygote
from joblet.launch.plan import Filters, Plan

JOBS = Path("/var/lib/joblet-unfenced")
CGROUP = Path("/sys/fs/cgroup/joblet-unfenced")
UID_BASE = 0x7F00_0000
WAIT_S = 60.0


def whole(filters: Filters) -> Filters:
    return filters


def no_filters(filters: Filters) -> Filters:
    return ()


def no_filters_and_every_capability(filters: Filters) -> Filters:
    command._capabilities = lambda: None
    return ()


def no_masks(filters: Filters) -> Filters:
    ops.masks = list
    return filters


FENCES = {
    "none": whole,
    "seccomp": no_filters,
    "seccomp and capabilities": no_filters_and_every_capability,
    "masks": no_masks,
}


def run(fence: str, argv: list[str]) -> None:
    filters = FENCES[fence](seccomp.make(("default",))["default"])
    made = zygote.Zygote()
    JOBS.mkdir(mode=0o711, exist_ok=True)
    directories = Directories(JOBS)
    env = {"PATH": "/usr/bin:/bin"}
    path = f"/usr/bin/{argv[0]}"
    plan = Plan(job=str(uuid.uuid4()), path=path, argv=tuple(argv), env=env, uid_base=UID_BASE)
    directory, ends = directories.create(plan.job, plan.uid_base, plan.streams)
    gate, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memfd = os.memfd_create("plan")
    os.write(memfd, plan.to_checked(filters))
    made.request(str(JOBS / plan.job), [memfd, directory, theirs.fileno(), *ends])
    theirs.close()
    for fd in (memfd, directory, *ends):
        os.close(fd)
    wait(made.socket.fileno())
    pid, _ = made.answer()
    scope = CGROUP / plan.unit
    scope.mkdir(parents=True)
    (scope / "cgroup.procs").write_text(str(pid))
    wait(gate.fileno())
    assert gate.recv(64) == pid1.READY
    _, ctl = directories.connect(plan.job)
    assert ctl is not None
    ctl.setblocking(True)
    gate.send(pid1.GO)
    _, fds, _, _ = socket.recv_fds(ctl, protocol.MAX_MESSAGE, 8)
    wait(fds[0])
    os.set_blocking(fds[0], True)
    while data := os.read(fds[0], 65536):
        sys.stdout.buffer.write(data)
    sys.stdout.flush()
    ctl.send(protocol.encode(protocol.ACKNOWLEDGE))
    with contextlib.suppress(ConnectionError):  # it goes, as it was told to
        while ctl.recv(protocol.MAX_MESSAGE):
            ctl.send(protocol.encode(protocol.ACKNOWLEDGE))
    directories.remove(plan.job)


def wait(fd: int) -> None:
    assert select.select([fd], [], [], WAIT_S)[0], "nothing came"


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
