# SPDX-License-Identifier: MIT
"""Threads that move what jobs say from their pipes into files, and enter it.

A byte goes with splice from the pipe into the stream's file in the stage, inside the kernel: it is
never in this process's memory, and it leaves the pipe if and only if it is in the file. Then it is
entered. A process killed between the two leaves a file that is longer than its index says, which
the next opening of the log enters.

Each thread has its own epoll over its own pipes; both streams of a log have the same thread,
because splice into a file takes no lock. The pipes are watched edge-triggered: a pipe with news
is "hot" until it says EAGAIN or ends, and each round gives every hot pipe one bounded splice.
So nobody waits for more than one round, and a pipe whose last writer left before it was watched
(it has one event, and then never another) is read until its end.

When a round moved little, the thread sleeps for `pace_s` before the next one: small writes
gather in the pipe meanwhile, and the first of them was already read. A pipe that fills within
that time counts as busy.

If the stage is nearly full, each job's policy says whether its pipes are read, left to fill, so
that the job waits, or read and left out (overflow). Short of that it costs a look at a flag. If the
stage refuses (its tmpfs has no page to give), the pipe rests, with back-off.

Must not import anything of joblet but joblet.errors and its neighbours core, faults, format,
overflow, worker.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import heapq
import os
import select
import termios
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

from joblet.errors import Internal, JobletError, Unavailable
from joblet.server.logs.core import LogCore
from joblet.server.logs.faults import fault
from joblet.server.logs.format import GapKind
from joblet.server.logs.overflow import Overflow, Verdict
from joblet.server.logs.worker import Worker

_MAX_EVENTS: Final = 1024
# More than this in one splice: the writers keep up with us, so there is nothing to wait for.
_BUSY_BYTES: Final = 64 << 10
# Of pipes that are left out a gap is entered so often at most, unless they fill meanwhile.
_GATHER_S: Final = 0.1
# If all pipes wait, it is looked again so often whether one may be read, whatever is told.
_LOOK_S: Final = 0.1
_LEFT_OUT: Final = {Verdict.SAMPLE: GapKind.SAMPLED, Verdict.DROP: GapKind.DROPPED}


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """How the readers work; the defaults are measured (tests/bench/logs_throughput.py)."""

    # Bounds of one splice. Few hot pipes get the larger, which is faster; with many, a round
    # should stay short: `round_bytes` divided by their number, but not less than the smaller.
    splice_bytes: int = 1 << 20
    fair_splice_bytes: int = 256 << 10
    round_bytes: int = 16 << 20
    # Pipes that come when a thread has so many already are made as small as one of its splices, if
    # what they hold allows it: of a thousand large ones each is read when it is no longer in any
    # cache of the processor (docs/adr/0008).
    many_pipes: int = 32
    pace_s: float = 0.001  # rest after a round that moved little
    retry_first_s: float = 0.05  # back-off after the disk refused
    retry_last_s: float = 5.0


class Pipe:
    """The read end of one stream's FIFO, owned by its reader thread."""

    def __init__(self, core: LogCore, stream: int, fd: int) -> None:
        self.core = core
        self.stream = stream
        self.fd = fd
        self.hung_up = False  # no writer is left: what it holds is all there will be
        self.watched = False  # registered with epoll
        self.target = -1  # the stream's file, once the thread has opened it
        self.left: int | None = None  # how many bytes are still to be read, if that is decided
        self.at_end = False  # all is read; the end is to be entered
        self.trouble: JobletError | None = None
        self.delay_s = 0.0
        self.turn = 0  # chunks read under pressure
        self.left_out_s = 0.0  # when some was left out last
        self.waits = False  # for room in the stage
        self.busy_bytes = _busy_bytes(fd)
        self.waiting: list[concurrent.futures.Future[None]] = []  # for the end
        self.closed = False


@dataclasses.dataclass(frozen=True, slots=True)
class ReaderStatistics:
    """What one thread has done."""

    pipes: int
    alive: bool
    bytes_moved: int
    chunks: int
    rounds: int
    pauses: int  # how often a pipe had to rest because the stage refused
    waits: int  # how often a pipe began to wait for room in the stage


