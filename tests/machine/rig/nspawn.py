# SPDX-License-Identifier: MIT
"""Machines in systemd-nspawn: systemd as PID 1, D-Bus, journald, on the host's kernel.

About half a second from nothing to a machine whose first job queue is empty. The host needs
CAP_SYS_ADMIN, overlayfs and cgroup2; it needs neither systemd as its PID 1 nor machined. Without
controllers in its cgroup2 tree (they may be held by v1 hierarchies) limits are accepted and not
enforced: that is what machines with a kernel of their own are for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from . import netns, roots
from .cache import Cache, remove_tree
from .errors import BootFailed, CommandTimeout, RigError, tail
from .machine import (
    BOOT_S,
    COMMAND_S,
    ENVIRONMENT,
    STOP_S,
    Command,
    Machine,
    Result,
    argv_of,
)
from .process import HostProcess
from .rundir import RunDir
from .supervision import REBOOTED, Supervision

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

# A shell that stays gives the command's true code: `systemd-run --wait` alone returns 0 for one
# ended by SIGTERM and 203 for one not found. The command runs in a subshell that becomes it, so
# that the waiting shell's own word on a signal ("Killed") goes nowhere.
TRUE_CODE = 'exec 3>&2 2>/dev/null; (exec "$@" 2>&3 3>&-); exit $?'
KILL_COMMAND = 'pkill --signal "$0" --parent "$(systemctl show -P MainPID "$1")"'

PLAIN_PTY = {"SYSTEMD_TINT_BACKGROUND": "0", "SYSTEMD_ADJUST_TERMINAL_TITLE": "0"}
"""Newer clients colour the terminal and name its window."""

CLIENT_GRACE_S = 5.0
MOUNT_S = 30.0


class Nspawn(Machine):
    """A container of one suite, up from the constructor on.

    layers  directories put on top of the suite's root, the last one uppermost: build_layer()
    binds   host path -> path in the machine; binds_ro the same, read-only
    init    further words for systemd's command line ("systemd.unit=rescue.target")
    recipe  what the root is made of
    """

    def __init__(
        self,
        suite: str,
        *,
        layers: Sequence[Path] = (),
        binds: Mapping[Path, str] | None = None,
        binds_ro: Mapping[Path, str] | None = None,
        init: Sequence[str] = (),
        cache: Cache | None = None,
        boot: bool = True,
        recipe: roots.Recipe = roots.MACHINE,
    ) -> None:
        self.suite = roots.check_suite(suite)
        self.cache = cache or Cache()
        self._tools = {name: _tool(name) for name in ("nsenter", "systemd-nspawn")}
        lowers = [roots.root(self.cache, suite, recipe), *layers]
        self._units = itertools.count(1)
        self._spawned: list[HostProcess] = []
        self._closed = False
        arguments = ["--private-network"]
        arguments += [f"--bind={_colon(k)}:{_colon(v)}" for k, v in (binds or {}).items()]
        arguments += [f"--bind-ro={_colon(k)}:{_colon(v)}" for k, v in (binds_ro or {}).items()]
        plan = {
            "lowers": [str(lower) for lower in lowers],
            "tmpfs": self.cache.on_overlay,
            "files": {
                "/etc/hostname": f"{suite}\n",
                "/etc/hosts": f"127.0.0.1 localhost {suite}\n::1 localhost\n",
                "/etc/machine-id": "",
            },
            "arguments": arguments,
            "init": list(init),
        }
        self._dir = RunDir(self.cache, suite)
        self.name = self._dir.name
        self._supervision = Supervision(self._dir, plan)
        try:
            self._supervision.wait_said("mounted", MOUNT_S, "mount its disk")
            if boot:
                self.again()
        except BaseException:
            self.close()
            raise

    # --- life

    @property
    def up(self) -> bool:
        self._supervision.look()
        return self._supervision.leader is not None and self._supervision.ready

    @property
    def leader(self) -> int:
        """The host's pid of the machine's PID 1."""
        self._supervision.look()
        leader = self._supervision.leader
        if leader is None:
            raise RigError(f"reach {self.name}", "it is not up", self._supervision.output())
        return leader

    @property
    def root(self) -> Path:
        """The machine's / as seen from the host. Absolute links in it lead to the host's files:
        for sockets and plain files only; read() and write() go by the machine's own eyes."""
        return Path(f"/proc/{self.leader}/root")

    @property
    def console(self) -> str:
        try:
            return (self._dir.path / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def again(self, timeout: float = BOOT_S) -> None:
        if self.up:
            raise RigError(f"start {self.name}", "it is up already")
        exits = len(self._supervision.exits)
        self._supervision.tell("boot")
        self._boots(exits, timeout)

    def _boots(self, exits: int, timeout: float) -> None:
        """Waits for a boot that began after so many exits of systemd-nspawn."""
        state = self._supervision
        with contextlib.suppress(RigError):
            state.wait(lambda: state.ready or len(state.exits) > exits, timeout, "boot")
        if state.ready:
            return
        if len(state.exits) > exits:
            why = f"systemd-nspawn ended with {state.exits[exits]}"
        else:
            why = state.error or f"not ready after {timeout:g} s"
        raise BootFailed(f"boot {self.name}", why, f"{state.output()}\n{self.trouble(80)}")

    def _goes_down(self, exits: int, timeout: float, what: str) -> None:
        """Waits for the next exit of systemd-nspawn after the first `exits`."""
        state = self._supervision
        try:
            state.wait(lambda: len(state.exits) > exits, timeout, what)
        except RigError as error:
            raise RigError(error.what, error.why, self.trouble()) from None

    def crash(self) -> None:
        exits = len(self._supervision.exits)
        if self._supervision.leader is not None:
            self._supervision.tell("crash")
            self._goes_down(exits, STOP_S, "crash")

    def reboot(self, timeout: float = STOP_S + BOOT_S) -> None:
        exits = len(self._supervision.exits)
        self.helper(["systemctl", "--no-block", "reboot"])
        self._goes_down(exits, min(timeout, STOP_S), "reboot")
        how = self._supervision.exits[exits]
        if how != REBOOTED:
            raise RigError(f"reboot {self.name}", f"it ended with {how}", self.trouble())
        self._boots(exits + 1, timeout)

    def poweroff(self, timeout: float = STOP_S) -> None:
        exits = len(self._supervision.exits)
        if self.up:
            self._supervision.tell("poweroff")
            self._goes_down(exits, timeout, "power off")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._supervision.close()
        for process in self._spawned:
            process.end()
        self._spawned.clear()

    def take_disk(self, target: Path, *, without: Sequence[str] = ()) -> None:
        """Moves what has changed on the disk to `target`, leaving out what the patterns match; the
        machine must be off and is of no further use. A directory, or a tar file where the cache
        cannot hold whiteouts.
        """
        if self.up:
            raise RigError(f"take the disk of {self.name}", "it is up")
        self._supervision.tell("unmount")
        self._supervision.wait_said("unmounted", MOUNT_S, "unmount its disk")
        upper = self._supervision.directory / "store/upper"
        for pattern in without:
            for path in upper.glob(pattern):
                remove_tree(path)
        if self.cache.on_overlay:
            argv = ["tar", "-C", str(upper), "--xattrs", "--xattrs-include=*"]
            subprocess.run([*argv, "-cf", str(target), "."], check=True)
        else:
            (self._dir.path / "store/upper").rename(target)

    # --- commands

    def _enter(self, argv: Sequence[str]) -> list[str]:
        """`argv` as a process in all the machine's namespaces (but in the host's cgroup)."""
        nsenter = [self._tools["nsenter"], f"--target={self.leader}"]
        # its root too: where nspawn itself runs in a chroot, the namespace's is another
        return [*nsenter, "-m", "-u", "-i", "-n", "-p", "-C", "--root", "--wd=/", "--", *argv]

    def _unit(
        self,
        argv: Sequence[str],
        *,
        user: str | None,
        env: Mapping[str, str] | None,
        cwd: str | None,
        pty: bool = False,
    ) -> tuple[str, list[str]]:
        """A unit name, and the client that runs `argv` as this unit of the machine."""
        unit = f"rig-{next(self._units)}.service"
        client = ["systemd-run", "--quiet", "--collect", "--wait", "--service-type=exec"]
        client += [f"--unit={unit}", "--pty" if pty else "--pipe"]
        client += [f"--property=User={user or 'root'}"]
        client.append("--description=rig: " + " ".join(argv)[:100].replace("\n", " "))
        # What the command leaves behind goes with it, and soon.
        client.append("--property=TimeoutStopSec=2")
        if cwd is not None:
            client.append(f"--property=WorkingDirectory={cwd}")
        client += [f"--setenv={name}={value}" for name, value in (env or {}).items()]
        words = ["/bin/sh", "-c", TRUE_CODE, "sh", *argv]
        # systemd expands $NAME, ${NAME} and $$ in a unit's arguments
        client += ["--", *(word.replace("$", "$$") for word in words)]
        return unit, self._enter(client)

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
        argv = argv_of(command)
        unit, client = self._unit(argv, user=user, env=env, cwd=cwd)
        data = stdin.encode() if isinstance(stdin, str) else stdin
        boots, begun = len(self._supervision.exits), time.monotonic()
        with subprocess.Popen(
            client,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                out, err = process.communicate(data, timeout)
            except subprocess.TimeoutExpired:
                self._end(unit)
                try:
                    out, err = process.communicate(timeout=CLIENT_GRACE_S)
                except subprocess.TimeoutExpired as late:
                    process.kill()
                    out, err = late.stdout or b"", late.stderr or b""
                detail = f"stdout: {tail(out)}\nstderr: {tail(err)}\n{self.trouble(60)}"
                why = f"still running after {timeout:g} s"
                raise CommandTimeout(f"run {' '.join(argv)}", why, detail) from None
            except BaseException:
                process.kill()
                raise
        result = Result(tuple(argv), process.returncode, out, err, time.monotonic() - begun)
        down = not self.up or len(self._supervision.exits) > boots
        if down or (result.code != 0 and not self._answers()):
            detail = f"stdout: {tail(out)}\nstderr: {tail(err)}\n{self._supervision.output()}"
            raise RigError(f"run {' '.join(argv)}", f"{self.name} went down meanwhile", detail)
        return result.check() if check else result

    def _answers(self) -> bool:
        """Whether its systemd answers: of a machine that dies, the commands end first, with codes
        that are not theirs, and systemd-nspawn's exit is seen later. To start a process is no
        proof: the kernel lets one in until PID 1's end has come to its PID namespace."""
        try:
            return self.helper(["systemctl", "show", "--property=Version"]).code == 0
        except RigError:
            return False

    def spawn(
        self,
        command: Command,
        *,
        stdin: bool = False,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> HostProcess:
        argv = argv_of(command)
        unit, client = self._unit(argv, user=user, env=env, cwd=cwd)

        def kill(signal: str) -> None:
            self.helper(["/bin/sh", "-c", KILL_COMMAND, signal, unit])

        def end() -> None:
            self._end(unit)

        process = HostProcess(argv, client, ENVIRONMENT, stdin=stdin, kill=kill, end=end)
        self._spawned.append(process)
        return process

    def _end(self, unit: str) -> None:
        """Kills all processes of a command's unit."""
        with contextlib.suppress(RigError):  # down: so is the command
            self.helper(["systemctl", "kill", "--signal=KILL", unit])

    def helper(self, argv: Sequence[str], stdin: bytes = b"", timeout: float = 30.0) -> Result:
        begun = time.monotonic()
        try:
            done = subprocess.run(
                self._enter(argv),
                env=ENVIRONMENT,
                input=stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            why = f"still running after {timeout:g} s"
            raise CommandTimeout(f"run {' '.join(argv)}", why, late.stderr or b"") from None
        seconds = time.monotonic() - begun
        return Result(tuple(argv), done.returncode, done.stdout, done.stderr, seconds)

    def journal(self, *args: str) -> str:
        if self._supervision.leader is not None:
            return super().journal(*args)
        files = self._supervision.directory / "root/var/log/journal"
        argv = ["journalctl", "--no-pager", "--quiet", "-D", str(files)]
        done = subprocess.run([*argv, *(args or ("-b",))], stdout=subprocess.PIPE, check=False)
        return done.stdout.decode(errors="replace").rstrip("\n")

    def shell(self, argv: Sequence[str] = ("/bin/bash", "-l")) -> int:
        """An interactive shell on this process's terminal; its exit code."""
        env = {"TERM": os.environ.get("TERM", "dumb")}
        pty = sys.stdin.isatty() and sys.stdout.isatty()
        _, client = self._unit(argv, user=None, env=env, cwd="/root", pty=pty)
        return subprocess.call(client, env={**ENVIRONMENT, **PLAIN_PTY, **env})

    # --- network

    def netns(self, argv: Sequence[str]) -> list[str]:
        """`argv` as a command of the host, with the machine's network: for subprocesses."""
        return [self._tools["nsenter"], f"--target={self.leader}", "--net", "--", *argv]

    def in_netns(self, function: Callable[[], T]) -> T:
        """function() on a thread that has the machine's network; see netns.within."""
        return netns.within(self.leader, function)

    def connect(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """A TCP connection to a port of the machine."""
        return netns.connect(self.leader, port, host)

    def forward(self, port: int) -> contextlib.AbstractContextManager[int]:
        return netns.forwarded(lambda: self.connect(port))


def _tool(name: str) -> str:
    path = shutil.which(name, path=ENVIRONMENT["PATH"])
    if path is None:
        why = f"{name} is not installed"
        raise RigError("start a machine", why, "tools/host-setup.sh installs what is missing")
    return path


def _colon(path: Path | str) -> str:
    return str(path).replace("\\", "\\\\").replace(":", "\\:")
