# SPDX-License-Identifier: MIT
"""sd_notify, over real sockets."""

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from joblet.systemd import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """What systemd is to a service: a socket, and its name in NOTIFY_SOCKET."""
    name = (
        str(tmp_path / "notify") if request.param == "path" else f"@joblet-{secrets.token_hex(8)}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        yield sock, name


def test_messages(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    notifier = notify.from_environment({"NOTIFY_SOCKET": name})
    sent = {
        b"READY=1": notifier.ready(),
        b"READY=1\nSTATUS=3 jobs": notifier.ready("3 jobs"),
        b"STOPPING=1\nSTATUS=storing": notifier.stopping("storing"),
        b"RELOADING=1\nMONOTONIC_USEC=12345": notifier.reloading(lambda: 12_345_999),
        b"STATUS=two lines": notifier.status("two\nlines"),
        b"WATCHDOG=1": notifier.watchdog(),
        b"EXTEND_TIMEOUT_USEC=7": notifier.extend_timeout(7),
    }
    for message, accepted in sent.items():
        assert accepted
        assert sock.recv(4096) == message


def test_an_empty_status_is_not_sent(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    assert not notify.Notifier(name).status("")
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)


@pytest.mark.parametrize("address", ["", "@", "/", "relative", "vsock:2:1234"])
def test_without_a_socket_nothing_happens(address: str) -> None:
    notifier = notify.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    assert notifier == notify.Notifier()
    assert not notifier.ready()
    assert notify.from_environment({}) == notify.Notifier()


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert not notify.Notifier(str(tmp_path / "none")).ready()
    assert not notify.Notifier("/" + "x" * 200).ready()


def test_a_manager_that_does_not_read_is_no_hang(
    manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SEND_TIMEOUT_S", 0.01)
    notifier = notify.Notifier(manager[1])
    for _ in range(100_000):
        if not notifier.watchdog():
            return
    raise AssertionError("the socket's queue has no end")


@pytest.mark.parametrize(
    ("environ", "interval_us"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 15_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, 0),  # meant for another process
        ({"WATCHDOG_USEC": "often"}, 0),
        ({"WATCHDOG_USEC": "-5"}, 0),
        ({}, 0),
    ],
)
def test_the_watchdogs_interval(environ: dict[str, str], interval_us: int) -> None:
    environ["NOTIFY_SOCKET"] = "/run/x"
    assert notify.from_environment(environ, pid=77).interval_us == interval_us


def test_this_process_is_meant_by_default() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "10", "WATCHDOG_PID": str(os.getpid())}
    assert notify.from_environment(environ).interval_us == 5


def test_no_descriptor_stays_open(manager: tuple[socket.socket, str]) -> None:
    notifier = notify.Notifier(manager[1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        notifier.watchdog()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_systemd_notify_speaks_the_same(manager: tuple[socket.socket, str]) -> None:
    """systemd's own tool and we say the same to the same socket."""
    sock, name = manager
    environment = {"NOTIFY_SOCKET": name, "PATH": "/usr/bin:/bin"}
    subprocess.run(
        ["systemd-notify", "--no-block", "--ready", "--status=ok"], env=environment, check=True
    )
    theirs = sock.recv(4096).splitlines()
    notify.Notifier(name).ready("ok")
    assert set(sock.recv(4096).splitlines()) <= set(theirs)
