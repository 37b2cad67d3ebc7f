# SPDX-License-Identifier: MIT
"""Importing what PID 1 kept, once, however often it is asked for."""

import os
from pathlib import Path

import pytest

from joblet.errors import FailedPrecondition, InvalidArgument, NotFound
from joblet.server.logs import ERR, OUT, Chunk, Gap, GapKind
from joblet.server.logs.rest import import_rest
from tests.unit.logs.support import (
    OTHER_BOOT,
    Pipe,
    collect,
    opened,
    read_all,
    run,
    running,
    say,
    stream_of,
    until,
)


def test_a_rest_follows_what_was_read_and_is_imported_once(tmp_path: Path) -> None:
    rest = tmp_path / "out.rest"
    rest.write_bytes(os.urandom(3_000_000))

    async def main() -> None:
        with Pipe() as pipe:
            async with running(tmp_path / "logs") as store:
                log = await store.open("job")
                await log.expect({OUT, ERR})
                log.attach(OUT, pipe.read_end())
                pipe.write(b"before")
                await until(log, 6)
                with pytest.raises(FailedPrecondition, match="still being read"):
                    await log.import_rest(OUT, rest, 3_000_000)
                await log.detach()
                assert await log.import_rest(OUT, rest, 3_000_000) == 3_000_000
                assert await log.import_rest(OUT, rest, 3_000_000) == 0
            async with running(tmp_path / "logs") as store:
                log = await store.open("job")
                with rest.open("rb") as file:
                    assert await log.import_rest(OUT, file.fileno(), 3_000_000) == 0
                    assert file.tell() == 0
                await log.finish(OUT)
                assert await log.import_rest(OUT, tmp_path / "nowhere", 5) == 0
                assert await log.import_rest(ERR, tmp_path / "nowhere", 0) == 0
                await log.finish(ERR)
                assert stream_of(await collect(log), OUT) == b"before" + rest.read_bytes()
                assert stream_of(await collect(log), ERR) == b""

    run(main)


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path / "logs") as store:
            log = await store.open("job")
            await log.expect({OUT})
            with pytest.raises(NotFound, match="does not exist"):
                await log.import_rest(OUT, tmp_path / "nowhere", 5)
            with pytest.raises(InvalidArgument):
                await log.import_rest(ERR, tmp_path / "nowhere", 5)
            with pytest.raises(InvalidArgument, match="-1 bytes"):
                await log.import_rest(OUT, tmp_path / "nowhere", -1)
            assert log.size == 0

    run(main)


def _import(path: Path, rest: Path, count: int | None, *, times: int = 1) -> None:
    for _ in range(times):
        with opened(path) as core, rest.open("rb") as file:
            import_rest(core, OUT, file.fileno(), count)


def test_a_rest_that_is_shorter_than_promised_leaves_an_exact_gap(tmp_path: Path) -> None:
    rest = tmp_path / "out.rest"
    rest.write_bytes(b"rest")
    log = tmp_path / "log"
    with opened(log) as core:
        core.expect(frozenset({OUT, ERR}))
        say(core, OUT, b"read ")
    _import(log, rest, 10, times=3)
    with opened(log) as core:
        say(core, ERR, b"err")
    _import(log, rest, 10, times=2)
    with opened(log) as core:
        chunk, gap, err = read_all(core)
        assert isinstance(chunk, Chunk)
        assert chunk.data == b"read rest"
        assert isinstance(gap, Gap)
        assert (gap.kind, gap.bytes, gap.stream) == (GapKind.LOST, 6, OUT)
        assert err.offset == 15


def test_a_rest_without_a_count_is_taken_as_far_as_it_goes(tmp_path: Path) -> None:
    rest = tmp_path / "out.rest"
    rest.write_bytes(b"rest")
    log = tmp_path / "log"
    _import(log, rest, None, times=3)
    with opened(log) as core:
        chunk, gap = read_all(core)
        assert isinstance(chunk, Chunk)
        assert chunk.data == b"rest"
        assert isinstance(gap, Gap)
        assert (gap.kind, gap.bytes, gap.stream) == (GapKind.LOST, None, OUT)
        assert gap.offset_end == core.size == 1 << 40


def test_a_tail_is_lost_once(tmp_path: Path) -> None:
    """One gap for both streams, and none where the machine's death has left one already."""
    log = tmp_path / "log"
    with opened(log) as core:
        core.expect(frozenset({OUT, ERR}))
        say(core, OUT, b"said")
    for _ in range(3):
        with opened(log) as core:
            core.lose_tail([OUT, ERR])
            core.lose_tail([ERR])
            core.end(OUT)
    with opened(log) as core:
        core.end(ERR)
        _, gap = read_all(core)
        assert isinstance(gap, Gap)
        assert (gap.stream, gap.bytes, gap.offset_end) == (0, None, 1 << 40)
        assert core.ended


