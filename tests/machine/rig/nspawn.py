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
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
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

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

SUPERVISOR = Path(__file__).with_name("supervisor.py")
PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable

# A shell that stays gives the command's true code: `systemd-run --wait` alone returns 0 for one
# ended by SIGTERM and 203 for one not found. The command runs in a subshell that becomes it, so
# that the waiting shell's own word on a signal ("Killed") goes nowhere.
TRUE_CODE = 'exec 3>&2 2>/dev/null; (exec "$@" 2>&3 3>&-); exit $?'
KILL_COMMAND = 'pkill --signal "$0" --parent "$(systemctl show -P MainPID "$1")"'

CLIENT_GRACE_S = 5.0
REBOOTED = "code 133"
"""How systemd-nspawn --keep-unit says that the machine wants to start again."""

MOUNT_S = 30.0


class Nspawn(Machine):
    """A container of one suite, up from the constructor on.

    layers  directories put on top of the suite's root, the last one uppermost: build_layer()
    binds   host path -> path in the machine; binds_ro the same, read-only
    init    further words for systemd's command line ("systemd.unit=rescue.target")
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
    ) -> None:
        self.suite = roots.check_suite(suite)
        self.cache = cache or Cache()
        lowers = [roots.root(self.cache, suite), *layers]
        self._dir = RunDir(self.cache, suite)
        self.name = self._dir.name
        self._control, theirs = socket.socketpair()
        self._lock = threading.RLock()
        self._pending = b""
        self._events_end = False
        self._mounted = self._unmounted = self._ready = self._down = self._closed = False
        self._leader: int | None = None
        self._exits: list[str] = []
        self._error = ""
        self._units = itertools.count(1)
        self._spawned: list[HostProcess] = []
        self._tools = {name: _tool(name) for name in ("nsenter", "systemd-nspawn")}
        arguments = ["--private-network"]
        arguments += [f"--bind={_colon(k)}:{_colon(v)}" for k, v in (binds or {}).items()]
        arguments += [f"--bind-ro={_colon(k)}:{_colon(v)}" for k, v in (binds_ro or {}).items()]
        scope = _host_has_systemd()
        plan = {
            "name": self.name,
            "dir": str(self._dir.path),
            "lowers": [str(lower) for lower in lowers],
            "tmpfs": self.cache.on_overlay,
            "files": {
                "/etc/hostname": f"{suite}\n",
                "/etc/hosts": f"127.0.0.1 localhost {suite}\n::1 localhost\n",
                "/etc/machine-id": "",
            },
            "scope": scope,
            "arguments": arguments,
            "init": list(init),
        }
        client = [PYTHON, "-I", "-S", str(SUPERVISOR), str(self._dir.lock)]
        if scope:
            unit = ["systemd-run", "--scope", "--quiet", "--collect", f"--unit={self.name}"]
            client = [*unit, "--property=Delegate=yes", "--", *client]
        with (self._dir.path / "supervisor.log").open("wb") as output, theirs:
            self._supervisor = subprocess.Popen(
                client,
                stdin=theirs.fileno(),
                stdout=output,
                stderr=output,
                pass_fds=[self._dir.lock],
                start_new_session=True,
            )
        try:
            self._control.sendall(json.dumps(plan).encode() + b"\n")
            self._await(lambda: self._mounted, MOUNT_S, "mount its disk")
            if boot:
                self.again()
        except BaseException:
            self.close()
            raise

    # --- the supervisor's events

    def _drain(self, timeout: float = 0.0) -> None:
        """Takes in what the supervisor has said, waiting up to `timeout` for the first word."""
        with self._lock:
            if self._events_end:
                return
            while select.select([self._control], [], [], timeout)[0]:
                timeout = 0.0
                try:
                    data = self._control.recv(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    self._events_end = True
                    self._leader, self._ready = None, False
                    return
                self._pending += data
                *lines, self._pending = self._pending.split(b"\n")
                for line in lines:
                    self._take(json.loads(line))

    def _take(self, event: dict[str, object]) -> None:
        name = event["event"]
        if name == "mounted":
            self._mounted = True
        elif name == "unmounted":
            self._unmounted = True
        elif name == "down":
            self._down = True
        elif name == "leader":
            self._leader = int(str(event["pid"]))
        elif name == "ready":
            self._ready = True
        elif name == "exit":
            self._leader, self._ready = None, False
            number = event["signal"]
            self._exits.append(f"signal {number}" if number else f"code {event['code']}")
        elif name == "error":
            self._error = str(event["text"])

    def _await(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Waits for an event; RigError when it cannot come or does not come in time."""
        end = time.monotonic() + timeout
        while True:
            self._drain()
            if condition():
                return
            if self._error or self._events_end:
                why = self._error or "its supervisor has gone"
                raise RigError(f"let {self.name} {what}", why, self._said())
            if time.monotonic() > end:
                raise RigError(f"let {self.name} {what}", f"not in {timeout:g} s", self._said())
            self._drain(min(1.0, max(0.0, end - time.monotonic())))

    def _said(self) -> str:
        texts = []
        for name in ("supervisor.log", "console.log"):
            with contextlib.suppress(OSError):
                texts.append((self._dir.path / name).read_text(errors="replace").strip())
        return "\n".join(text for text in texts if text)

    def _tell(self, command: str) -> None:
        with contextlib.suppress(OSError):  # gone: what is awaited next says so
            self._control.sendall(json.dumps({"command": command}).encode() + b"\n")

    # --- life

    @property
    def up(self) -> bool:
        self._drain()
        return self._leader is not None and self._ready

    @property
    def leader(self) -> int:
        """The host's pid of the machine's PID 1."""
        self._drain()
        if self._leader is None:
            raise RigError(f"reach {self.name}", "it is not up", self._said())
        return self._leader

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

    @property
    def journal_files(self) -> Path:
        """The directory of the machine's persistent journal, also while it is off."""
        return Path(f"/proc/{self._supervisor.pid}/root{self._dir.path}/root/var/log/journal")

    def again(self, timeout: float = BOOT_S) -> None:
        if self.up:
            raise RigError(f"start {self.name}", "it is up already")
        exits = len(self._exits)
        self._tell("boot")
        self._boots(exits, timeout)

    def _boots(self, exits: int, timeout: float) -> None:
        with contextlib.suppress(RigError):
            self._await(lambda: self._ready or len(self._exits) > exits, timeout, "boot")
        if self._ready:
            return
        if len(self._exits) > exits:
            why = f"systemd-nspawn ended with {self._exits[-1]}"
        else:
            why = self._error or f"not ready after {timeout:g} s"
        raise BootFailed(f"boot {self.name}", why, self._said() + "\n" + self.journal("-n", "80"))

    def crash(self) -> None:
        exits = len(self._exits)
        if self._leader is None and not self.up:
            return
        self._tell("crash")
        self._await(lambda: len(self._exits) > exits, STOP_S, "crash")

    def reboot(self, timeout: float = STOP_S + BOOT_S) -> None:
        exits = len(self._exits)
        self.helper(["systemctl", "--no-block", "reboot"])
        try:
            self._await(lambda: len(self._exits) > exits, min(timeout, STOP_S), "reboot")
        except RigError as error:
            raise RigError(error.what, error.why, self.trouble()) from None
        if self._exits[exits] != REBOOTED:
            raise RigError(f"reboot {self.name}", f"it ended with {self._exits[exits]}")
        self._boots(exits + 1, timeout)

    def poweroff(self, timeout: float = STOP_S) -> None:
        exits = len(self._exits)
        if not self.up:
            return
        self._tell("poweroff")
        try:
            self._await(lambda: len(self._exits) > exits, timeout, "power off")
        except RigError as error:
            raise RigError(error.what, error.why, self.trouble()) from None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._tell("quit")
        with contextlib.suppress(RigError):  # whatever is wrong with it: _bury() ends it
            self._await(lambda: self._down, STOP_S, "end")
        self._control.close()
        self._events_end = True
        self._leader, self._ready = None, False
        for process in self._spawned:
            process.end()
        self._spawned.clear()
        # Every process of the machine is gone; removing its disk is nothing to wait for.
        threading.Thread(target=self._bury, name=f"bury-{self.name}").start()

    def _bury(self) -> None:
        try:
            self._supervisor.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        self._dir.close()

    def take_disk(self, target: Path, *, without: Sequence[str] = ()) -> None:
        """Moves what has changed on the disk to `target`, leaving out what the patterns match; the
        machine must be off and is of no further use. A directory, or a tar file where the cache
        cannot hold whiteouts.
        """
        if self.up:
            raise RigError(f"take the disk of {self.name}", "it is up")
        self._tell("unmount")
        self._await(lambda: self._unmounted, MOUNT_S, "unmount its disk")
        upper = Path(f"/proc/{self._supervisor.pid}/root{self._dir.path}/store/upper")
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
        boots, begun = len(self._exits), time.monotonic()
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
        if not self.up or len(self._exits) > boots:
            detail = f"stdout: {tail(out)}\nstderr: {tail(err)}\n{self._said()}"
            raise RigError(f"run {' '.join(argv)}", f"{self.name} went down meanwhile", detail)
        return result.check() if check else result

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
        if self._leader is not None:
            return super().journal(*args)
        argv = ["journalctl", "--no-pager", "--quiet", "-D", str(self.journal_files)]
        done = subprocess.run([*argv, *(args or ("-b",))], stdout=subprocess.PIPE, check=False)
        return done.stdout.decode(errors="replace").rstrip("\n")

    def shell(self, argv: Sequence[str] = ("/bin/bash", "-l")) -> int:
        """An interactive shell on this process's terminal; its exit code."""
        env = {"TERM": os.environ.get("TERM", "dumb")}
        pty = sys.stdin.isatty() and sys.stdout.isatty()
        _, client = self._unit(argv, user=None, env=env, cwd="/root", pty=pty)
        return subprocess.call(client, env={**ENVIRONMENT, **env})

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


def _host_has_systemd() -> bool:
    """Whether systemd runs this host's cgroup tree: then a delegated scope of it is our part."""
    try:
        init = Path("/proc/1/comm").read_text().strip()
    except OSError:
        return False
    return init == "systemd" and Path("/run/systemd/private").exists()
