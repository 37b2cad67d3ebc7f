# SPDX-License-Identifier: MIT
"""The journal: what this process logs, and copies of what jobs print.

Both go to journald in its native protocol over a datagram socket. It never blocks where an event
loop logs, for a launch must not wait for a journal that is busy; who sends lines of jobs and does
nothing else may wait a moment. What the journal does not take is left out, counted, and said with
the next message that gets through (log records), or reported to the caller (lines of jobs).

Where stderr is not the journal, records are lines of text or JSON on stderr.
Stdlib alone, although there is python3-systemd: its way of sending blocks.
"""

import array
import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

SOCKET: Final = "/run/systemd/journal/socket"
# So that lines of some MiB go as one datagram; what is larger goes as a memfd.
SEND_BUFFER_BYTES: Final = 8 << 20
SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python has no name for it. Root may.
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

# All fields of ours, beside those that journald and systemd.journal-fields(7) define: what each
# holds. joblet.journal-fields(7) is made from this list, and a test finds every other one.
FIELDS: Final[Mapping[str, str]] = {
    "JOBLET_JOB_ID": "the job's id, on every message about a job and every line that it printed;"
    " several times in a message about several",
    "JOBLET_STREAM": "stdout or stderr: which of its streams the job printed the line to",
    "JOBLET_UNIT": "the job's unit, joblet-ID.scope",
    "JOBLET_REASON": "why the job ended: exited, signalled, oom, timeout, stopped, unit-stopped,"
    " launch-failed or lost",
    "JOBLET_STATE": "the job's last state: COMPLETED, FAILED or STOPPED",
    "JOBLET_EXIT_CODE": "the exit code of a job's command that ended by itself",
    "JOBLET_SIGNAL": "the number of the signal that ended the job",
    "JOBLET_LEFT_OUT": "how many bytes of the job's output are missing here",
    "JOBLET_OVERFLOW": "what is done with output that the disk is too slow for: alert, block,"
    " sample or drop",
    "JOBLET_PROFILE": "the profile that the job runs under, or was to: default, strict or trusted",
    "JOBLET_LIMITS": "the limits that are not enforced, by their names",
    "JOBLET_JOBS": "how many running jobs the server took back",
    "JOBLET_LOGS": "how many logs have no record, or were removed because their time had come",
    "JOBLET_BYTES": "how many bytes of output retention removed",
    "JOBLET_WHO": "the client, by the name in its certificate; retention where the server itself"
    " deletes what has outlived its time",
    "JOBLET_FROM": "the address and port that the client called from, or: this server",
    "JOBLET_WHAT": "the call, such as RunJob, UpdateJob, StopJob or DeleteJob",
    "JOBLET_CHANGE": "what an UpdateJob was to change, by the names of its fields, such as"
    " max_cpu=50 timeout=+30m",
    "JOBLET_RESULT": "ok, or why the call was refused or failed; of DeleteAllJobs its answer",
}

_FIELD: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)  # what journald takes from a client
_TOO_LARGE: Final = frozenset({errno.EMSGSIZE, errno.ENOBUFS})

# Priorities of syslog(3). What a job prints is no warning of ours, whichever stream it takes; a
# notice is only shown in bold.
STREAM_PRIORITIES: Final[Mapping[str, int]] = {"stdout": 6, "stderr": 5}


NO_FIELDS: Final[Mapping[str, str]] = {}


