# SPDX-License-Identifier: MIT
"""The protocol between server and init mode: a SOCK_SEQPACKET socket, one JSON object a message,
fds along.

    request   {"id": n, "verb": VERB, …}        answer   {"id": n, "ok": {…}}
                                                         {"id": n, "error": {"code", "what", "why",
                                                         "hint"}}

The first message of each side is a hello, `{"hello": VERSION, "oldest": OLDEST, "program": …}`,
init mode's with `"permits": {"uid_first", "uid_last", "profiles", "ceilings"}`, which is what its
policy says of jobs; a peer that shares no version is told so and dropped. A hang-up withdraws every
launch that has not got its go.

    launch    job, fd: plan                -> pid, cgroup      directory, PID 1, scope
    go        job                          -> fd: ctl          answered once the scope stands and
    go is said
    cancel    job                          ->                  the launch is withdrawn
    connect   job                          -> state: connected (fd: ctl) | busy | gone | never
    list                                   -> jobs: [{job, state, uid}]
    results   job                          -> names, fds       of exit and *.rest, only when PID 1
    is gone
    stop      job                          ->                  StopUnit, waited for
    kill      job, signal                  ->                  KillUnit
    change    job, properties              ->                  SetUnitProperties; null lifts a limit
    clean-up  job, failed (true)           ->                  ResetFailed if it may have failed,
                                                               directory removed
    copy-journal                           -> fd: channel      plain copies of whole lines go
                                                               there: init/journal_copy.py
    read-journal job, cursor, …            -> fd: frames       what the journal has of the job's
                                                               unit: init/journal_read.py
    sync-journal                           ->                  all that was written is in the
                                                               journal

Both ends live in asyncio; descriptors arrive close-on-exec and belong to the receiver.
"""

import array
import asyncio
import contextlib
import json
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from joblet import __version__, errors
from joblet.errors import Code, InvalidArgument, JobletError, Unavailable

VERSION: Final = 1
OLDEST: Final = 1

MAX_MESSAGE: Final = 131072  # bytes; under the default SO_SNDBUF of a unix socket
MAX_FDS: Final = 8  # that one message carries

# states of a job's `ctl`, as connect and list tell them
CONNECTED: Final = "connected"  # the fd comes along
LIVE: Final = "live"  # list's word: PID 1 is there
BUSY: Final = "busy"  # it lives, and its backlog is full
GONE: Final = "gone"  # ECONNREFUSED: exit and rests are final
NEVER: Final = "never"  # no ctl: it did not get to go

Message = dict[str, Any]

_CLASSES: Final[Mapping[Code, type[JobletError]]] = {
    cls.code: cls
    for cls in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.PermissionDenied,
        errors.ResourceExhausted,
        errors.Aborted,
        errors.Unavailable,
        errors.Unimplemented,
        errors.Internal,
    )
}


