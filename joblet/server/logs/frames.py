# SPDX-License-Identifier: MIT
"""Blocks of staged output in another form or at another place than where the readers put them.

Must not import anything of joblet but its neighbours checksum, files, syscalls.
"""

import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joblet.server.logs.checksum import crc32
from joblet.server.logs.files import write_all
from joblet.server.logs.syscalls import punch

if TYPE_CHECKING:
    import zstandard

# Small, because a thousand jobs share the stage: each packs only what fills a block.
BLOCK_BYTES: Final = 64 << 10
PAGE_BYTES: Final = 4096
# What a block must become smaller by to be worth it: two pages.
WORTH_BYTES: Final = 2 * PAGE_BYTES

# A frame that is not compressed is longer than its block, by the header.
_STRIDE: Final = BLOCK_BYTES + PAGE_BYTES
_LEVEL: Final = 1
_MAGIC: Final = int.from_bytes(b"JobF", "little")
_HEADER: Final = struct.Struct("<IQIIII")
_CRC: Final = struct.Struct("<I")
_HEADER_BYTES: Final = _HEADER.size + _CRC.size
_RAW, _ZSTD = 0, 1
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW

_NOT_THERE: Final = (FileNotFoundError, NotADirectoryError)

_own = threading.local()  # compressors are one thread's


class Frames:
    """Packed blocks of one stream, in a file that is made when one is.

    Block N is the stream's bytes from position N * BLOCK_BYTES on, as many as that. Its frame lies
    at byte N * (BLOCK_BYTES + PAGE_BYTES) of the file, which is sparse. A frame, little endian:

        u32   magic number
        u64   the block's position in the stream
        u32   bytes of the block
        u32   bytes that stand behind the header
        u32   what they are: 0 the block as it is, 1 a Zstandard frame of it
        u32   CRC-32 of them
        u32   CRC-32 of the 28 bytes before it

    The header is written last, so a frame that is there is whole; whoever packs a block frees the
    block's own room only then. Blocking. Everything raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, block: int, data: bytes, step: Callable[[str], None], *, always: bool) -> int:
        """The bytes of room that the frame takes, whole pages; 0, and nothing is written, if it is
        not much smaller than the block (`always`: it is kept then, too, uncompressed)."""
        codec, body = _ZSTD, _compressor().compress(data)
        room = _pages(_HEADER_BYTES + len(body))
        if room > len(data) - WORTH_BYTES:
            if not always:
                return 0
            codec, body = _RAW, data
            room = _pages(_HEADER_BYTES + len(body))
        at = _place(block)
        begin = block * BLOCK_BYTES
        header = _HEADER.pack(_MAGIC, begin, len(data), len(body), codec, crc32(body))
        with self._opened(create=True) as fd:
            write_all(fd, body, at + _HEADER_BYTES)
            step("overflow:body")
            write_all(fd, header + _CRC.pack(zlib.crc32(header)), at)
        return room

    def read(self, block: int) -> bytes | None:
        """The block's bytes, None if it has no whole frame."""
        at = _place(block)
        try:
            with self._opened(change=False) as fd:
                header = os.pread(fd, _HEADER_BYTES, at)
                if len(header) < _HEADER_BYTES:
                    return None
                magic, begin, size, stored, codec, crc = _HEADER.unpack_from(header)
                known = magic == _MAGIC and begin == block * BLOCK_BYTES
                whole = _CRC.unpack_from(header, _HEADER.size)[0] == zlib.crc32(header[:-4])
                if not (known and whole and size == BLOCK_BYTES and stored <= BLOCK_BYTES):
                    return None
                body = os.pread(fd, stored, at + _HEADER_BYTES)
        except _NOT_THERE:
            return None
        if len(body) < stored or crc32(body) != crc:
            return None
        if codec == _RAW:
            return body
        return _decompressed(body) if codec == _ZSTD else None

    def free(self, block: int) -> None:
        """Give the frame's room back, if that can be."""
        with contextlib.suppress(OSError), self._opened() as fd:
            punch(fd, _place(block), _place(block + 1))

    def blocks(self) -> Iterator[int]:
        """The blocks that may have a frame, in order."""
        with contextlib.suppress(*_NOT_THERE), self._opened(change=False) as fd:
            end = os.fstat(fd).st_size
            at = 0
            while at < end:
                try:
                    at = os.lseek(fd, at, os.SEEK_DATA)
                except OSError:  # behind the last byte
                    return
                block = at // _STRIDE
                yield block
                at = _place(block + 1)

    def remove(self) -> None:
        """If that can be; who starts with the directory removes what is left."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    @contextlib.contextmanager
    def _opened(self, *, create: bool = False, change: bool = True) -> Iterator[int]:
        """Not kept open: an access is much more than that."""
        flags = _FLAGS | (os.O_RDWR if change else os.O_RDONLY)
        try:
            fd = os.open(self.path, flags | (os.O_CREAT if create else 0), _FILE_MODE)
        except FileNotFoundError:
            if not create:
                raise
            self.path.parent.mkdir(_DIRECTORY_MODE, exist_ok=True)
            fd = os.open(self.path, flags | os.O_CREAT, _FILE_MODE)
        try:
            yield fd
        finally:
            os.close(fd)


def _place(block: int) -> int:
    return block * _STRIDE


def _pages(count: int) -> int:
    return count + -count % PAGE_BYTES


def _compressor() -> "zstandard.ZstdCompressor":
    import zstandard  # most servers never need it

    found: zstandard.ZstdCompressor | None = getattr(_own, "compressor", None)
    if found is None:
        found = _own.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return found


def _decompressed(body: bytes) -> bytes | None:
    import zstandard

    found: zstandard.ZstdDecompressor | None = getattr(_own, "decompressor", None)
    if found is None:
        found = _own.decompressor = zstandard.ZstdDecompressor()
    try:
        data: bytes = found.decompress(body, max_output_size=BLOCK_BYTES)
    except zstandard.ZstdError:
        return None
    return data if len(data) == BLOCK_BYTES else None