class Journal:
    """A socket to journald, for one process. Threads may share it."""

    def __init__(self, path: str = SOCKET, *, patience_ms: int = 0) -> None:
        """patience_ms: how long an entry may wait for a journal that is busy, less than 1000."""
        self._path = path
        # Not connected, so that it survives journald's restarts.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if patience_ms:
            # not Python's time-out: that waits for our own socket's room, which is always there
            limit = struct.pack("@ll", 0, patience_ms * 1000)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        else:
            self._socket.settimeout(0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def close(self) -> None:
        self._socket.close()

    def send(self, fields: Iterable[tuple[str, bytes]]) -> bool:
        """One entry. Says whether the journal took it; raises no OSError."""
        return self._send([entry_field(name, value) for name, value in fields])

    def send_lines(
        self,
        job_id: str,
        unit: str,
        stream: str,
        lines: Sequence[bytes],
        *,
        identifier: str = "joblet",
        extra: Mapping[str, str] = NO_FIELDS,
    ) -> int:
        """An entry for each line that a job printed, which `journalctl -u UNIT` shows if this
        process is root (journald believes OBJECT_SYSTEMD_UNIT only then).

        stream: "stdout" or "stderr". Lines are bytes without the newline at their end and may hold
        any byte. extra: more fields, for lines that are not the job's own. Returns how many were
        left out: always the last ones, because after the first that the journal does not take the
        rest is not tried. Raises no OSError.
        """
        head = b"".join(
            entry_field(name, value.encode())
            for name, value in (
                ("PRIORITY", str(STREAM_PRIORITIES[stream])),
                ("SYSLOG_IDENTIFIER", identifier),
                ("JOBLET_JOB_ID", job_id),
                ("JOBLET_STREAM", stream),
                ("OBJECT_SYSTEMD_UNIT", unit),
                *extra.items(),
            )
        )
        for index, line in enumerate(lines):
            if not self._send([head, b"MESSAGE\n", struct.pack("<Q", len(line)), line, b"\n"]):
                return len(lines) - index
        return 0

    def _send(self, parts: list[bytes]) -> bool:
        try:
            self._socket.sendmsg(parts, [], 0, self._path)
        except OSError as error:
            # Anything else is a journal that is busy, restarting or not there.
            return error.errno in _TOO_LARGE and self._send_memfd(parts)
        return True

    def _send_memfd(self, parts: list[bytes]) -> bool:
        """The way of the native protocol for what is too large for a datagram."""
        try:
            fd = os.memfd_create("joblet-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            return False
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            try:
                view = memoryview(b"".join(parts))
                while view:
                    view = view[os.write(fd, view) :]
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
                rights = array.array("i", [fd])
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                self._socket.sendmsg([b""], ancillary, 0, self._path)
            except OSError:
                return False
        return True


def entry_field(name: str, value: bytes) -> bytes:
    """One field in the native protocol: as a line if it fits on one, else with its length."""
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


# -- logging ---------------------------------------------------------------------------------------

LEVELS: Final[Mapping[str, int]] = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
}


def setup(
    level: str,
    layout: str,
    identifier: str = "joblet",
    *,
    environ: Mapping[str, str],
    stream: TextIO | None = None,
    path: str = SOCKET,
) -> logging.Handler:
    """Send what this process logs to the journal, if `stream` (stderr) is the journal, else to
    `stream`. Replaces the root logger's handlers; call it again to change its arguments.

    level: one of LEVELS. layout, for lines on `stream`: "text" or "json".
    A record may carry extra={"job": JOB_ID} or {"jobs": [JOB_ID, …]}, and
    extra={"fields": {"JOBLET_NAME": text}}.
    """
    stream = sys.stderr if stream is None else stream
    handler: logging.Handler
    if is_journal(stream, environ):
        handler = JournalHandler(Journal(path), identifier)
    else:
        handler = LineHandler(stream)
        handler.setFormatter(JsonFormatter() if layout == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    return handler


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a stream is the one that systemd connected to the journal (JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalHandler(logging.Handler):
    """Log records to the journal, with their job and their place in the code as fields."""

    def __init__(self, journal: Journal, identifier: str) -> None:
        super().__init__()
        self.left_out = 0  # since the last record that got through
        self._journal = journal
        self._identifier = identifier.encode()

    def emit(self, record: logging.LogRecord) -> None:
        told = not self.left_out or self._say_left_out()
        if not told or not self._journal.send(self._fields(record)):
            self.left_out += 1

    def close(self) -> None:
        self._journal.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> list[tuple[str, bytes]]:
        message = _message(record)
        trace = _trace(record)
        fields = {
            "MESSAGE": f"{message}\n{trace}" if trace else message,
            "PRIORITY": str(priority(record.levelno)),
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
            "THREAD_NAME": record.threadName or "",
        }
        if job := _job(record):
            fields["JOBLET_JOB_ID"] = job
        fields |= {name: text for name, text in _extra(record).items() if _FIELD.fullmatch(name)}
        # a field may stand several times: journalctl finds the entry by each of them
        several = [("JOBLET_JOB_ID", job) for job in _jobs(record)]
        named = [*fields.items(), *several]
        encoded = [(name, text.encode(errors="replace")) for name, text in named]
        return [("SYSLOG_IDENTIFIER", self._identifier), *encoded]

    def _say_left_out(self) -> bool:
        text = f"{self.left_out} messages were left out: the journal did not take them"
        taken = self._journal.send(
            [
                ("MESSAGE", text.encode()),
                ("PRIORITY", b"4"),
                ("SYSLOG_IDENTIFIER", self._identifier),
            ]
        )
        if taken:
            self.left_out = 0
        return taken


class LineHandler(logging.StreamHandler[TextIO]):
    """Log records as lines. A stream that is gone, or full, is nobody's traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: there is nowhere left to say it."""


class TextFormatter(logging.Formatter):
    """2026-03-01T12:00:00.123Z INFO joblet.server.daemon: text job=ID"""

    def format(self, record: logging.LogRecord) -> str:
        job = _job(record)
        extra = {**({"job": job} if job else {}), **_extra(record)}
        extra.pop("MESSAGE_ID", None)  # for machines
        message = _printable(_message(record))
        head = f"{_time(record)} {level_name(record.levelno)} {record.name}: {message}"
        line = " ".join([head, *(f"{name}={_word(text)}" for name, text in extra.items())])
        trace = _trace(record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, job?, exception?, and other fields."""

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, Any] = {
            **_extra(record),
            "time": _time(record),
            "level": level_name(record.levelno),
            "logger": record.name,
            "message": _message(record),
        }
        if job := _job(record):
            data["job"] = job
        if jobs := _jobs(record):
            data["jobs"] = [*jobs]
        if trace := _trace(record):
            data["exception"] = trace
        return json.dumps(data, ensure_ascii=False)


def priority(level: int) -> int:
    """syslog's priority of a level of logging."""
    for least, number in ((50, 2), (40, 3), (30, 4), (20, 6)):
        if level >= least:
            return number
    return 7


def level_name(level: int) -> str:
    """The configuration's name of a level of logging."""
    return next((name for name, least in reversed([*LEVELS.items()]) if level >= least), "DEBUG")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # a bug, which must neither be silent nor spread
        return f"{record.msg!r} does not go with {record.args!r}"


def _printable(text: str) -> str:
    """On one line: text from outside must not look like a record of its own."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _job(record: logging.LogRecord) -> str:
    return str(getattr(record, "job", None) or "")


def _jobs(record: logging.LogRecord) -> Sequence[str]:
    jobs: Sequence[str] = getattr(record, "jobs", ())
    return jobs


def _extra(record: logging.LogRecord) -> dict[str, str]:
    fields = getattr(record, "fields", None)
    if not isinstance(fields, Mapping):
        return {}
    return {str(name): str(value) for name, value in fields.items()}


def _trace(record: logging.LogRecord) -> str:
    formatter = logging.Formatter()
    parts = []
    if record.exc_info and record.exc_info[0]:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _time(record: logging.LogRecord) -> str:
    when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03}Z"


def _word(text: str) -> str:
    return text if re.fullmatch(r"[!#-<>-~]+", text) else json.dumps(text, ensure_ascii=False)
