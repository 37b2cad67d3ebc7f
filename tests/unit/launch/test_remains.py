# SPDX-License-Identifier: MIT
"""What a PID 1 leaves: whole files or none, no byte in two places. Real FIFOs, a real full disk."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from joblet.launch import remains
from joblet.launch.protocol import ExitRecord

RECORD = ExitRecord(job="j", code=3, usage={"cpu_usec": 1})
PIPE_BYTES = 1 << 20
TREE = Path(__file__).resolve().parents[3]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fifo(name: str, content: bytes) -> int:
    """The read end of a FIFO of 1 MiB that nobody writes any more."""
    os.mkfifo(name)
    reader = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(name, os.O_WRONLY)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    assert os.write(writer, content) == len(content)
    os.close(writer)
    return reader


def test_the_record_is_there_whole_or_not(directory: Path) -> None:
    remains.write_exit(RECORD)
    assert ExitRecord.from_bytes((directory / "exit").read_bytes()) == RECORD
    assert (directory / "exit").stat().st_mode & 0o777 == 0o600
    later = ExitRecord(job="j", code=4)
    remains.prepare_exit(later)
    assert ExitRecord.from_bytes((directory / "exit").read_bytes()) == RECORD
    remains.publish_exit()
    assert ExitRecord.from_bytes((directory / "exit").read_bytes()) == later
    assert [path.name for path in directory.iterdir()] == ["exit"]


def test_a_record_that_was_cut_off_is_written_anew(directory: Path) -> None:
    (directory / "exit.new").write_bytes(b"x" * 10_000)
    remains.write_exit(RECORD)
    assert ExitRecord.from_bytes((directory / "exit").read_bytes()) == RECORD


@pytest.mark.parametrize("size", [0, 1, 4096, 65_537, PIPE_BYTES])
def test_what_is_in_the_pipe_moves(directory: Path, size: int) -> None:
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    out, err = fifo("out", content), fifo("err", b"err")
    reserved = remains.reserve({"out": out, "err": err})
    assert {name: count for name, (_, _, count) in reserved.items()} == {"out": size, "err": 3}
    assert remains.drain(reserved) == {"out": size, "err": 3}
    remains.write_exit(RECORD)
    remains.leave(reserved)
    assert (directory / "out.rest").read_bytes() == content
    assert (directory / "err.rest").read_bytes() == b"err"
    assert os.read(out, 1) == os.read(err, 1) == b""
    os.close(out)
    os.close(err)


def test_no_more_than_was_counted_moves(directory: Path) -> None:
    """Whoever writes on, a stranger with the job's stdout, does not keep PID 1."""
    os.mkfifo("out")
    reader = os.open("out", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("out", os.O_WRONLY)
    os.write(writer, b"counted")
    reserved = remains.reserve({"out": reader})
    os.write(writer, b" and later")
    assert remains.drain(reserved) == {"out": 7}
    assert (directory / "out.rest").read_bytes() == b"counted"
    assert os.read(reader, 100) == b" and later"
    remains.release(reserved)
    os.close(reader)
    os.close(writer)


def test_less_than_was_counted_is_said(directory: Path) -> None:
    """It cannot be, unless another reads; then the count is what the file holds."""
    reader = fifo("out", b"0123456789")
    reserved = remains.reserve({"out": reader})
    assert os.read(reader, 4) == b"0123"
    assert remains.drain(reserved) == {"out": 6}
    assert (directory / "out.rest").read_bytes() == b"456789"
    remains.release(reserved)
    os.close(reader)


def test_a_second_try_begins_anew(directory: Path) -> None:
    reader = fifo("out", b"0123")
    remains.release(remains.reserve({"out": reader}))
    assert os.read(reader, 2) == b"01"  # a holder came in between
    reserved = remains.reserve({"out": reader})
    assert remains.drain(reserved) == {"out": 2}
    remains.write_exit(RECORD)
    remains.leave(reserved)
    assert (directory / "out.rest").read_bytes() == b"23"
    os.close(reader)


FULL = """
import errno, os, sys
from joblet.launch import remains, syscalls
from tests.unit.launch.test_remains import RECORD, fifo
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
syscalls.mount("tmpfs", sys.argv[1], "tmpfs", 0, "size=256k")
os.chdir(sys.argv[1])
out, err = fifo("out", b"o" * 100_000), fifo("err", b"e" * 500_000)
descriptors = os.listdir("/proc/self/fd")
try:
    remains.reserve({"out": out, "err": err})
except OSError as error:
    print(errno.errorcode[error.errno])
print(len(os.read(out, 1 << 20)), len(os.read(err, 1 << 20)))
print(os.listdir("/proc/self/fd") == descriptors)
with open("ballast", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
try:
    remains.write_exit(RECORD)
except OSError as error:
    print(errno.errorcode[error.errno])
print(os.path.exists("exit"))
os.unlink("ballast")
remains.write_exit(RECORD)
print(os.path.exists("exit"))
"""


def test_without_room_nothing_moves(tmp_path: Path) -> None:
    """On a tmpfs of 256 KiB, in a mount namespace of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=TREE, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "ENOSPC", "100000 500000", "True", "ENOSPC", "False", "True",
    ]  # fmt: skip


def test_a_short_write_is_no_record(directory: Path) -> None:
    """A file-size limit cuts it off; then there is no `exit`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(OSError, match="short write") as info:
            remains.write_exit(RECORD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert info.value.errno == errno.ENOSPC
    assert not (directory / "exit").exists()
