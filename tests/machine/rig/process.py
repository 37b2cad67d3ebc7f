# SPDX-License-Identifier: MIT
"""A command that runs in a machine, with its output collected while it runs."""

from __future__ import annotations

import abc
import contextlib
import os
import subprocess
import threading
import time
from typing import IO, TYPE_CHECKING

from .errors import CommandTimeout, RigError, tail
from .machine import COMMAND_S, Process, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

END_S = 15.0
"""How long a killed command may take to be gone."""


class Collected(Process):
    """The output of a command, put in by whoever receives it, and waiting for what it brings."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = tuple(argv)
        self._begun = time.monotonic()
        self._changed = threading.Condition()
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._result: Result | None = None
        self._broken: RigError | None = None

    def printed(self, stream: str, data: bytes) -> None:
        """Takes in a piece of output."""
        with self._changed:
            self._output[stream] += data
            self._changed.notify_all()

    def ended(self, code: int) -> None:
        """Takes in the end, after all output."""
        with self._changed:
            out, err = bytes(self._output["stdout"]), bytes(self._output["stderr"])
            self._result = Result(self.argv, code, out, err, time.monotonic() - self._begun)
            self._changed.notify_all()

    def broke(self, error: RigError) -> None:
        """The end will never be heard of: whoever waits gets this error."""
        with self._changed:
            self._broken = error
            self._changed.notify_all()

    @property
    def stdout(self) -> bytes:
        with self._changed:
            return bytes(self._output["stdout"])

    @property
    def stderr(self) -> bytes:
        with self._changed:
            return bytes(self._output["stderr"])

    @property
    def running(self) -> bool:
        with self._changed:
            return self._result is None and self._broken is None

    def _detail(self) -> str:
        return f"stdout: {tail(self.stdout)}\nstderr: {tail(self.stderr)}"

    def _over(self) -> bool:
        return self._result is not None or self._broken is not None

    def wait(self, timeout: float = COMMAND_S) -> Result:
        with self._changed:
            over = self._changed.wait_for(self._over, timeout)
        if not over:
            with contextlib.suppress(RigError):
                self.end()
            with self._changed:
                self._changed.wait_for(self._over, END_S)
            why = f"still running after {timeout:g} s"
            raise CommandTimeout(f"run {' '.join(self.argv)}", why, self._detail())
        if self._result is None:
            assert self._broken is not None
            raise self._broken
        return self._result

    def wait_for(self, text: bytes, *, timeout: float = COMMAND_S, stream: str = "stdout") -> bytes:
        buffer = self._output[stream]
        with self._changed:
            self._changed.wait_for(lambda: text in buffer or self._over(), timeout)
            if text in buffer:
                return bytes(buffer)
            over = self._over()
        why = "the command ended without it" if over else f"not there in {timeout:g} s"
        raise RigError(f"see {text!r} in the output of {' '.join(self.argv)}", why, self._detail())

    @abc.abstractmethod
    def end(self) -> None:
        """Kills the command and all that it has started."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.running:
            with contextlib.suppress(RigError):
                self.end()
            with self._changed:
                self._changed.wait_for(self._over, END_S)


class HostProcess(Collected):
    """A client process on the host whose pipes are the command's.

    `client` is what runs on the host; `argv` what is said to run. `kill` signals the command itself
    and `end` kills all that it has started, because the client's death would not.
    """

    def __init__(
        self,
        argv: Sequence[str],
        client: Sequence[str],
        env: Mapping[str, str],
        *,
        stdin: bool,
        kill: Callable[[str], None],
        end: Callable[[], None],
    ) -> None:
        super().__init__(argv)
        self._kill = kill
        self._end = end
        self._client = subprocess.Popen(
            client,
            env=env,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        out, err = self._client.stdout, self._client.stderr
        assert out is not None
        assert err is not None
        collectors = [
            threading.Thread(target=self._collect, args=pair, daemon=True)
            for pair in (("stdout", out), ("stderr", err))
        ]
        for collector in collectors:
            collector.start()
        threading.Thread(target=self._await_end, args=(collectors,), daemon=True).start()

    def _collect(self, stream: str, pipe: IO[bytes]) -> None:
        with pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                self.printed(stream, data)

    def _await_end(self, collectors: Sequence[threading.Thread]) -> None:
        code = self._client.wait()
        for collector in collectors:
            collector.join()
        self.close_stdin()
        self.ended(code)

    def end(self) -> None:
        with contextlib.suppress(RigError):
            self._end()
        self._client.kill()

    def kill(self, signal: str = "KILL") -> None:
        self._kill(signal)

    def write(self, data: bytes) -> None:
        if self._client.stdin is None:
            raise RigError(f"write to {' '.join(self.argv)}", "spawned without stdin=True")
        view = memoryview(data)
        while view:
            view = view[os.write(self._client.stdin.fileno(), view) :]

    def close_stdin(self) -> None:
        if self._client.stdin is not None:
            with contextlib.suppress(OSError):
                self._client.stdin.close()
