# SPDX-License-Identifier: MIT
"""The open files of a log, and a bound on how many stay open.

A file is opened when somebody needs it and stays open while the log is pinned; without a pin
it is closed as soon as more than `limit` logs are idle. Positions are always given (pread,
pwrite, splice with an offset), so any number of threads may share a descriptor for reading.

Must not import anything of joblet but its neighbour format.
"""

import collections
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from joblet.server.logs.format import ERR, OUT

INDEX_NAME: Final = "index"
NEW_INDEX_NAME: Final = "index.new"
STREAM_NAMES: Final = {OUT: "out", ERR: "err"}

_OPEN_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700


class FileCache:
    """Which logs have open files that nobody uses; closes the longest idle beyond `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: collections.OrderedDict[LogFiles, None] = collections.OrderedDict()

    def pin(self, files: "LogFiles") -> None:
        with self._lock:
            files.pins += 1
            self._idle.pop(files, None)

    def unpin(self, files: "LogFiles") -> None:
        surplus: list[int] = []
        with self._lock:
            files.pins -= 1
            if files.pins == 0:
                self._idle[files] = None
                if files.dropped:
                    del self._idle[files]
                    surplus = files.take_all()
                elif len(self._idle) > self._limit:
                    oldest, _ = self._idle.popitem(last=False)
                    surplus = oldest.take_all()
        _close_all(surplus)

    def drop(self, path: Path) -> None:
        """Close the idle files in the directory `path`."""
        surplus: list[int] = []
        with self._lock:
            for files in [files for files in self._idle if files.path == path]:
                del self._idle[files]
                surplus += files.take_all()
        _close_all(surplus)

    def close(self) -> None:
        """Close every idle log's files."""
        surplus: list[int] = []
        with self._lock:
            while self._idle:
                files, _ = self._idle.popitem()
                surplus += files.take_all()
        _close_all(surplus)


class LogFiles:
    """The files in directory `path` of a log. Descriptors are valid within `pinned()` only."""

    def __init__(self, path: Path, cache: FileCache) -> None:
        self.path = path
        self.pins = 0  # the cache's, under its lock
        self.dropped = False  # close at the last unpin
        self._cache = cache
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        self._cache.pin(self)
        try:
            yield
        finally:
            self._cache.unpin(self)

    def pin(self) -> None:
        self._cache.pin(self)

    def unpin(self) -> None:
        self._cache.unpin(self)

    def get(self, name: str, *, create: bool = False) -> int:
        """A descriptor that stays the log's. `create`: the directory, too, if it is not there.

        Raises OSError (FileNotFoundError).
        """
        with self._lock:
            fd = self._open.get(name)
            if fd is None:
                fd = self._open[name] = self._opened(name, create=create)
            return fd

    def let_go(self, name: str) -> None:
        """Close a file that nobody has the descriptor of any more."""
        with self._lock:
            fd = self._open.pop(name, None)
        if fd is not None:
            os.close(fd)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[int]:
        """A descriptor for the time of the block. Raises OSError (FileNotFoundError)."""
        fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)

    def names(self) -> list[str]:
        """What lies in the directory, sorted; nothing if there is none. Raises OSError."""
        try:
            return sorted(entry.name for entry in self.path.iterdir())
        except FileNotFoundError:
            return []

    def index(self, *, create: bool = False) -> int:
        """Raises OSError."""
        return self.get(INDEX_NAME, create=create)

    def replace_index(self) -> None:
        """Put the new index in the index's place, durably. Raises OSError."""
        with self._lock:
            (self.path / NEW_INDEX_NAME).rename(self.path / INDEX_NAME)
            sync_directory(self.path)
            old = self._open.pop(INDEX_NAME, None)
        if old is not None:
            os.close(old)

    def new_index(self) -> int:
        """An empty file for a new index, owned by the caller. Raises OSError."""
        path = self.path / NEW_INDEX_NAME
        return os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_TRUNC, _FILE_MODE)

    def take_all(self) -> list[int]:
        """Give up every descriptor; the caller closes them. For the cache, without a pin."""
        with self._lock:
            taken = list(self._open.values())
            self._open.clear()
        return taken

    def _opened(self, name: str, *, create: bool) -> int:
        path = self.path / name
        if not create:
            return os.open(path, _OPEN_FLAGS)
        try:
            return os.open(path, _OPEN_FLAGS | os.O_CREAT, _FILE_MODE)
        except FileNotFoundError:
            self.path.mkdir(_DIRECTORY_MODE, exist_ok=True)
            return os.open(path, _OPEN_FLAGS | os.O_CREAT, _FILE_MODE)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview, position: int) -> None:
    """pwrite until everything is written. Raises OSError; then part of it may be written."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, position)
        view = view[done:]
        position += done


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
