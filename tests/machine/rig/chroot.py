# SPDX-License-Identifier: MIT
"""A command in a root that nobody has booted: no network, no privileges, nothing kept.

The root is the lower layer of an overlay whose upper lies on tmpfs, in namespaces of the command's
own; what it makes is seen outside only where a directory was bound.
"""

from __future__ import annotations

import subprocess
import tempfile
from typing import TYPE_CHECKING

from .errors import RigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

USER = 1000
"""Who runs commands: nobody that the root knows by name."""

# $1: an empty directory; $2: the root; then pairs of directory and path in it, "--", the command.
# Loopback alone is up: what a test serves, it reaches.
ENTER = r"""
set -e
scratch=$1 lower=$2
shift 2
mount -t tmpfs -o mode=0755 tmpfs "$scratch"
cd "$scratch"
mkdir upper work root
mount -t overlay -o "lowerdir=$lower,upperdir=upper,workdir=work" overlay root
cd root
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmpfs tmp
while [ "$1" != -- ]; do
    mkdir -p "./$2"
    mount --bind "$1" "./$2"
    shift 2
done
shift
python3 -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x41))'
exec chroot . "$@"
"""
NAMESPACES = ("--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child")


def run(
    root: Path,
    argv: Sequence[str],
    *,
    binds: Mapping[Path, str],
    cwd: str,
    env: Mapping[str, str] | None = None,
    timeout: float,
    user: int = USER,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command as an unprivileged user and returns how it ended, its two outputs in one.

    Raises RigError when it is not done in time.
    """
    environ = {
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/sbin:/usr/bin",
        **(env or {}),
    }
    with tempfile.TemporaryDirectory(prefix="joblet-chroot-") as scratch:
        command = [
            "unshare",
            *NAMESPACES,
            "--propagation",
            "private",
            "--",
            "sh",
            "-c",
            ENTER,
            "sh",
        ]
        command += [scratch, str(root)]
        for source, target in binds.items():
            command += [str(source), target]
        command += ["--", "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]
        command += ["env", f"--chdir={cwd}", "-i", *(f"{k}={v}" for k, v in environ.items()), *argv]
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            why = f"still running after {timeout:g} s"
            raise RigError(f"run {argv[0]} in {root.name}", why, late.stdout or b"") from None