class Link:
    """One end of a connection. `send` may be called by many tasks, `recv` by one."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._socket = sock
        self._sending = asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    async def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Raises Unavailable when the peer is gone, InvalidArgument for a message that is too
        large."""
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_MESSAGE:
            raise InvalidArgument(
                "send a message", f"{len(data)} bytes are more than {MAX_MESSAGE}"
            )
        async with self._sending:
            while True:
                try:
                    socket.send_fds(self._socket, [data], list(fds))
                    return
                except BlockingIOError:
                    await self._wait(write=True)
                except OSError as error:
                    raise Unavailable("talk over the link", str(error)) from None

    async def recv(self) -> tuple[Message, list[int]] | None:
        """The next message, None at the peer's end. Raises InvalidArgument for what is no
        message."""
        try:
            data, fds = await self._received()
        except OSError:
            return None
        if not data:
            close_all(fds)  # an empty message is an end too, whatever comes with it
            return None
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            close_all(fds)
            raise InvalidArgument("read a message", "it is not a JSON object")
        return message, fds

    async def _received(self) -> tuple[bytes, list[int]]:
        while True:
            try:
                return self._recvmsg()
            except BlockingIOError:
                await self._wait(write=False)

    def _recvmsg(self) -> tuple[bytes, list[int]]:
        data, fds, flags = recv_fds(self._socket, MAX_MESSAGE + 1, MAX_FDS)
        if len(data) > MAX_MESSAGE or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_all(fds)
            raise InvalidArgument("read a message", f"it is longer than {MAX_MESSAGE} bytes")
        return data, fds

    async def _wait(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        fd = self._socket.fileno()
        if fd < 0:
            raise Unavailable("talk over the link", "it is closed")
        ready = loop.create_future()
        add, remove = (
            (loop.add_writer, loop.remove_writer)
            if write
            else (loop.add_reader, loop.remove_reader)
        )
        add(fd, wake, ready)
        self._waiting.add(ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if self._socket.fileno() == fd:
                remove(fd)

    def shutdown(self) -> None:
        """Wakes a `recv` that waits; it then returns None."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if (fd := self._socket.fileno()) >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(fd)
            loop.remove_writer(fd)
            self._socket.close()
            # whoever waits to send sees that it is closed, or they and all behind them would hang
            for ready in self._waiting:
                wake(ready)


def wake(future: "asyncio.Future[None]") -> None:
    """For add_reader and call_soon: sets the future, once."""
    if not future.done():
        future.set_result(None)


async def readable(fd: int) -> None:
    """Until a descriptor that nobody else waits for can be read, or has hung up."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def recv_fds(sock: socket.socket, size: int, count: int) -> tuple[bytes, list[int], int]:
    """(data, descriptors, flags) of one recvmsg; the descriptors are the caller's.

    Never socket.recv_fds: it drops MSG_CMSG_CLOEXEC, and a job would inherit what it must not.
    Raises OSError.
    """
    room = socket.CMSG_SPACE(count * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds), flags


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        socket.close(fd)


def hello(**more: object) -> Message:
    """more: what this side has to say of itself."""
    return {"hello": VERSION, "oldest": OLDEST, "program": f"joblet {__version__}", **more}


def agree(message: Message) -> int:
    """The version to speak with this peer. Raises FailedPrecondition when there is none."""
    newest, oldest = message.get("hello"), message.get("oldest")
    if type(newest) is not int or type(oldest) is not int:
        raise InvalidArgument("open the link", "the peer's first message is no hello")
    version = min(newest, VERSION)
    if version < max(oldest, OLDEST):
        raise errors.FailedPrecondition(
            "open the link",
            f"the peer ({message.get('program')}) speaks versions {oldest} to {newest}, "
            f"this program {OLDEST} to {VERSION}",
            hint="restart joblet.service and joblet-init.service, so that both are of one release",
        )
    return version


def error_message(error: JobletError) -> Message:
    return {"code": error.code, "what": error.what, "why": error.why, "hint": error.hint}


def error_from(message: Any) -> JobletError:
    """The error that the peer answered."""
    if not isinstance(message, dict):
        return errors.Internal("read an answer", "it is neither ok nor an error")
    texts = [str(message.get(name, "")) for name in ("what", "why", "hint")]
    try:
        cls = _CLASSES[Code(message.get("code", ""))]
    except (ValueError, KeyError):
        cls = errors.Internal
    return cls(texts[0], texts[1], hint=texts[2])


def text(message: Message, name: str, pattern: re.Pattern[str]) -> str:
    """A field that matches. Raises InvalidArgument that names it."""
    value = message.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidArgument("read a request", f"{name} is {value!r:.80}")
    return value


def number(message: Message, name: str, low: int, high: int) -> int:
    """A field that is a number in range. Raises InvalidArgument that names it."""
    value = message.get(name)
    if type(value) is not int or not low <= value <= high:
        raise InvalidArgument("read a request", f"{name} is {value!r:.80}")
    return value


# -- frames: what a stream socket carries that was passed over the link ----------------------------

_FRAME: Final = struct.Struct("!II")
MAX_FRAME_FIELDS: Final = 65536
MAX_FRAME_DATA: Final = 8 << 20


def frame(fields: Message, data: bytes = b"") -> bytes:
    """An object with bytes behind it, and in front the length of each."""
    head = json.dumps(fields, separators=(",", ":")).encode()
    return _FRAME.pack(len(head), len(data)) + head + data


async def read_frame(reader: asyncio.StreamReader) -> tuple[Message, bytes]:
    """The next frame. Raises Unavailable at the stream's end, InvalidArgument for what is none."""
    try:
        sizes = _FRAME.unpack(await reader.readexactly(_FRAME.size))
        if sizes[0] > MAX_FRAME_FIELDS or sizes[1] > MAX_FRAME_DATA:
            raise InvalidArgument("read a frame", f"it is too large: {sizes}")
        head = await reader.readexactly(sizes[0])
        data = await reader.readexactly(sizes[1])
    except (asyncio.IncompleteReadError, OSError):
        raise Unavailable("read a frame", "the other end is gone") from None
    try:
        fields = json.loads(head)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidArgument("read a frame", "it has no object")
    return fields, data
