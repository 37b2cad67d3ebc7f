# SPDX-License-Identifier: MIT
"""Debian's own kernel for VMs: the cloud flavour of a suite, taken out of its package.

An entry of the cache holds `vmlinux` (an ELF file: booted through PVH it spares the guest the
decompression, a second under emulation), `tree/usr/lib/modules/VERSION` and `initrd`.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import apt, roots
from .cache import Cache, key_of
from .errors import RigError

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGE = "linux-image-cloud-amd64"
BOOT_MODULES = ("virtio_pci", "virtio_blk")
"""What it takes to see the root disk; ext4 is built in."""

INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /m/$module; done
while ! [ -e /dev/vda ]; do :; done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /newroot
/bin/busybox mount --move /dev /newroot/dev
exec /bin/busybox switch_root /newroot /sbin/init
"""

TIMEOUT_S = 300


def key(suite: str) -> str:
    return key_of(roots.check_suite(suite), PACKAGE, BOOT_MODULES, INIT)


def kernel(cache: Cache, suite: str) -> Path:
    """The directory with the suite's kernel, fetched on first use."""
    name = f"{suite}-{key(suite)}"
    return cache.entry("kernel", name, f"kernel of {suite}", lambda aside: _build(suite, aside))


def _build(suite: str, aside: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="joblet-kernel-") as name:
        work = Path(name)
        package = _download(suite, work)
        _run(["dpkg-deb", "-x", str(package), str(work / "x")])
        modules = next((work / "x").glob("**/lib/modules/*"))
        image = next((work / "x/boot").glob("vmlinuz-*"))
        target = aside / "tree/usr/lib/modules" / modules.name
        target.parent.mkdir(parents=True)
        shutil.copytree(modules, target, symlinks=True)
        _run(["depmod", "-b", str(aside / "tree/usr"), modules.name])
        (aside / "vmlinux").write_bytes(elf_of(image.read_bytes()))
        (aside / "initrd").write_bytes(_initrd(target))


def _run(argv: Sequence[str], cwd: Path | None = None) -> str:
    what = f"run {argv[0]}"
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        why = f"{argv[0]} is not installed"
        raise RigError(what, why, "tools/host-setup.sh installs what is missing") from None
    except subprocess.TimeoutExpired as late:
        raise RigError(what, f"not done after {TIMEOUT_S} s", late.stderr or b"") from None
    if done.returncode != 0:
        raise RigError(what, f"exit code {done.returncode}", done.stdout + done.stderr)
    return done.stdout.decode(errors="replace")


def _download(suite: str, work: Path) -> Path:
    """The kernel's package, found by an apt of its own that leaves the host's alone."""
    (work / "state/lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text("\n".join(apt.sources(suite)) + "\n")
    settings = {
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    lines = [f'{name} "{value}";' for name, value in settings.items()]
    # the host's hooks are about the host's own lists
    lines += ["#clear APT::Update::Post-Invoke;", "#clear APT::Update::Post-Invoke-Success;"]
    config = work / "apt.conf"
    config.write_text("\n".join(lines) + "\n")
    _run(["apt-get", "-c", str(config), "-qq", "update"])
    depends = _run(["apt-cache", "-c", str(config), "depends", PACKAGE])
    names = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image" in line]
    if not names:
        raise RigError(f"find the kernel of {suite}", f"{PACKAGE} depends on no image", depends)
    _run(["apt-get", "-c", str(config), "-qq", "download", names[0]], cwd=work)
    return next(work.glob("linux-image-*.deb"))


def elf_of(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage; RigError if it is packed in an unknown way.

    The x86 boot protocol (2.08 and later) says where the compressed kernel lies: payload_offset and
    payload_length at 0x248, counted from the end of the setup sectors; its last four bytes are the
    unpacked size.
    """
    if image[0x202:0x206] != b"HdrS":
        raise RigError("unpack the kernel", "it is not a bzImage")
    setup = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    packed = image[setup + offset : setup + offset + length - 4]
    if packed.startswith(b"\x1f\x8b"):
        found = gzip.decompress(packed)
    elif packed.startswith(b"\xfd7zXZ\0"):
        found = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed)
    elif packed.startswith(b"BZh"):
        found = bz2.decompress(packed)
    elif packed.startswith(b"\x02!L\x18"):
        found = _filter(["lz4", "-dc"], packed)
    elif packed.startswith(b"\x28\xb5\x2f\xfd"):
        found = _filter(["zstd", "-dcq"], packed)
    else:
        raise RigError("unpack the kernel", f"unknown compression {packed[:6]!r}")
    if found[:4] != b"\x7fELF":
        raise RigError("unpack the kernel", "what is inside is not ELF")
    return found


def _filter(argv: Sequence[str], data: bytes) -> bytes:
    try:
        return subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True).stdout
    except FileNotFoundError:
        why = f"{argv[0]} is not installed"
        raise RigError("unpack the kernel", why) from None
    except subprocess.CalledProcessError as error:
        raise RigError("unpack the kernel", str(error)) from None


def _initrd(modules: Path) -> bytes:
    """busybox, the modules of BOOT_MODULES in the order of their needs, and INIT."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RigError("make an initrd", "busybox-static is not installed")
    archive = Cpio()
    for directory in ("bin", "dev", "proc", "newroot", "m"):
        archive.add(directory, 0o040755)
    archive.add("bin/busybox", 0o100755, Path(busybox).read_bytes())
    names = []
    for path in _boot_order(modules):
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        name = path.name.removesuffix(".xz")
        names.append(name)
        archive.add(f"m/{name}", 0o100644, data)
    archive.add("init", 0o100755, INIT.format(modules=" ".join(names)).encode())
    return archive.finish()


def _boot_order(modules: Path) -> list[Path]:
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, others = line.partition(":")
        needs[name] = others.split()
    order: list[str] = []
    for wanted in BOOT_MODULES:
        for name in needs:
            if Path(name).name.split(".")[0] == wanted:
                # modules.dep names the needs of a module with the first to load last
                order += [n for n in [*reversed(needs[name]), name] if n not in order]
    return [modules / name for name in order]


class Cpio:
    """An archive in the "newc" format that the kernel unpacks as its first root."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._number = 0

    def add(self, name: str, mode: int, data: bytes = b"") -> None:
        self._number += 1
        raw = name.encode() + b"\0"
        links = 2 if mode & 0o040000 else 1
        fields = [self._number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(raw), 0]
        self._data += b"070701" + "".join(f"{field:08x}" for field in fields).encode() + raw
        self._pad()
        self._data += data
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return bytes(self._data)
