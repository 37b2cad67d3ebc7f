# SPDX-License-Identifier: MIT
"""One QEMU process: its options, its channels, its end.

KVM where the processor has vmx or svm and /dev/kvm can be opened, else TCG. A /dev/kvm without
those flags is some software KVM, under which Debian's kernels do not boot.

Every option that shapes the machine is the same for the run that makes a snapshot and for those
that start from it, or QEMU refuses the snapshot.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .agent import Agent
from .errors import RigError
from .guest import PORT
from .qmp import Qmp

if TYPE_CHECKING:
    from .rundir import RunDir

GUARD = Path(__file__).with_name("guard.py")
PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
QEMU = "qemu-system-x86_64"
MEMORY = "1G"
CPUS = 2
PAYLOAD_SIZE = 256 << 20
SCRATCH_SIZE = 512 << 20
END_S = 20.0

# cryptomgr.notests, nokaslr, mitigations=off: seconds of a boot under emulation.
CMDLINE = (
    "console=ttyS0 tsc=reliable mitigations=off nokaslr random.trust_cpu=on net.ifnames=0 quiet"
    " loglevel=4 systemd.show_status=false cryptomgr.notests apparmor=0"
)
# Without it the kernel tells of calls that a filter denies; journald turns it on at a boot.
NO_AUDIT = " audit=0"


@functools.cache
def accelerator() -> str:
    """ "kvm" or "tcg"."""
    flags = Path("/proc/cpuinfo").read_text()
    if re.search(r"\b(vmx|svm)\b", flags) and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "kvm"
    return "tcg"


@functools.cache
def version() -> str:
    """What the emulator says of itself; RigError if it is not there."""
    path = shutil.which(QEMU)
    if path is None:
        why = f"{QEMU} is not installed"
        raise RigError("start a VM", why, "tools/host-setup.sh test installs what is missing")
    done = subprocess.run([path, "--version"], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().splitlines()[0]


@functools.cache
def fingerprint(*, audit: bool) -> list[str]:
    """All that a snapshot depends on besides the disk: the emulator, its options, the processor."""
    places = ("DISK", "PAYLOAD", "SCRATCH", "MEMORY")
    shape = options(*places, share=False, vmlinux="K", initrd="I", audit=audit)
    model = ""
    if accelerator() == "kvm":
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        model = found[1] if found else ""
    return [version(), model, *shape]


def options(
    disk: Path | str,
    payload: Path | str,
    scratch: Path | str,
    memory: Path | str,
    *,
    share: bool,
    vmlinux: Path | str,
    initrd: Path | str,
    audit: bool,
) -> list[str]:
    """The machine. `memory` is the file of its RAM: written to if `share`, else copied on write."""
    cmdline = CMDLINE if audit else CMDLINE + NO_AUDIT
    kvm = accelerator() == "kvm"
    accel = "kvm" if kvm else "tcg,thread=multi,tb-size=256"
    ram = f"memory-backend-file,id=ram,size={MEMORY},mem-path={_comma(memory)}"
    machine = "q35,usb=off,smbus=off,hpet=off,vmport=off,memory-backend=ram"
    argv = ["-M", machine, "-accel", accel]
    argv += ["-cpu", "host" if kvm else "max", "-smp", str(CPUS), "-m", MEMORY]
    argv += ["-object", f"{ram},share={'on' if share else 'off'}"]
    argv += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-kernel", str(vmlinux), "-initrd", str(initrd), "-append", cmdline]
    drives = (
        ("d0", disk, "format=qcow2,cache=unsafe,aio=threads,discard=unmap"),
        ("d1", payload, "format=raw,readonly=on"),
        # what is measured on this disk is the disk: no page cache of the host in between
        ("d2", scratch, "format=raw,cache=none,aio=threads"),
    )
    for name, path, how in drives:
        argv += ["-drive", f"id={name},if=none,file={_comma(path)},{how}"]
        argv += ["-device", f"virtio-blk-pci,drive={name}"]
    argv += ["-netdev", "user,id=n0,restrict=on"]
    argv += ["-device", "virtio-net-pci,netdev=n0,romfile=,mac=52:54:00:00:00:01"]
    argv += ["-device", "virtio-serial-pci"]
    argv += ["-device", f"virtserialport,chardev=agent,name={PORT}"]
    # vmgenid: clones of one snapshot reseed their random numbers
    return [*argv, "-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"]


def _comma(path: Path | str) -> str:
    return str(path).replace(",", ",,")


class Emulator:
    """A running QEMU in a run directory, under guard.py."""

    def __init__(self, directory: RunDir, argv: list[str]) -> None:
        self._dir = directory
        self._log = directory.path / "qemu.log"
        version()
        with contextlib.ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(3)]
            (agent, agent_end), (qmp, qmp_end), (self._control, guarded) = pairs
            for end in (agent_end, qmp_end, guarded):
                stack.enter_context(end)
            argv = [QEMU, "-name", directory.name, *argv]
            argv += ["-chardev", f"socket,id=agent,fd={agent_end.fileno()}"]
            argv += ["-chardev", f"socket,id=qmp,fd={qmp_end.fileno()}"]
            argv += ["-mon", "chardev=qmp,mode=control"]
            serial = _comma(directory.path / "serial.log")
            argv += ["-chardev", f"file,id=serial,path={serial},append=on"]
            argv += ["-serial", "chardev:serial"]
            guard = [PYTHON, "-I", "-S", str(GUARD), str(directory.lock), str(directory.path)]
            log = stack.enter_context(self._log.open("ab"))
            self._guard = subprocess.Popen(
                [*guard, *argv],
                stdin=guarded.fileno(),
                stdout=log,
                stderr=log,
                pass_fds=[directory.lock, agent_end.fileno(), qmp_end.fileno()],
                start_new_session=True,
            )
        self.qmp = Qmp(qmp)
        self.agent = Agent(agent)
        try:
            self.qmp.greet()
        except BaseException as error:
            self.kill()
            if isinstance(error, RigError):
                raise RigError(error.what, error.why, self.log) from None
            raise

    @property
    def log(self) -> str:
        """What QEMU itself has printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def running(self) -> bool:
        return self._guard.poll() is None

    def wait(self, timeout: float) -> int:
        """The emulator's exit code; RigError if it does not end in time."""
        try:
            code: int = self._guard.wait(timeout)
        except subprocess.TimeoutExpired:
            raise RigError(f"see {self._dir.name} end", f"not in {timeout:g} s") from None
        self._close()
        return code

    def kill(self) -> None:
        """Ends it at once. Idempotent."""
        with contextlib.suppress(OSError):
            self._control.send(b"k")
        try:
            self._guard.wait(END_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()  # the emulator follows it
            self._guard.wait()
        self._close()

    def _close(self) -> None:
        self.qmp.close()
        self.agent.close()
        self._control.close()
