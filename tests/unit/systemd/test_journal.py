# SPDX-License-Identifier: MIT
"""The native protocol over a real socket, read back as journald reads it, and log records."""

import array
import contextlib
import fcntl
import io
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.systemd import journal
from joblet.systemd.journal import Journal

JOB = "6f0d3c3e-0000-4000-8000-000000000001"
UNIT = f"joblet-{JOB}.scope"


def parse(data: bytes) -> dict[str, bytes]:
    """An entry, by the rules of the native protocol."""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + length], data[8 + length :]
            assert data[:1] == b"\n"
            data = data[1:]
        assert name.decode() not in fields
        fields[name.decode()] = value
    return fields


class Journald:
    """The other end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(20)
        self.socket.bind(self.path)

    def raw(self) -> bytes:
        room = socket.CMSG_SPACE(4)
        data, ancillary, flags, _ = self.socket.recvmsg(64 << 20, room, socket.MSG_CMSG_CLOEXEC)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        if not ancillary:
            return data
        assert data == b""
        fd = array.array("i", ancillary[0][2])[0]
        try:
            # journald takes a memfd only when it is sealed, and these must be all its seals.
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == journal.SEALS
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    def entry(self) -> dict[str, bytes]:
        return parse(self.raw())

    def waiting(self) -> int:
        """Reads all that is there, and says how many entries it was."""
        self.socket.setblocking(False)
        count = 0
        try:
            while True:
                self.socket.recvmsg(1 << 20)
                count += 1
        except BlockingIOError:
            self.socket.settimeout(20)
            return count


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    other = Journald(tmp_path / "socket")
    yield other
    other.socket.close()


@pytest.fixture
def ours(journald: Journald) -> Iterator[Journal]:
    one = Journal(journald.path)
    yield one
    one.close()


# -- the protocol ----------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True), st.binary()),
        unique_by=lambda f: f[0],
    )
)
def test_any_value_survives_the_protocol(fields: list[tuple[str, bytes]]) -> None:
    data = b"".join(journal.entry_field(name, value) for name, value in fields)
    assert parse(data) == dict(fields)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"text",
        b"a\nb",
        b"\0\xff\0",
        b"=",
        b"MESSAGE=x\n\nMESSAGE=y",
        bytes(range(256)),
        b"x" * 100_000,
    ],
)
def test_lines_of_jobs(ours: Journal, journald: Journald, line: bytes) -> None:
    assert ours.send_lines(JOB, UNIT, "stdout", [line]) == 0
    assert journald.entry() == {
        "MESSAGE": line,
        "PRIORITY": b"6",
        "SYSLOG_IDENTIFIER": b"joblet",
        "JOBLET_JOB_ID": JOB.encode(),
        "JOBLET_STREAM": b"stdout",
        "OBJECT_SYSTEMD_UNIT": UNIT.encode(),
    }


def test_lines_keep_their_order_and_stream(ours: Journal, journald: Journald) -> None:
    assert ours.send_lines(JOB, UNIT, "stderr", [b"1", b"2"], identifier="build") == 0
    first, second = journald.entry(), journald.entry()
    assert (first["MESSAGE"], second["MESSAGE"]) == (b"1", b"2")
    assert first["JOBLET_STREAM"] == b"stderr"
    assert first["PRIORITY"] == b"5"
    assert first["SYSLOG_IDENTIFIER"] == b"build"
    assert ours.send_lines(JOB, UNIT, "stdout", []) == 0


def test_what_is_too_large_for_a_datagram_goes_as_a_sealed_memfd(
    ours: Journal, journald: Journald
) -> None:
    line = os.urandom(1 << 20) * 20
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert ours.send_lines(JOB, UNIT, "stdout", [line]) == 0
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    entry = journald.entry()
    assert entry["MESSAGE"] == line
    assert entry["OBJECT_SYSTEMD_UNIT"] == UNIT.encode()


def test_a_busy_journal_leaves_out_the_last_lines_and_does_not_block(
    ours: Journal, journald: Journald
) -> None:
    lines = [str(number).encode() for number in range(100_000)]
    left_out = ours.send_lines(JOB, UNIT, "stdout", lines)
    assert 0 < left_out < len(lines)
    first = journald.entry()
    taken = 1 + journald.waiting()
    assert first["MESSAGE"] == b"0"
    assert taken + left_out == len(lines)
    assert ours.send_lines(JOB, UNIT, "stdout", [b"again"]) == 0
    assert journald.entry()["MESSAGE"] == b"again"


def test_a_large_line_for_a_busy_journal_is_left_out_too(ours: Journal) -> None:
    while ours.send([("MESSAGE", b"fill")]):
        pass
    assert ours.send_lines(JOB, UNIT, "stdout", [b"x" * (20 << 20), b"y"]) == 2


def test_a_journal_that_goes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    ours = Journal(str(path))
    assert ours.send_lines(JOB, UNIT, "stdout", [b"1", b"2"]) == 2  # not there yet
    journald = Journald(path)
    assert ours.send([("MESSAGE", b"here")])
    journald.socket.close()
    assert not ours.send([("MESSAGE", b"gone")])  # refused
    path.unlink()
    journald = Journald(path)
    assert ours.send([("MESSAGE", b"back")])
    assert journald.entry()["MESSAGE"] == b"back"
    journald.socket.close()
    ours.close()


# -- log records -----------------------------------------------------------------------------------


@pytest.fixture
def restored() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards as it was."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    for handler in handlers:
        root.removeHandler(handler)
    yield root
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


@pytest.fixture
def stderr(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "stderr").open("w+") as stream:
        yield stream


def in_journal(stream: TextIO) -> dict[str, str]:
    status = os.fstat(stream.fileno())
    return {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}


def written(stream: TextIO) -> list[str]:
    stream.flush()
    stream.seek(0)
    return stream.read().splitlines()


@pytest.mark.usefixtures("restored")
def test_records_go_to_the_journal_when_stderr_is_the_journal(
    journald: Journald, stderr: TextIO
) -> None:
    log = logging.getLogger("joblet.test")
    journal.setup(
        "INFO", "text", "joblet-init", environ=in_journal(stderr), stream=stderr, path=journald.path
    )
    log.debug("not shown")
    log.info(
        "job %s\nruns", "x", extra={"job": JOB, "fields": {"JOBLET_CLIENT": "ci", "bad name": "y"}}
    )
    entry = journald.entry()
    assert entry["MESSAGE"] == b"job x\nruns"
    assert entry["PRIORITY"] == b"6"
    assert entry["SYSLOG_IDENTIFIER"] == b"joblet-init"
    assert entry["JOBLET_JOB_ID"] == JOB.encode()
    assert entry["JOBLET_CLIENT"] == b"ci"
    assert "bad name" not in entry
    assert entry["LOGGER"] == b"joblet.test"
    assert entry["CODE_FUNC"] == b"test_records_go_to_the_journal_when_stderr_is_the_journal"
    assert entry["CODE_FILE"].endswith(b"test_journal.py")
    assert int(entry["CODE_LINE"]) > 0
    log.warning("careful")
    entry = journald.entry()
    assert (entry["PRIORITY"], "JOBLET_JOB_ID" in entry) == (b"4", False)
    assert written(stderr) == []


@pytest.mark.usefixtures("restored")
def test_a_record_about_several_jobs_is_found_by_each(journald: Journald, stderr: TextIO) -> None:
    journal.setup("INFO", "text", environ=in_journal(stderr), stream=stderr, path=journald.path)
    logging.getLogger("x").info("done", extra={"jobs": ["a", "b", "c"]})
    lines = journald.raw().splitlines()
    assert [line for line in lines if line.startswith(b"JOBLET_JOB_ID=")] == [
        b"JOBLET_JOB_ID=a",
        b"JOBLET_JOB_ID=b",
        b"JOBLET_JOB_ID=c",
    ]
    journal.setup("INFO", "json", environ={"JOURNAL_STREAM": "1:2"}, stream=stderr)
    logging.getLogger("x").info("done", extra={"job": "", "jobs": ["a", "b"]})
    [line] = map(json.loads, written(stderr))
    assert line["jobs"] == ["a", "b"]
    assert "job" not in line


@pytest.mark.usefixtures("restored")
def test_a_traceback_is_part_of_the_message(journald: Journald, stderr: TextIO) -> None:
    journal.setup("INFO", "text", environ=in_journal(stderr), stream=stderr, path=journald.path)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("x").exception("a bug")
    message = journald.entry()["MESSAGE"].decode()
    assert message.startswith("a bug\nTraceback (most recent call last):")
    assert message.endswith("RuntimeError: broken")


@pytest.mark.usefixtures("restored")
def test_what_the_journal_did_not_take_is_counted_and_said(
    journald: Journald, stderr: TextIO
) -> None:
    handler = journal.setup(
        "INFO", "text", environ=in_journal(stderr), stream=stderr, path=journald.path
    )
    assert isinstance(handler, journal.JournalHandler)
    log = logging.getLogger("x")
    sent = 0
    while not handler.left_out:
        log.info("fill %d", sent)
        sent += 1
    log.info("left out too")
    assert handler.left_out == 2
    assert journald.waiting() == sent - 1
    log.info("here again")
    assert journald.entry()["MESSAGE"] == b"2 messages were left out: the journal did not take them"
    assert journald.entry()["MESSAGE"] == b"here again"
    assert handler.left_out == 0


@pytest.mark.usefixtures("restored")
def test_lines_of_text(stderr: TextIO) -> None:
    journal.setup("WARN", "text", environ={}, stream=stderr)
    log = logging.getLogger("joblet.test")
    log.info("not shown")
    log.warning("a %s", "b", extra={"job": JOB, "fields": {"CLIENT": "two words", "N": 1}})
    log.error("forged\n2026-01-01T00:00:00.000Z ERROR x: y\x1b[31m")
    first, second = written(stderr)
    time, rest = first.split(" ", 1)
    assert len(time) == len("2026-03-01T12:00:00.123Z")
    assert rest == f'WARN joblet.test: a b job={JOB} CLIENT="two words" N=1'
    assert second.endswith(
        r"ERROR joblet.test: forged\n2026-01-01T00:00:00.000Z ERROR x: y\x1b[31m"
    )


@pytest.mark.usefixtures("restored")
def test_lines_of_json(stderr: TextIO) -> None:
    journal.setup("DEBUG", "json", environ={"JOURNAL_STREAM": "1:2"}, stream=stderr)
    log = logging.getLogger("joblet.test")
    log.debug("ä\nb", extra={"job": JOB, "fields": {"CLIENT": "ci", "message": "not this"}})
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        log.critical("a bug", exc_info=True)
    first, second = map(json.loads, written(stderr))
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "DEBUG", "logger": "joblet.test", "message": "ä\nb", "job": JOB, "CLIENT": "ci",
    }  # fmt: skip
    assert second["level"] == "ERROR"
    assert "RuntimeError: broken" in second["exception"]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("layout", ["text", "json"])
def test_a_record_with_wrong_arguments_is_no_traceback(
    stderr: TextIO, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.setup("INFO", layout, environ={}, stream=stderr)
    logging.getLogger("x").info("%d", "text", extra={"fields": 5})
    (line,) = written(stderr)
    assert "does not go with ('text',)" in line
    assert capsys.readouterr().err == ""


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


@pytest.mark.usefixtures("restored")
def test_a_stream_that_is_gone_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    journal.setup("INFO", "text", environ={}, stream=Gone())
    logging.getLogger("x").info("lost")
    assert capsys.readouterr().err == ""


def test_setup_replaces_its_own_handler(
    restored: logging.Logger, journald: Journald, stderr: TextIO
) -> None:
    for _ in range(3):
        journal.setup("INFO", "text", environ=in_journal(stderr), stream=stderr, path=journald.path)
    assert len(restored.handlers) == 1
    logging.getLogger("x").info("once")
    journald.entry()
    assert journald.waiting() == 0


@pytest.mark.parametrize(
    ("level", "name", "number"),
    [
        (5, "DEBUG", 7),
        (10, "DEBUG", 7),
        (20, "INFO", 6),
        (25, "INFO", 6),
        (30, "WARN", 4),
        (40, "ERROR", 3),
        (50, "ERROR", 2),
    ],
)
def test_levels(level: int, name: str, number: int) -> None:
    assert journal.level_name(level) == name
    assert journal.priority(level) == number


def test_whoever_may_wait_waits_for_a_busy_journal(tmp_path: Path) -> None:
    """A moment, for each entry; then the rest is left out."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        hasty, patient = Journal(path), Journal(path, patience_ms=200)
        lines = [b"x"] * 2000  # more than a socket's queue has room for
        left = hasty.send_lines("j", "u", "stdout", lines)
        assert 0 < left < len(lines)
        assert patient.send_lines("j", "u", "stdout", lines) == len(lines)
        stop = threading.Event()

        def read() -> None:
            server.settimeout(0.01)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    server.recv(4096)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert patient.send_lines("j", "u", "stdout", lines) == 0
        finally:
            stop.set()
            reader.join()
        for journal in (hasty, patient):
            journal.close()