class Reader(Worker):
    """One thread. `attach`, `finish`, `detach` and `stop` may be called from any thread."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        overflow: Overflow,
        *,
        on_trouble: Callable[[LogCore, JobletError | None], None],
        on_death: Callable[[JobletError], None],
        step: Callable[[str], None],
    ) -> None:
        super().__init__(name, "read output", on_death)
        self._settings = settings
        self._overflow = overflow
        self._room = overflow.room
        self._on_trouble = on_trouble
        self._step = step
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._lock = threading.Lock()
        self._commands: collections.deque[Callable[[], None]] = collections.deque()
        self._failure: JobletError | None = None  # set once the thread takes no more commands
        self._stopping = False
        self._pipes: dict[int, Pipe] = {}
        self._hot: dict[Pipe, None] = {}
        self._resting: list[tuple[float, int, Pipe]] = []
        self._stuck = False  # all hot pipes wait for room
        self._bytes_moved = self._chunks = self._rounds = self._pauses = self._waits = 0

    def start(self) -> None:
        """Raises RuntimeError if the system has no thread to give."""
        try:
            super().start()
        except RuntimeError:
            self._close_own()
            raise

    @property
    def alive(self) -> bool:
        return self._failure is None

    @property
    def load(self) -> int:
        return len(self._pipes) + len(self._commands)

    def statistics(self) -> ReaderStatistics:
        return ReaderStatistics(
            pipes=len(self._pipes),
            alive=self.alive,
            bytes_moved=self._bytes_moved,
            chunks=self._chunks,
            rounds=self._rounds,
            pauses=self._pauses,
            waits=self._waits,
        )

    def look(self) -> None:
        """There is room in the stage again."""
        with contextlib.suppress(JobletError):
            self._post(_nothing)

    def attach(self, pipe: Pipe) -> None:
        """Read the pipe from now on. Raises JobletError if the thread is gone."""
        self._post(lambda: self._add(pipe))

    def finish(self, pipe: Pipe) -> concurrent.futures.Future[None]:
        """Read what the pipe holds now, enter the end, close it; done when it is entered."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._post(lambda: self._limit(pipe, done))
        return done

    def detach(self, pipe: Pipe) -> concurrent.futures.Future[None]:
        """Close the pipe, reading nothing more and entering no end; done when it is closed."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def release() -> None:
            self._close(pipe, _detached(pipe))
            _settle(done, None)

        self._post(release)
        return done

    def stop(self) -> None:
        """End the thread, wait for it, and close its pipes. Blocking."""
        super().stop()
        for pipe in list(self._pipes.values()):
            self._close(pipe, _detached(pipe))
        self._close_own()

    def _close_own(self) -> None:
        self._epoll.close()
        os.close(self._wake_fd)

    def _leave(self) -> None:
        def leave() -> None:
            self._stopping = True

        with contextlib.suppress(JobletError):
            self._post(leave)

    def _post(self, command: Callable[[], None]) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._commands.append(command)
            os.eventfd_write(self._wake_fd, 1)

    # Below: the thread.

    def _work(self) -> None:
        while not self._stopping:
            self._round()
        for command in self._refuse(Unavailable("read output", "the log store is stopping")):
            command()

    def _refuse(self, failure: JobletError) -> Collection[Callable[[], None]]:
        """Take no more commands; those that are there already."""
        with self._lock:
            self._failure = failure
            commands, self._commands = self._commands, collections.deque()
        return commands

    def _died(self, failure: JobletError) -> None:
        commands = self._refuse(failure)
        super()._died(failure)
        # The pipes stay open and unread: whoever takes over finds everything in them.
        for pipe in self._pipes.values():
            _resolve(pipe, failure)
        for command in commands:
            command()
        for pipe in self._pipes.values():
            _resolve(pipe, failure)

    def _round(self) -> None:
        events = self._epoll.poll(self._timeout_s(), _MAX_EVENTS)
        self._step("reader:polled")
        self._rounds += 1
        for fd, event in events:
            if fd == self._wake_fd:
                self._obey()
            elif (pipe := self._pipes.get(fd)) is not None and pipe.trouble is None:
                self._hot[pipe] = None
                pipe.hung_up = pipe.hung_up or bool(event & select.EPOLLHUP)
        while self._resting and self._resting[0][0] <= time.monotonic():
            pipe = heapq.heappop(self._resting)[2]
            if not pipe.closed:
                self._hot[pipe] = None
        busy = False
        settings = self._settings
        next_round = time.monotonic() + settings.pace_s
        share = settings.round_bytes // max(1, len(self._hot))
        share = max(settings.fair_splice_bytes, min(settings.splice_bytes, share))
        self._stuck = bool(self._hot)
        for pipe in list(self._hot):
            if pipe.closed:
                continue
            if self._room.pressed:
                moved = self._visit_pressed(pipe, share)
            else:
                self._stuck = False
                _wait(pipe, waits=False)
                moved = self._visit(pipe, share)
            busy = busy or moved >= pipe.busy_bytes or (pipe.hung_up and not pipe.waits)
        if (
            self._hot
            and not busy
            and not self._stuck
            and (rest := next_round - time.monotonic()) > 0
        ):
            time.sleep(rest)

    def _visit_pressed(self, pipe: Pipe, share: int) -> int:
        """As _visit, if the job's policy says so."""
        policy = pipe.core.policy
        verdict = policy.verdict(pipe.turn)
        waited = pipe.waits
        _wait(pipe, waits=verdict is Verdict.WAIT)
        if pipe.waits:
            self._waits += not waited
            self._overflow.waits(policy, begun=not waited)
            return 0
        self._stuck = False
        kind = _LEFT_OUT.get(verdict)
        if kind is not None and not pipe.hung_up and pipe.left is None:
            # A record for each little write of a job would fill what room there is.
            now = time.monotonic()
            if now - pipe.left_out_s < _GATHER_S and _readable(pipe.fd) < pipe.busy_bytes:
                return 0
            pipe.left_out_s = now
        moved = self._visit(pipe, share, kind)
        if moved:
            pipe.turn += 1
            self._overflow.took(policy, verdict)
        return moved

    def _timeout_s(self) -> float | None:
        if self._hot and not self._stuck:
            return 0
        look = _LOOK_S if self._hot else None
        if self._resting:
            rest = max(0.0, self._resting[0][0] - time.monotonic())
            return rest if look is None else min(rest, look)
        return look

    def _obey(self) -> None:
        os.eventfd_read(self._wake_fd)
        while True:
            with self._lock:
                if not self._commands:
                    return
                command = self._commands.popleft()
            command()

    def _add(self, pipe: Pipe) -> None:
        if len(self._pipes) >= self._settings.many_pipes:
            _make_smaller(pipe, self._settings.fair_splice_bytes)
        self._pipes[pipe.fd] = pipe
        pipe.core.pin()
        self._hot[pipe] = None

    def _limit(self, pipe: Pipe, done: concurrent.futures.Future[None]) -> None:
        if pipe.closed:
            ended = pipe.stream in pipe.core.state.ended
            _settle(done, None if ended else _detached(pipe))
            return
        pipe.waiting.append(done)
        if pipe.left is None:
            pipe.left = _readable(pipe.fd)
            pipe.at_end = pipe.at_end or pipe.left == 0
        if pipe.trouble is None:
            self._hot[pipe] = None

    def _visit(self, pipe: Pipe, share: int, leave_out: GapKind | None = None) -> int:
        """One step of a pipe, of at most `share` bytes; how many it moved. `leave_out`: as that."""
        moved = 0
        try:
            moved = self._advance(pipe, share, leave_out)
        except OSError as exc:
            self._rest(pipe, fault(f"keep the output of job {pipe.core.job_id}", exc))
            return moved
        except Exception as exc:  # a bug: it stops this pipe, loudly, and not the others
            error = Internal(f"keep the output of job {pipe.core.job_id}", repr(exc))
            error.__cause__ = exc
            self._rest(pipe, error)
            return moved
        if pipe.trouble is not None:
            pipe.trouble = None
            pipe.delay_s = 0.0
            self._on_trouble(pipe.core, None)
        return moved

    def _advance(self, pipe: Pipe, share: int, leave_out: GapKind | None) -> int:
        core, stream = pipe.core, pipe.stream
        if not pipe.watched:
            self._epoll.register(pipe.fd, select.EPOLLIN | select.EPOLLET)
            pipe.watched = True
        if pipe.target < 0:
            pipe.target = core.staged.stream(stream)
            self._step("reader:opened")
        core.enter(stream)  # what the disk refused to enter before, if anything
        moved = 0
        if not pipe.at_end:
            want = share if pipe.left is None else min(share, pipe.left)
            self._step("reader:before-splice")
            try:
                moved = os.splice(pipe.fd, pipe.target, want, offset_dst=core.written[stream])
            except BlockingIOError:
                if pipe.left is None:
                    self._hot.pop(pipe, None)
                    return 0
            self._step("reader:spliced")
            if moved == 0:
                pipe.at_end = True
            else:
                core.written[stream] += moved
                if pipe.left is not None:
                    pipe.left -= moved
                    pipe.at_end = pipe.left == 0
                if leave_out is None:
                    core.enter(stream)
                else:
                    core.discard(stream, leave_out)
                    self._overflow.left_out(leave_out, moved)
                self._bytes_moved += moved
                self._chunks += 1
                self._step("reader:entered")
        if pipe.at_end:
            core.end(stream)
            self._step("reader:ended")
            self._close(pipe, None)
            self._step("reader:closed")
        return moved

    def _rest(self, pipe: Pipe, error: JobletError) -> None:
        settings = self._settings
        news = pipe.trouble is None or pipe.trouble.why != error.why
        pipe.trouble = error
        pipe.delay_s = min(settings.retry_last_s, pipe.delay_s * 2 or settings.retry_first_s)
        self._hot.pop(pipe, None)
        heapq.heappush(self._resting, (time.monotonic() + pipe.delay_s, id(pipe), pipe))
        self._pauses += 1
        if news:
            self._on_trouble(pipe.core, error)

    def _close(self, pipe: Pipe, failure: JobletError | None) -> None:
        if pipe.closed:
            return
        self._hot.pop(pipe, None)
        self._pipes.pop(pipe.fd, None)
        if pipe.watched:
            self._epoll.unregister(pipe.fd)
        os.close(pipe.fd)
        pipe.core.unpin()
        pipe.closed = True
        _wait(pipe, waits=False)
        if pipe.trouble is not None:
            pipe.trouble = None
            self._on_trouble(pipe.core, None)
        _resolve(pipe, failure)


