# SPDX-License-Identifier: MIT
"""A VM's disk: a suite's root, layers, kernel modules and a guest's settings, as one ext4 file.

A read-only overlay that `mkfs.ext4 -d` writes out: no loop device, nothing copied twice.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import guest, hosttool, kernel, roots
from .cache import Cache, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE = "3G"
DISK = "disk.ext4"

NETWORK = """[Unit]
Description=Static address of the emulator's user network
DefaultDependencies=no
Wants=sys-subsystem-net-devices-eth0.device
After=sys-subsystem-net-devices-eth0.device
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0'
"""

AGENT = """[Unit]
Description=The test rig's agent
[Service]
ExecStartPre=-/sbin/modprobe virtio_console
ExecStart=/usr/bin/python3 -I -S /usr/lib/joblet-rig/guest.py
Restart=always
KillMode=process
"""

FILES = {
    "etc/hosts": "127.0.0.1 localhost vm\n::1 localhost\n",
    "etc/machine-id": "",
    "etc/fstab": "",
    "etc/systemd/system/rig-network.service": NETWORK,
    "etc/systemd/system/rig-agent.service": AGENT,
    "usr/lib/joblet-rig/guest.py": Path(guest.__file__).read_text(),
}

LINKS = {
    "etc/systemd/system/multi-user.target.wants/rig-agent.service": "../rig-agent.service",
    "etc/systemd/system/multi-user.target.wants/rig-network.service": "../rig-network.service",
}

# What a cold boot under emulation spends seconds on and no test needs.
MASKED = (
    "systemd-udev-settle.service",
    "systemd-hwdb-update.service",
    "ldconfig.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-done.service",
    "systemd-firstboot.service",
    "systemd-networkd-wait-online.service",
    "systemd-random-seed.service",
    "systemd-boot-system-token.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-user-sessions.service",
    "getty.target",
    "serial-getty@ttyS0.service",
    "keyboard-setup.service",
    "console-setup.service",
    "kmod-static-nodes.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@dm_mod.service",
    "modprobe@loop.service",
    "systemd-machine-id-commit.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-tmpfiles-clean.timer",
    "systemd-pcrmachine.service",
    "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-network-generator.service",
    "systemd-binfmt.service",
    "systemd-fsck-root.service",
    "systemd-udev-load-credentials.service",
    "systemd-tpm2-setup.service",
    "systemd-tpm2-setup-early.service",
)

# Each costs a quarter of a second under emulation, at a boot and at every daemon-reload, and none
# finds anything to generate.
GENERATORS = "usr/lib/systemd/system-generators"

MKFS = ("mkfs.ext4", "-q", "-F", "-J", "size=16", "-E", "lazy_itable_init=1,nodiscard")

# In a mount namespace of its own: nothing to unmount, whatever happens. Layers that are tars (the
# cache lies on overlayfs) are unpacked on tmpfs.
ASSEMBLE = """
set -e
mount -t tmpfs tmpfs "$1"; cd "$1"; mkdir root
shift; disk=$1; size=$2; shift 2; lowers= n=0
while [ "$1" != -- ]; do
    n=$((n+1))
    case $1 in
    *.tar) mkdir l$n; tar -C l$n --xattrs --xattrs-include='*' -xf "$1";;
    *) ln -s "$1" l$n;;
    esac
    lowers=l$n${lowers:+:$lowers}; shift
done; shift
mount -t overlay overlay -o "ro,lowerdir=$lowers" root
truncate -s "$size" "$disk"
exec "$@" -d "$PWD/root" "$disk"
"""

TIMEOUT_S = 300


def key(suite: str, layers: Sequence[Path]) -> str:
    made_of = [roots.key(suite), kernel.key(suite), [layer.name for layer in layers]]
    return key_of(made_of, SIZE, FILES, LINKS, MASKED, GENERATORS, MKFS, ASSEMBLE)


def image(cache: Cache, suite: str, layers: Sequence[Path] = ()) -> Path:
    """The disk file, built on first use. Read-only: machines write to overlays of it."""
    lowers = [roots.root(cache, suite), kernel.kernel(cache, suite) / "tree", *layers]

    def build(aside: Path) -> None:
        aside.mkdir()
        _make(lowers, suite, aside / DISK)

    name = f"{suite}-{key(suite, layers)}"
    return cache.entry("image", name, f"disk of the {suite} VM", build) / DISK


def _make(lowers: Sequence[Path], suite: str, disk: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="joblet-image-") as name:
        settings, mount = Path(name) / "settings", Path(name) / "mount"
        mount.mkdir()
        _settings(settings, suite, lowers[0])
        argv = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", ASSEMBLE, "sh"]
        argv += [str(mount), str(disk), SIZE, *map(str, [*lowers, settings]), "--", *MKFS]
        hosttool.run("make the VM's disk", argv, called=MKFS[0], timeout=TIMEOUT_S)


def _settings(top: Path, suite: str, root: Path) -> None:
    """The layer that makes a VM's root of a container's."""
    for name, text in {**FILES, "etc/hostname": f"{suite}\n"}.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    masks = {f"etc/systemd/system/{unit}": "/dev/null" for unit in MASKED}
    for generator in (root / GENERATORS).iterdir():
        masks[f"etc/systemd/system-generators/{generator.name}"] = "/dev/null"
    for name, target in {**masks, **LINKS}.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).symlink_to(target)
