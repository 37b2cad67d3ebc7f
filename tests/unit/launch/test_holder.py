# SPDX-License-Identifier: MIT
"""PID 1's end of `ctl`, with real sockets: one holder at a time, and who cannot be told is gone."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from joblet.launch import protocol
from joblet.launch.holder import BACKLOG, Ctl

HELLO = protocol.encode(protocol.HELLO, version=1, streams=[])


def held(ctl: Ctl) -> bool:
    """Asked anew each time, which a type checker cannot know of a property."""
    return ctl.held


@pytest.fixture
def ctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ctl]:
    monkeypatch.chdir(tmp_path)
    made = Ctl()
    yield made
    made.hang_up()
    made._listener.close()


def connect() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(0)
    sock.connect("ctl")
    return sock


def test_ctl_is_there_whole_at_once(ctl: Ctl, tmp_path: Path) -> None:
    assert [path.name for path in tmp_path.iterdir()] == ["ctl"]
    assert not os.get_inheritable(ctl.fd)
    assert not held(ctl)
    assert not ctl.accept(HELLO, [])  # nobody waits


def test_the_second_waits_for_the_first_to_hang_up(ctl: Ctl) -> None:
    first, second = connect(), connect()
    listening = ctl.fd
    assert ctl.accept(HELLO, [])
    assert first.recv(100) == HELLO
    assert not os.get_inheritable(ctl.fd)
    assert ctl.fd != listening
    assert ctl.accept(HELLO, [])  # held already: nothing happens
    with pytest.raises(BlockingIOError):
        second.recv(100)
    assert ctl.receive() is None  # nothing said
    assert held(ctl)
    first.close()
    assert ctl.receive() is None
    assert not held(ctl)
    assert ctl.fd == listening
    assert ctl.accept(HELLO, [])
    assert second.recv(100) == HELLO
    second.close()


def test_who_left_while_waiting_is_passed_over(ctl: Ctl) -> None:
    for _ in range(BACKLOG):
        connect().close()
    last = connect()
    assert ctl.accept(HELLO, [])
    assert last.recv(100) == HELLO
    last.close()


def test_a_full_backlog_blocks_nobody(ctl: Ctl) -> None:
    waiting = [connect() for _ in range(BACKLOG + 1)]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as late,
        pytest.raises(BlockingIOError),
    ):
        late.connect("ctl")
    for sock in waiting:
        sock.close()
    assert not ctl.accept(HELLO, [])


def test_the_hello_brings_descriptors(ctl: Ctl) -> None:
    reader, writer = os.pipe()
    with connect() as holder:
        assert ctl.accept(HELLO, [reader])
        data, fds, _, _ = socket.recv_fds(holder, 100, 4)
        assert data == HELLO
        os.write(writer, b"x")
        assert os.read(fds[0], 1) == b"x"
        for fd in (reader, writer, *fds):
            os.close(fd)


def test_what_is_said_before_a_hang_up_is_heard(ctl: Ctl) -> None:
    holder = connect()
    assert ctl.accept(HELLO, [])
    assert holder.recv(100) == HELLO
    holder.send(protocol.encode(protocol.STOP, grace_us=1))
    holder.send(protocol.encode(protocol.ACKNOWLEDGE))
    holder.close()
    assert ctl.receive() == (protocol.STOP, {"grace_us": 1})
    assert ctl.receive() == (protocol.ACKNOWLEDGE, {})
    assert ctl.receive() is None
    assert not held(ctl)


@pytest.mark.parametrize("nonsense", [b"?", b"[]", b"[" * 10_000, b'{"t":1}', b"\xff"])
def test_nonsense_is_a_hang_up(ctl: Ctl, nonsense: bytes) -> None:
    with connect() as holder:
        assert ctl.accept(HELLO, [])
        assert holder.recv(100) == HELLO
        holder.send(nonsense)
        assert ctl.receive() is None
        assert not held(ctl)
        assert holder.recv(100) == b""


def test_a_holder_that_reads_nothing_is_a_holder_that_hung_up(ctl: Ctl) -> None:
    with connect() as holder:
        assert ctl.accept(HELLO, [])
        for _ in range(10_000):
            ctl.send("told", x="a" * 1000)  # blocks never
            if not ctl.held:
                break
        assert not held(ctl)
        assert holder.recv(100) == HELLO


def test_telling_nobody_is_no_error(ctl: Ctl) -> None:
    ctl.send("told")
    holder = connect()
    assert ctl.accept(HELLO, [])
    holder.close()
    ctl.send("told")
    assert not held(ctl)
    ctl.hang_up()
    assert ctl.receive() is None
