# SPDX-License-Identifier: MIT
"""Machines in QEMU: Debian's own kernel, all cgroup v2 controllers, limits that are real.

A machine is a clone of a snapshot, up in about a second. After crash() or poweroff() it boots cold,
from the same disk. Two more disks are always there: /dev/vdb with the payload, /dev/vdc to write to
(512 MiB, no host cache in between).
Under emulation everything takes ten times as long as on the processor: give commands time.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from . import payload, roots, snapshot
from .cache import Cache
from .emulator import Emulator
from .errors import BootFailed, CommandFailed, CommandTimeout, RigError
from .machine import COMMAND_S, STOP_S, Command, Machine, Result, argv_of
from .rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from .agent import GuestProcess

UNPACK_S = 120.0


class Vm(Machine):
    """A VM of one suite, up from the constructor on.

    layers   directories that are part of the disk that the snapshot is made of: for what changes
             rarely, since a change costs a new snapshot
    payload  layers that each clone unpacks when it starts, and whose units it then starts: for what
             changes often
    """

    def __init__(
        self,
        suite: str,
        *,
        layers: Sequence[Path] = (),
        payload: Sequence[Path] = (),
        cache: Cache | None = None,
        audit: bool = False,
    ) -> None:
        """audit: with the kernel's audit, which journald turns on, as on most hosts."""
        self._audit = audit
        self.suite = roots.check_suite(suite)
        self.cache = cache or Cache()
        self._payload = list(payload)
        self._emulator: Emulator | None = None
        frozen = snapshot.snapshot(self.cache, suite, layers, audit=audit)
        self._dir = RunDir(self.cache, suite)
        self.name = self._dir.name
        self._disk = self._dir.path / "disk.qcow2"
        try:
            snapshot.overlay(self._disk, frozen / "disk.qcow2", "qcow2")
            self._clone(frozen)
        except BaseException:
            self.close()
            raise

    def _clone(self, frozen: Path) -> None:
        if self._payload:
            payload.write(self._payload, self._dir.path / "payload")
        self._start(frozen / "memory", ["-incoming", "defer"])
        with self._boot_errors():
            snapshot.restore(self._guest, frozen)
        if self._payload:
            self.run(payload.UNPACK, timeout=UNPACK_S, check=True)

    def _start(self, memory: Path, more: Sequence[str] = ()) -> None:
        argv = snapshot.options(
            self.cache,
            self.suite,
            self._dir.path,
            self._disk,
            memory,
            share=False,
            audit=self._audit,
        )
        self._emulator = Emulator(self._dir, [*argv, *more])

    @contextlib.contextmanager
    def _boot_errors(self) -> Iterator[None]:
        try:
            yield
        except RigError as error:
            log = self._emulator.log if self._emulator else ""
            text = f"{log}\n{self.console}"
            raise BootFailed(f"start {self.name}", str(error), text) from None

    @property
    def _guest(self) -> Emulator:
        if self._emulator is None or not self._emulator.running:
            raise RigError(f"reach {self.name}", "it is not up", self.console)
        return self._emulator

    # --- life

    @property
    def up(self) -> bool:
        return self._emulator is not None and self._emulator.running

    @property
    def console(self) -> str:
        try:
            return (self._dir.path / "serial.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def again(self, timeout: float = snapshot.BOOT_S) -> None:
        if self.up:
            raise RigError(f"start {self.name}", "it is up already")
        memory = self._dir.path / "memory"
        memory.unlink(missing_ok=True)
        self._start(memory)
        with self._boot_errors():
            snapshot.settle(self._guest, timeout)

    def crash(self) -> None:
        if self._emulator is not None:
            self._emulator.kill()

    def poweroff(self, timeout: float = STOP_S) -> None:
        if self.up:
            self._goes_down("poweroff", timeout)

    def reboot(self, timeout: float = STOP_S + snapshot.BOOT_S) -> None:
        begun = time.monotonic()
        self._goes_down("reboot", timeout)  # -no-reboot: the emulator ends instead
        self.again(max(timeout - (time.monotonic() - begun), 1.0))

    def _goes_down(self, verb: str, timeout: float) -> None:
        """Asks systemd for it, and waits until the emulator has ended."""
        assert self._emulator is not None
        try:
            self.helper(["systemctl", "--no-block", verb]).check()
        except (CommandFailed, CommandTimeout):
            raise
        except RigError:
            pass  # down before it had answered; if not, the wait says so
        try:
            self._emulator.wait(timeout)
        except RigError as error:
            raise RigError(error.what, error.why, self.console) from None

    def close(self) -> None:
        self.crash()
        self._dir.close()

    def throttle(self, bytes_per_second: int) -> None:
        """Makes writing to /dev/vdc as slow as that; 0: as fast as it is."""
        limits = {"bps": 0, "bps_rd": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}
        call = self._guest.qmp.call
        call("block_set_io_throttle", device="d2", bps_wr=bytes_per_second, **limits)

    # --- commands

    def run(
        self,
        command: Command,
        *,
        stdin: bytes | str | None = None,
        timeout: float = COMMAND_S,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = False,
    ) -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        process = self.spawn(command, stdin=bool(data), user=user, env=env, cwd=cwd)
        if data:
            process.write(data)
            process.close_stdin()
        try:
            result = process.wait(timeout)
        except CommandTimeout as late:
            text = f"{late.detail}\n{self.trouble(60)}"
            raise CommandTimeout(late.what, late.why, text) from None
        return result.check() if check else result

    def helper(self, argv: Sequence[str], stdin: bytes = b"", timeout: float = 60.0) -> Result:
        return self._guest.agent.run(argv, timeout, stdin)

    def spawn(
        self,
        command: Command,
        *,
        stdin: bool = False,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> GuestProcess:
        agent = self._guest.agent
        return agent.start(argv_of(command), stdin=stdin, user=user, env=env, cwd=cwd)

    @contextlib.contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """The server in the guest must listen on all addresses, not on 127.0.0.1 alone."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            near = int(probe.getsockname()[1])
        rule = f"tcp:127.0.0.1:{near}"
        said = self._guest.qmp.monitor(f"hostfwd_add n0 {rule}-:{port}")
        if said.strip():
            raise RigError(f"forward to port {port} of {self.name}", said.strip())
        try:
            yield near
        finally:
            if self.up:
                self._guest.qmp.monitor(f"hostfwd_remove n0 {rule}")
