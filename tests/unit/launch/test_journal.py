# SPDX-License-Identifier: MIT
"""Streams of the journal, at whose other end this test listens in place of journald."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from joblet.launch import journal
from tests.unit.launch.support import descriptors

JOB = "4f1c2a90-9b57-4d07-8d5e-6a1f3c2b4d10"
UNIT = f"joblet-{JOB}.scope"


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "stdout")
    monkeypatch.setattr(journal, "PATH", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(5)
        yield listener


def everything(listener: socket.socket) -> bytes:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(5)
        parts = []
        while data := connection.recv(65536):
            parts.append(data)
        return b"".join(parts)


def test_each_stream_says_whose_it_is(journald: socket.socket) -> None:
    located = journal.locate()
    assert not os.get_inheritable(located)
    out, err = journal.open_streams(located, JOB, UNIT, merge=False)
    os.write(out, b"one\n")
    os.write(err, b"two\n")
    for fd in (out, err):
        assert stat.S_ISSOCK(os.fstat(fd).st_mode)
        assert not os.get_inheritable(fd)
        assert os.get_blocking(fd)
        journal.end(fd)
        os.close(fd)
    os.close(located)
    head = f"4f1c2a90\n{UNIT}\n%d\n0\n0\n0\n0\n"
    tail = f"\n{journal.END}\n"
    assert everything(journald).decode() == head % 6 + "one" + tail
    assert everything(journald).decode() == head % 4 + "two" + tail


def test_a_merged_job_has_one_stream(journald: socket.socket) -> None:
    located = journal.locate()
    (out,) = journal.open_streams(located, JOB, UNIT, merge=True)
    os.close(out)
    os.close(located)
    assert b"\n6\n" in everything(journald)


def test_a_journald_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PATH", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        journal.locate()


def test_a_journald_that_listens_no_more(journald: socket.socket) -> None:
    located = journal.locate()
    journald.close()
    before = len(descriptors(os.getpid()))
    with pytest.raises(ConnectionRefusedError):
        journal.open_streams(located, JOB, UNIT, merge=False)
    assert len(descriptors(os.getpid())) == before
    os.close(located)


def test_waiting_is_bounded_before_and_after_the_job_and_not_while_it_runs(
    journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "CONNECT_S", 1)
    monkeypatch.setattr(journal, "END_S", 1)
    monkeypatch.setattr(journal, "SEND_BUFFER_BYTES", 4096)
    located = journal.locate()
    (out,) = journal.open_streams(located, JOB, UNIT, merge=True)
    # the backlog takes one more, and then nobody
    (behind,) = journal.open_streams(located, JOB, UNIT, merge=True)
    with pytest.raises(BlockingIOError):
        journal.open_streams(located, JOB, UNIT, merge=True)
    # the job waits as long as it must, PID 1 not so long
    with socket.socket(fileno=out) as stream:
        assert not any(stream.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))
        with pytest.raises(BlockingIOError):
            sum(iter(lambda: stream.send(b"x" * 4096, socket.MSG_DONTWAIT), 0))
        journal.end(out)
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16)[0] == 1
    for fd in (located, behind):
        os.close(fd)