def _busy_bytes(fd: int) -> int:
    """From a pipe that gave so much there is more to come."""
    # A quarter of a pipe can be all it holds: small writes do not always share a page.
    return min(_BUSY_BYTES, fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) // 4)


def _make_smaller(pipe: Pipe, size: int) -> None:
    """If it is larger; not if it holds more than that just now (F_SETPIPE_SZ, fcntl(2))."""
    if fcntl.fcntl(pipe.fd, fcntl.F_GETPIPE_SZ) > size:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.fd, fcntl.F_SETPIPE_SZ, size)
            pipe.busy_bytes = _busy_bytes(pipe.fd)


def _wait(pipe: Pipe, *, waits: bool) -> None:
    """Whether a pipe is left unread for want of room."""
    if pipe.waits is not waits:
        pipe.waits = waits
        waiting = pipe.core.waiting
        pipe.core.waiting = waiting | {pipe.stream} if waits else waiting - {pipe.stream}


def _nothing() -> None:
    """To wake up is all."""


def _readable(fd: int) -> int:
    """How many bytes a pipe holds."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")


def _detached(pipe: Pipe) -> Unavailable:
    return Unavailable(
        f"finish the output of job {pipe.core.job_id}",
        "its pipe was detached",
        hint="it is read on when attached again",
    )


def _resolve(pipe: Pipe, failure: JobletError | None) -> None:
    waiting, pipe.waiting = pipe.waiting, []
    for done in waiting:
        _settle(done, failure)


def _settle(done: concurrent.futures.Future[None], failure: JobletError | None) -> None:
    """Resolve a future whose caller may have given up on it."""
    if not done.set_running_or_notify_cancel():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
