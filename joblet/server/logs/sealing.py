# SPDX-License-Identifier: MIT
"""Compress a segment that nothing is added to any more, so that every byte stays within reach.

    1. NAME.zst.new, NAME.zst.new.sums      written from what was verified, and synced
    2. NAME.zst.sums                        renamed
    3. NAME.zst                             renamed: from here on it counts
    4. the directory                        synced
    5. NAME, NAME.sums                      removed

A server killed before 3 has left the plain segment, and files that are not complete; behind it both
or the compressed one. Whoever opens the log removes what is too much (Segments.load).

Blocking. Must not import anything of joblet but its neighbours blocks, checksum, files.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import zstandard

from joblet.server.logs import blocks
from joblet.server.logs.blocks import BLOCK_BYTES, Sum, Sums
from joblet.server.logs.checksum import crc32
from joblet.server.logs.files import write_all

SUMS: Final = ".sums"
SEALED: Final = ".zst"
NEW: Final = ".zst.new"
_LEVEL: Final = 3
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_MODE: Final = 0o600


class Damaged(Exception):
    """A segment that is not as it was written."""


def compress(
    directory: Path,
    name: str,
    start: int,
    *,
    pause: Callable[[], None],
    step: Callable[[str], None],
) -> None:
    """Step 1 of the segment `name`, whose first byte has the position `start`.

    `pause` is called behind every frame; what it raises ends this. Raises Damaged, and OSError.
    However it ends but well, nothing new is left.
    """
    try:
        with contextlib.ExitStack() as stack:
            source = _open(directory / name, os.O_RDONLY, stack)
            sums = Sums(_open(directory / f"{name}{SUMS}", os.O_RDONLY, stack))
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            target = _open(directory / f"{name}{NEW}", flags, stack)
            target_sums = _open(directory / f"{name}{NEW}{SUMS}", flags, stack)
            # with a checksum of its own, so that zstd -t knows, too
            compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
            at = 0
            for number, (position, data) in enumerate(_frames(source, sums, start)):
                frame = compressor.compress(data)
                write_all(target, frame, at)
                block = Sum(position, at, len(data), crc32(data), len(frame))
                write_all(target_sums, blocks.encode(block, number), number * blocks.SUM_BYTES)
                at += len(frame)
                step("seal:frame")
                pause()
            times = os.fstat(source)
            os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
            os.fdatasync(target)
            os.fdatasync(target_sums)
            step("seal:written")
    except BaseException:
        discard(directory, name)
        raise


def discard(directory: Path, name: str) -> None:
    """Remove what step 1 has made. Raises nothing."""
    for new in (f"{name}{NEW}", f"{name}{NEW}{SUMS}"):
        with contextlib.suppress(OSError):
            (directory / new).unlink()


def _frames(source: int, sums: Sums, start: int) -> Iterator[tuple[int, bytes]]:
    """The bytes of a segment in pieces of at most BLOCK_BYTES, each with its position. A piece ends
    where bytes were left out. Raises Damaged."""
    size = os.fstat(source).st_size
    position = start
    gathered = bytearray()
    for block in sums.walk(0):
        if block is None or block.position < position:
            raise Damaged(f"the checksum of what follows byte {position} is not there")
        data = blocks.plain(source, block)
        if data is None:
            raise Damaged(f"the checksum of what follows byte {block.position} is wrong")
        if block.position > position and gathered:
            yield position - len(gathered), bytes(gathered)
            gathered.clear()
        position = block.end
        gathered += data
        while len(gathered) >= BLOCK_BYTES:
            yield position - len(gathered), bytes(gathered[:BLOCK_BYTES])
            del gathered[:BLOCK_BYTES]
    if position != start + size:
        raise Damaged(f"its checksums end at byte {position - start} of {size}")
    if gathered:
        yield position - len(gathered), bytes(gathered)


def _open(path: Path, flags: int, stack: contextlib.ExitStack) -> int:
    fd = os.open(path, flags | _FLAGS, _MODE)
    stack.callback(os.close, fd)
    return fd
