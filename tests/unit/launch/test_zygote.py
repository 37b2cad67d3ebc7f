# SPDX-License-Identifier: MIT
"""The zygote as init mode uses it: one request, one answer, and nothing that stays."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from joblet.launch.zygote import MAX_REQUEST, Zygote, recv_fds
from tests.unit.launch.support import Host, descriptors, eventually, readable


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    """Forked from this very process, which holds a lot that a PID 1 must not get."""
    made = Zygote()
    yield made
    made.close()
    os.waitpid(made.pid, 0)


ROOT = Path(__file__).resolve().parents[3]


def answer(zygote: Zygote) -> tuple[int, int]:
    assert readable(zygote.socket.fileno())
    return zygote.answer()


def test_it_forks_one_for_each_request(host: Host) -> None:
    jobs = [host.fork(["true"]) for _ in range(5)]
    assert len({job.pid for job in jobs}) == 5
    for job in jobs:
        status = Path(f"/proc/{job.pid}/status").read_text()
        # the first of a PID namespace of its own
        assert status.partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"


def test_what_it_holds(zygote: Zygote) -> None:
    """Besides its standard streams its requests and its own PID namespace."""
    eventually(lambda: len(descriptors(zygote.pid)) == 5)
    held = sorted(target.split(":")[0] for target in descriptors(zygote.pid)[3:])
    assert held == ["pid", "socket"]


def test_it_keeps_no_descriptor_of_a_request(host: Host) -> None:
    before = len(descriptors(host.process.pid))
    for _ in range(20):
        host.fork(["true"])
    # (fewer, if it was still closing those of the request before when they were counted)
    eventually(lambda: len(descriptors(host.process.pid)) <= before)


def test_it_leaves_no_zombie(host: Host) -> None:
    job = host.fork(["true"])
    job.signal(signal.SIGKILL)
    job.wait_gone()
    eventually(lambda: not Path(f"/proc/{job.pid}").exists(), "a reaped PID 1")


def ask_nonsense(count: int) -> None:
    """What the test below runs in a process of its own."""
    null = os.open("/dev/null", os.O_RDWR)
    zygote = Zygote()
    try:
        for _ in range(3):  # the next one is served as well
            zygote.request("/nonexistent", [null] * count)
            with contextlib.suppress(ProcessLookupError):  # gone before it could be looked at
                _, pidfd = answer(zygote)
                assert readable(pidfd)
                os.close(pidfd)
    finally:
        os.close(null)
        zygote.close()
        os.waitpid(zygote.pid, 0)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_request_that_makes_no_sense(count: int) -> None:
    """It costs its PID 1 and nothing else. (Only init mode asks, and it has checked the plan.)

    In a fresh process: this one may have loaded grpc by now, and what is forked off it can hang.
    """
    script = f"from tests.unit.launch.test_zygote import ask_nonsense; ask_nonsense({count})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr.decode()


def test_it_ends_with_its_owner() -> None:
    zygote = Zygote()
    zygote.close()
    _, status = os.waitpid(zygote.pid, 0)
    assert status == 0


def test_a_zygote_that_is_gone_is_told(zygote: Zygote) -> None:
    os.kill(zygote.pid, signal.SIGKILL)
    assert readable(zygote.socket.fileno())
    with pytest.raises(ConnectionError):
        zygote.answer()
    with pytest.raises(ConnectionError):
        zygote.request("/", [])


def test_signals_do_not_end_it(host: Host) -> None:
    """All are blocked, so that a PID 1 is never without its mask; its service kills it."""
    os.kill(host.process.pid, signal.SIGTERM)
    os.kill(host.process.pid, signal.SIGINT)
    assert host.run(["sh", "-c", "exit 3"])[0].code == 3


def test_received_descriptors_are_close_on_exec() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(ours, [b"x" * MAX_REQUEST], [0, 1, 2])
        data, fds = recv_fds(theirs, MAX_REQUEST, 3)
        assert data == b"x" * MAX_REQUEST
        assert len(fds) == 3
        for fd in fds:
            assert not os.get_inheritable(fd)
            os.close(fd)
        # what is no SCM_RIGHTS is passed over
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.send(b"y")
        assert recv_fds(theirs, MAX_REQUEST, struct.calcsize("3i")) == (b"y", [])