def test_the_tail_of_one_stream_is_lost(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as core:
        core.expect(frozenset({OUT, ERR}))
        core.end(OUT)
        core.lose_tail([OUT, ERR])
        [gap] = read_all(core)
        assert isinstance(gap, Gap)
        assert gap.stream == ERR


def test_a_rest_that_is_cut_off_behind_the_machines_death(tmp_path: Path) -> None:
    """Nothing of it is there: one gap tells of both losses."""
    rest = tmp_path / "out.rest"
    rest.write_bytes(b"")
    log = tmp_path / "log"
    with opened(log) as core:
        core.expect(frozenset({OUT, ERR}))
        say(core, OUT, b"said")
    for _ in range(2):
        with opened(log, boot=OTHER_BOOT) as core, rest.open("rb") as file:
            import_rest(core, OUT, file.fileno(), None)
            import_rest(core, ERR, file.fileno(), 5)
    with opened(log, boot=OTHER_BOOT) as core:
        _, gap = read_all(core)
        assert isinstance(gap, Gap)
        assert (gap.stream, gap.bytes) == (0, None)
        assert core.size == gap.offset_end == 1 << 40


def test_losses_in_a_row_are_read_as_one(tmp_path: Path) -> None:
    """A machine that dies twice enters two, because offsets are given out once."""
    log = tmp_path / "log"
    with opened(log) as core:
        core.expect(frozenset({OUT, ERR}))
        say(core, OUT, b"said")
    for boot in (OTHER_BOOT, 33):
        with opened(log, boot=boot) as core:
            pass
    with opened(log, boot=33) as core:
        core.gap(GapKind.LOST, OUT, 3)
        core.gap(GapKind.EXPIRED, OUT, 2)
        say(core, OUT, b"more")
        _, lost, dropped, more = read_all(core)
        assert isinstance(lost, Gap)
        assert isinstance(dropped, Gap)
        assert (lost.offset, lost.bytes, lost.stream) == (4, None, 0)
        assert (lost.offset_end, dropped.bytes, more.offset) == (
            dropped.offset,
            2,
            dropped.offset_end,
        )
        assert lost.offset_end == (2 << 40) + 3
        # from the middle of it, too
        (rest, *_) = read_all(core, 1 << 40)
        assert (rest.offset, rest.offset_end) == (1 << 40, lost.offset_end)


def test_a_longer_rest_than_promised_is_taken_as_promised(tmp_path: Path) -> None:
    rest = tmp_path / "out.rest"
    rest.write_bytes(b"rest and more")
    _import(tmp_path / "log", rest, 4, times=2)
    with opened(tmp_path / "log") as core:
        assert stream_of(read_all(core), OUT) == b"rest"


def test_an_import_cut_off_by_the_death_of_the_machine_goes_on(tmp_path: Path) -> None:
    rest = tmp_path / "out.rest"
    rest.write_bytes(b"0123456789")
    log = tmp_path / "log"
    with opened(log) as core:
        core.expect(frozenset({OUT, ERR}))
        say(core, OUT, b"read ")
    _import(log, rest, 10)
    # Of what was imported, four bytes reached the disk, of a block that has its checksum as a
    # whole; the mark was synced before.
    os.truncate(log / "out.000000000000000", 9)
    with opened(log, boot=OTHER_BOOT) as core, rest.open("rb") as file:
        assert import_rest(core, OUT, file.fileno(), 10) == 10
        assert import_rest(core, OUT, file.fileno(), 10) == 0
        assert stream_of(read_all(core), OUT) == b"read 0123456789"


def test_bytes_lost_before_the_mark_do_not_hide_the_rest(tmp_path: Path) -> None:
    rest = tmp_path / "out.rest"
    rest.write_bytes(b"0123456789")
    log = tmp_path / "log"
    with opened(log) as core:
        say(core, OUT, b"read before")
    _import(log, rest, 10)
    os.truncate(log / "out.000000000000000", 4)
    with opened(log) as core, rest.open("rb") as file:
        assert import_rest(core, OUT, file.fileno(), 10) == 10
        assert import_rest(core, OUT, file.fileno(), 10) == 0
        assert stream_of(read_all(core), OUT) == b"0123456789"
