# SPDX-License-Identifier: MIT
"""rnx's surroundings: streams, environment, clock. Everything the outside world does to rnx comes
through an Environment, so that tests can give it another.

stdout carries results alone: text, JSON, or a job's raw bytes. Everything else goes to stderr.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

# Colours of the published rnx, by status.
COLOURS = {
    "RUNNING": 33,
    "COMPLETED": 32,
    "FAILED": 31,
    "SCHEDULED": 36,
    "PENDING": 36,
    "INITIALIZING": 34,
    "STOPPED": 35,
    "CANCELED": 35,
}

# Control characters in what others wrote (names, commands, errors) would reach the terminal; bytes
# of the command line that are not UTF-8 are the surrogates of PEP 383.
_HARMLESS = {
    code: f"\\x{code & 0xFF:02x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xDC80, 0xDD00))
    if code not in (0x09, 0x0A)
}


@dataclasses.dataclass(slots=True)
class Environment:
    """`out` and `err` are byte streams; text is written to them as UTF-8."""

    out: BinaryIO
    err: BinaryIO
    environ: Mapping[str, str]
    cwd: Path
    home: Path
    colour: bool = False
    now: Callable[[], float] = time.time  # seconds since the epoch
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of_process(cls) -> "Environment":
        environ = os.environ
        return cls(
            out=_binary(sys.stdout),
            err=_binary(sys.stderr),
            environ=environ,
            cwd=Path(),
            home=_home(environ),
            colour=_wants_colour(environ),
        )

    def write(self, data: bytes) -> None:
        """Raw bytes to stdout, at once. Raises BrokenPipeError when nobody reads any more."""
        self.out.write(data)
        self.out.flush()

    def write_err(self, data: bytes) -> None:
        """Raw bytes to stderr, at once."""
        self.err.write(data)
        self.err.flush()

    def print(self, text: str) -> None:
        """A result, as text."""
        self.write(f"{text}\n".encode(errors="backslashreplace"))

    def print_json(self, value: Any, *, indent: int | None = 2) -> None:
        """A result, as JSON."""
        self.write(f"{json.dumps(value, ensure_ascii=False, indent=indent)}\n".encode())

    def note(self, text: str) -> None:
        """A line for people, to stderr. What it quotes is made harmless; a closed stderr is no
        reason to stop."""
        with contextlib.suppress(OSError, ValueError):  # Windows knows no BrokenPipeError
            self.write_err(f"{harmless(text)}\n".encode(errors="backslashreplace"))

    def status(self, word: str) -> str:
        """A job's status, coloured if this goes to a terminal."""
        if not self.colour or word not in COLOURS:
            return harmless(word)
        return f"\x1b[{COLOURS[word]}m{word}\x1b[0m"

    def abandon_out(self) -> None:
        """After BrokenPipeError: nothing that is still buffered may raise it again at exit."""
        try:
            descriptor = self.out.fileno()
        except (OSError, ValueError):
            return
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)


def harmless(text: str) -> str:
    """Text without control characters, but for line ends and tabs."""
    return text.translate(_HARMLESS)


def one_line(text: str) -> str:
    """Text without control characters or line ends."""
    return harmless(text).replace("\n", "\\n").replace("\t", " ")


def shown(word: str) -> str:
    """A word of the command line that is not text, with its odd bytes as \\xNN."""
    return ascii(word).replace("\\udc", "\\x")


def quoted(word: str) -> str:
    """A word of the command line in quotes, with odd bytes as \\xNN."""
    return repr(word).replace("\\udc", "\\x")


def is_text(word: str) -> bool:
    """Whether all of a word of the command line was UTF-8."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _binary(stream: Any) -> BinaryIO:
    """The bytes below a text stream; a stream that is closed swallows what it gets."""
    if stream is None:
        return io.BytesIO()
    binary: BinaryIO = stream.buffer
    return binary


def _home(environ: Mapping[str, str]) -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without an entry and without HOME
        return Path(environ.get("HOME", "."))


def _wants_colour(environ: Mapping[str, str]) -> bool:
    """https://no-color.org, and only where someone looks at it."""
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    if os.name == "nt" and not environ.get("WT_SESSION"):  # old consoles print the sequences
        return False
    return sys.stdout is not None and sys.stdout.isatty()
