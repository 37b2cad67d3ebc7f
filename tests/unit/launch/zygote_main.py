# SPDX-License-Identifier: MIT
"""A zygote for tests, in a mount namespace of its own.

    zygote_main.py SOCKET_FD JOBS_DIR SIZE CGROUP

JOBS_DIR gets a tmpfs of SIZE (as of mount's size=), and with CGROUP=1 a cgroup2 hierarchy lies at
/sys/fs/cgroup, where PID 1 looks for it, however this host has mounted it. Nothing of that is seen
outside; it goes with the last process in there.
"""

import contextlib
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from joblet.launch import syscalls, zygote


def main(fd: int, jobs: str, size: str, *, cgroup: bool) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", jobs, "tmpfs", 0, f"size={size},mode=711")
    if cgroup:
        syscalls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    with contextlib.suppress(OSError):
        syscalls.join_session_keyring()  # as systemd does for a service (KeyringMode=private)
    sock = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    sock.send(b"mounted")
    zygote._serve(sock)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], cgroup=sys.argv[4] == "1")
