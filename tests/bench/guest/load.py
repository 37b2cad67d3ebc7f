# SPDX-License-Identifier: MIT
"""What producers print, and how to know later that all of it is there.

A file of numbered lines is on the machine; each job prints its own part of it, round and round. So
a byte that is missing, doubled, or another job's is found, and a producer has nothing to compute.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.guest import producer
from tests.bench.guest.errors import Broken

DIRECTORY: Final = Path("/usr/local/lib/joblet-bench")
"""Below /usr, which every job sees."""
DATA: Final = DIRECTORY / "lines"
REPORTS: Final = DIRECTORY / "reports"
GATE: Final = DIRECTORY / "gate"
EXIT: Final = DIRECTORY / "exit"

LINE_BYTES: Final = 100
LINES: Final = 32_000
"""3.2 MB: a processor's cache holds it, so that reading it costs a producer little."""
STEP: Final = 7 * LINE_BYTES
"""From where one job begins to where the next does."""
BLOCK_BYTES: Final = 655 * LINE_BYTES
"""Of each write at full speed: whole lines, as near to 64 KiB as they come."""


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What one job prints: `total` bytes in writes of `block` bytes, both whole lines."""

    number: int
    total: int
    block: int = BLOCK_BYTES

    @property
    def begin(self) -> int:
        """Where in the data."""
        return self.number * STEP % (LINES * LINE_BYTES)

    @property
    def last_line(self) -> bytes:
        return b"".join(pieces(self, self.total - LINE_BYTES, LINE_BYTES))

    @property
    def command(self) -> list[str]:
        paths = (DIRECTORY / producer.NAME, REPORTS, GATE, DATA)
        numbers = (self.number, self.begin, self.total, self.block)
        return [*map(str, (*paths, *numbers, EXIT))]


def loads(count: int, total: int, block: int = BLOCK_BYTES) -> list[Load]:
    """`count` jobs that print about `total` bytes together."""
    each = max(1, total // count // LINE_BYTES) * LINE_BYTES
    return [Load(number, each, block) for number in range(count)]


@functools.cache
def data() -> bytes:
    """The lines: each one has its number, and no two are alike."""
    return b"".join(
        b"%07d %s %s\n" % (n, hashlib.sha256(b"%d" % n).hexdigest().encode(), b"." * 26)
        for n in range(LINES)
    )


def pieces(load: Load, offset: int, length: int) -> Iterator[memoryview]:
    """What `length` bytes of a job's output must be, from `offset` on."""
    whole = memoryview(data())
    at = (load.begin + offset) % len(whole)
    while length > 0:
        piece = whole[at : at + length]
        yield piece
        length -= len(piece)
        at = 0


class Check:
    """Compares output as it comes with what was printed, by length and SHA-256."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._hash = hashlib.sha256()
        self.length = 0

    def update(self, chunk: bytes | memoryview) -> None:
        self._hash.update(chunk)
        self.length += len(chunk)

    def done(self) -> None:
        """Raises Broken unless it was all, and as printed."""
        if self.length != self._load.total:
            raise Broken(
                f"job {self._load.number}: {self.length} of {self._load.total} bytes are there"
            )
        if self._hash.digest() != digest(self._load):
            raise Broken(f"job {self._load.number}: bytes differ from what it printed")


class Compare:
    """Compares output as it comes with what the job prints."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._twice = data() * 2
        self.length = 0

    def skip(self, count: int) -> None:
        """What is missing, and was said to be."""
        self.length += count

    def update(self, chunk: bytes) -> None:
        """Raises Broken where it differs."""
        once = len(self._twice) // 2
        done = 0
        while done < len(chunk):
            at = (self._load.begin + self.length) % once
            part = min(once, len(chunk) - done)
            got = chunk if part == len(chunk) else chunk[done : done + part]
            if got != self._twice[at : at + part]:
                raise Broken(f"bytes from {self.length} on are not what was printed")
            self.length += part
            done += part


@functools.cache
def digest(load: Load) -> bytes:
    """SHA-256 of what a job prints."""
    total = hashlib.sha256()
    for piece in pieces(load, 0, load.total):
        total.update(piece)
    return total.digest()


def install() -> None:
    """The data and the producer."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    DATA.write_bytes(data())
    producer.install(DIRECTORY)
