# SPDX-License-Identifier: MIT
"""From the test process into a machine's own network namespace.

A network namespace belongs to a thread, so a short-lived thread joins it and makes the socket; the
socket stays in that namespace whoever uses it afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import socket
import threading
from typing import TYPE_CHECKING, TypeVar

from .errors import RigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
CHUNK = 1 << 18
CONNECT_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


def within(pid: int, function: Callable[[], T]) -> T:
    """function(), called by a thread in the network namespace of process `pid`.

    Only sockets that this very thread makes are in the namespace: a library that connects from
    threads of its own (grpc) needs forward() or a subprocess.
    """
    outcome: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(1)

    def body() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(namespace, CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, f"setns: {os.strerror(number)}")
            finally:
                os.close(namespace)
            outcome.put((function(), None))
        except BaseException as error:  # handed to the caller, whatever it is
            outcome.put((None, error))

    threading.Thread(target=body, name=f"netns-{pid}", daemon=True).start()
    value, error = outcome.get()
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def connect(pid: int, port: int, host: str = "127.0.0.1") -> socket.socket:
    """A TCP connection to `host`:`port` as seen from process `pid`."""
    return within(pid, lambda: socket.create_connection((host, port), timeout=CONNECT_S))


class Forwarder:
    """Takes connections on the host's 127.0.0.1 and carries them to somewhere else.

    `dial` makes the far end, or raises OSError: then the connection is reset, as a closed port
    would. Bytes pass unchanged and an end of file on one side becomes one on the other.
    """

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        self._dial = dial
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="forward", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(near)
            try:
                far = stack.enter_context(self._dial())
            except (OSError, RigError):
                reset = b"\1\0\0\0\0\0\0\0"
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                return
            far.settimeout(None)
            pair = {near, far}
            with self._lock:
                self._open |= pair
            relay(near, far)
            with self._lock:
                self._open -= pair

    def close(self) -> None:
        """No new connections, and the ones there are end."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def relay(near: socket.socket, far: socket.socket) -> None:
    """Copies both ways until both sides have ended. A slow reader stops its own writer only."""
    other = threading.Thread(target=_copy, args=(far, near), daemon=True)
    other.start()
    _copy(near, far)
    other.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # One direction is broken: so is the connection, and the other thread must see it.
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def forwarded(dial: Callable[[], socket.socket]) -> Iterator[int]:
    """The port of a Forwarder that lives for the block."""
    forwarder = Forwarder(dial)
    try:
        yield forwarder.port
    finally:
        forwarder.close()
