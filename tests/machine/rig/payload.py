# SPDX-License-Identifier: MIT
"""What a VM clone gets on top of its snapshot: layers as one tar on a disk of their own.

The tar's first member lists what the layers delete, so that layers mean the same in a VM as they
do as overlays of a container.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .errors import RigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REMOVED = ".rig-removed"
OPAQUE = "SCHILY.xattr.trusted.overlay.opaque"

# In the guest. Reading stops at the tar's end mark: the disk is longer.
UNPACK = """
set -e
tar -xf /dev/vdb -C /run --occurrence=1 .rig-removed
cd /; xargs -0 -r rm -rf -- < /run/.rig-removed
tar -xf /dev/vdb -C / --numeric-owner --no-overwrite-dir --keep-directory-symlink \
    --exclude=.rig-removed
rm /run/.rig-removed
systemctl daemon-reload
systemd-tmpfiles --create --exclude-prefix=/dev || :
# Starting a target looks at what it wants itself, not at the targets beneath it.
systemctl start multi-user.target basic.target sockets.target timers.target paths.target
"""


def write(layers: Sequence[Path], target: Path) -> None:
    """Writes the tar of these layers, lowest first, to `target`."""
    removed: set[str] = set()
    members: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    for layer in layers:
        for member, data in _members(layer):
            name = member.name
            if member.ischr() and member.devmajor == member.devminor == 0:  # a whiteout
                removed.add(name)
                for gone in [n for n in members if n == name or n.startswith(name + "/")]:
                    del members[gone]
                continue
            if member.pax_headers.get(OPAQUE) == "y":
                removed.add(name)
            members[name] = (member, data)
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        text = "\0".join(sorted(removed)).encode()
        header = tarfile.TarInfo(REMOVED)
        header.size = len(text)
        tar.addfile(header, io.BytesIO(text))
        # a directory comes before what is in it, also where a later layer has brought it
        for _, (member, data) in sorted(members.items(), key=lambda item: PurePosixPath(item[0])):
            tar.addfile(member, io.BytesIO(data))


def _members(layer: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The members of a layer, without the leading "./" and without the layer's top."""
    argv = ["cat", str(layer)]
    if layer.is_dir():
        argv = ["tar", "-C", str(layer), "--xattrs", "--xattrs-include=*", "-cf", "-", "."]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                member.name = member.name.removeprefix("./")
                if member.name in (".", ""):
                    continue
                if member.islnk():
                    member.linkname = member.linkname.removeprefix("./")
                file = tar.extractfile(member) if member.isreg() else None
                yield member, file.read() if file else b""
        process.stdout.read()
    if process.returncode != 0:
        raise RigError(f"read the layer {layer}", f"exit code {process.returncode}")
