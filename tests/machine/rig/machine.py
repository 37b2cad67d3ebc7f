# SPDX-License-Identifier: MIT
"""What every test machine can do, whether a container on this kernel or a VM with its own.

    with Nspawn("bookworm") as machine:
        machine.run("systemctl is-active joblet && echo yes").text
        machine.run(["rnx", "job", "list"], user="alice", check=True)
        machine.write("/etc/joblet/init.yml", text, mode=0o600)
        with machine.spawn(["rnx", "job", "log", "-f", id]) as follow:
            follow.wait_for(b"line 100")
        machine.crash(); machine.again()

A list is run as it is: no shell, no expansion. A string is a script for /bin/sh.
Every wait has a deadline, and what it raises shows the end of the console and the journal.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

from .errors import CommandFailed, RigError, tail

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")
Command = str | Sequence[str | os.PathLike[str]]

COMMAND_S = 60.0
BOOT_S = 120.0
STOP_S = 120.0
"""systemd gives a service that does not stop 90 s; a machine must get past that."""

OWN_UNIT = re.compile(r" systemd\[1\]: (\w+ )?rig-\d+\.service")
"""What systemd says about the units that commands of the rig run as."""

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
"""All that a command inherits, besides HOME and what systemd adds."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended. `code` is 128 + N after signal N, 127 for a command not found."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def text(self) -> str:
        """Standard output as text, without the newline at its end."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    @property
    def errors(self) -> str:
        """Standard error as text, without the newline at its end."""
        return self.stderr.decode(errors="replace").rstrip("\n")

    def check(self) -> Result:
        """Itself if the code is 0, else CommandFailed with the end of both outputs."""
        if self.code == 0:
            return self
        detail = f"stdout: {tail(self.stdout)}\nstderr: {tail(self.stderr)}"
        raise CommandFailed(f"run {shlex.join(self.argv)}", f"exit code {self.code}", detail)


def argv_of(command: Command) -> list[str]:
    """The argument vector of a command; a string becomes a script of /bin/sh."""
    if isinstance(command, str):
        return ["/bin/sh", "-c", command]
    return [os.fspath(word) for word in command]


def eventually(
    probe: Callable[[], T], *, timeout: float = 30.0, what: str = "", pause: float = 0.02
) -> T:
    """The first true value of `probe`, asked again and again; RigError at the deadline."""
    end = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            name = what or getattr(probe, "__name__", "the condition")
            raise RigError(f"wait for {name}", f"still {value!r} after {timeout:g} s")
        time.sleep(pause)


class Process(abc.ABC):
    """A command still running in a machine. Leaving the `with` block ends it."""

    argv: tuple[str, ...]

    @property
    @abc.abstractmethod
    def stdout(self) -> bytes:
        """What it has printed so far."""

    @property
    @abc.abstractmethod
    def stderr(self) -> bytes:
        """What it has printed to standard error so far."""

    @property
    @abc.abstractmethod
    def running(self) -> bool: ...

    @abc.abstractmethod
    def wait(self, timeout: float = COMMAND_S) -> Result:
        """Its end; CommandTimeout, and the command killed, if that does not come in time."""

    @abc.abstractmethod
    def kill(self, signal: str = "KILL") -> None:
        """Sends a signal to the command itself."""

    @abc.abstractmethod
    def wait_for(self, text: bytes, *, timeout: float = COMMAND_S, stream: str = "stdout") -> bytes:
        """What it has printed, once that contains `text`; RigError if that does not come."""

    @abc.abstractmethod
    def write(self, data: bytes) -> None:
        """Sends data to its standard input, if it was started with stdin=True."""

    @abc.abstractmethod
    def close_stdin(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.running:
            with contextlib.suppress(RigError):
                self.kill()
                self.wait(10.0)


class Machine(abc.ABC):
    """One throw-away machine. Not for several threads at once, but for run(), read(), spawn()."""

    name: str
    suite: str

    @abc.abstractmethod
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
        """Runs a command to its end. CommandTimeout, and the command killed, if it takes longer
        than `timeout` seconds; with `check`, CommandFailed unless it exits with 0.
        """

    @abc.abstractmethod
    def spawn(
        self,
        command: Command,
        *,
        stdin: bool = False,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Starts a command and does not wait for it. stdin=True opens its standard input."""

    @abc.abstractmethod
    def helper(self, argv: Sequence[str], stdin: bytes = b"", timeout: float = 30.0) -> Result:
        """A short command of the rig's own (cat, install, journalctl), by the cheapest way."""

    @property
    @abc.abstractmethod
    def up(self) -> bool: ...

    @property
    @abc.abstractmethod
    def console(self) -> str:
        """What the machine has printed to its console, over all its boots."""

    @abc.abstractmethod
    def crash(self) -> None:
        """Power loss: everything stops at once; the disk stays as it was."""

    @abc.abstractmethod
    def again(self, timeout: float = BOOT_S) -> None:
        """Boots once more, on the same disk, after crash() or poweroff()."""

    @abc.abstractmethod
    def reboot(self, timeout: float = STOP_S + BOOT_S) -> None:
        """A clean reboot; returns when the machine is up again."""

    @abc.abstractmethod
    def poweroff(self, timeout: float = STOP_S) -> None:
        """A clean shutdown; returns when the machine is off."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the machine without ceremony and removes its disk. Idempotent."""

    @abc.abstractmethod
    def forward(self, port: int) -> contextlib.AbstractContextManager[int]:
        """A port on the host's 127.0.0.1 that leads to `port` on the machine's, for the block."""

    def read(self, path: str | os.PathLike[str]) -> bytes:
        """The whole file; RigError if it cannot be read."""
        done = self.helper(["cat", "--", os.fspath(path)])
        if done.code != 0:
            raise RigError(f"read {path} of {self.name}", done.errors)
        return done.stdout

    def write(
        self,
        path: str | os.PathLike[str],
        data: bytes | str,
        *,
        mode: int = 0o644,
        owner: str = "root:root",
    ) -> None:
        """Replaces or makes a file, and the directories above it. `owner` is USER or USER:GROUP."""
        user, _, group = owner.partition(":")
        argv = ["install", "-D", "-m", f"{mode:o}", "-o", user, "-g", group or user]
        content = data.encode() if isinstance(data, str) else data
        done = self.helper([*argv, "/dev/stdin", os.fspath(path)], stdin=content)
        if done.code != 0:
            raise RigError(f"write {path} of {self.name}", done.errors)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return self.helper(["test", "-e", os.fspath(path)]).code == 0

    def journal(self, *args: str) -> str:
        """journalctl's output, after everything logged so far has been written.

        The arguments are journalctl's; without any, everything since the last boot.
        """
        self.helper(["journalctl", "--sync"])
        argv = ["journalctl", "--no-pager", "--quiet", *(args or ("-b",))]
        return self.helper(argv).text

    def trouble(self, lines: int = 200, since: float | None = None) -> str:
        """The end of the journal, and of the console if the machine is down: for error messages.

        `since`, a time as of time.time(), leaves out what is older. Never raises: it is asked when
        something has gone wrong already.
        """
        parts = []
        after = [] if since is None else [f"--since=@{int(since)}"]
        try:
            found = self.journal("-n", str(4 * lines), "-o", "short-precise", *after)
            text = "\n".join([x for x in found.splitlines() if not OWN_UNIT.search(x)][-lines:])
            parts.append(f"journal of {self.name}:\n{text}")
        except (RigError, OSError) as error:
            parts.append(f"journal of {self.name}: {error}")
        if not self.up:
            parts.append(f"console of {self.name}:\n{tail(self.console)}")
        return "\n".join(parts)

    def wait_for(
        self, condition: Command | Callable[[], T], *, timeout: float = 30.0, what: str = ""
    ) -> T | Result:
        """Waits until a command exits with 0, or a callable returns something true.

        RigError with the end of the journal if that does not happen in time.
        """

        def asked() -> T | Result | None:
            if callable(condition):
                return condition()
            done = self.run(condition, timeout=max(timeout, COMMAND_S))
            return done if done.code == 0 else None

        name = what or (condition if isinstance(condition, str) else "")
        try:
            found = eventually(asked, timeout=timeout, what=name)
        except RigError as error:
            raise RigError(error.what, error.why, self.trouble(60)) from None
        assert found is not None
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
