# SPDX-License-Identifier: MIT
"""The store: whose directory it is, which logs there are, and how many files it keeps open."""

import asyncio
import contextlib
import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from joblet.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable
from joblet.server.logs import ERR, OUT, GapKind, JobLog, LogStore
from tests.unit.logs.support import (
    Pipe,
    collect,
    eventually,
    opened,
    run,
    running,
    say,
    stream_of,
    ticking,
    until,
)

ROOT = Path(__file__).resolve().parents[3]


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _open_and_removed(path: Path) -> list[str]:
    """Files whose path begins so, which are there only because this process has them open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.append(str(entry.readlink()))
    return [name for name in found if name.startswith(str(path)) and name.endswith(" (deleted)")]


def test_a_directory_has_one_user(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path):
            stage = tmp_path.with_name(f"{tmp_path.name}.stage")
            other = LogStore(tmp_path, stage, clock_us=ticking())
            with pytest.raises(FailedPrecondition, match="another server uses it"):
                await other.start()
            with pytest.raises(Unavailable, match="it is not running"):
                await other.open("job")
        await other.start()
        with pytest.raises(FailedPrecondition, match="it is running"):
            await other.start()
        await other.stop()
        await other.stop()

    run(main)


CUT_OFF = """
import asyncio, os, sys, threading
from joblet.errors import FailedPrecondition
from joblet.server.logs import OUT, LogStore
directory, stage, other, where = sys.argv[1:]
there, sync = threading.Event(), os.fdatasync

def wait():
    there.set()
    threading.Event().wait()

def step(name):
    if where == "writer" and name == "store:copied":
        wait()

def fdatasync(fd):
    if where == "sync":
        wait()
    sync(fd)

async def main():
    store = LogStore(directory, stage, clock_us=lambda: 1, sync_s=1000, step=step)
    await store.start()
    log = await store.open("job")
    with log.core.pinned():
        os.pwrite(log.core.staged.stream(OUT), b"said", 0)
        log.core.written[OUT] += 4
        log.core.enter(OUT)
    os.fdatasync = fdatasync
    if where == "writer":
        await asyncio.to_thread(there.wait)
    stopping = asyncio.create_task(store.stop())
    await asyncio.to_thread(there.wait)
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    try:
        await LogStore(directory, other, clock_us=lambda: 1).start()
    except FailedPrecondition as error:
        print(error.why, flush=True)
    os._exit(0)

asyncio.run(main())
"""


@pytest.mark.parametrize("where", ["writer", "sync"])
def test_a_stop_that_is_cut_off_lets_nobody_in(tmp_path: Path, where: str) -> None:
    """A thread that the disk keeps waiting will write when the disk lets it: the directory is
    another server's when the process has ended."""
    paths = [str(tmp_path / name) for name in ("logs", "stage", "other")]
    child = subprocess.run(
        [sys.executable, "-c", CUT_OFF, *paths, where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert (child.stdout, child.stderr) == ("another server uses it\n", "")

    async def main() -> None:
        async with running(tmp_path / "logs", stage=tmp_path / "other"):
            pass

    run(main)


def test_a_filesystem_that_cannot_splice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def splice(*_: object, **__: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "splice", splice)

    async def main() -> None:
        stage = tmp_path.with_name(f"{tmp_path.name}.stage")
        store = LogStore(tmp_path, stage, clock_us=ticking())
        with pytest.raises(FailedPrecondition, match=r"cannot take data from a pipe \(splice\)"):
            await store.start()

    run(main)
    assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def main() -> None:
        store = LogStore(tmp_path / "file" / "logs", tmp_path / "stage", clock_us=ticking())
        with pytest.raises(Internal, match="Not a directory"):
            await store.start()

    run(main)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".hidden", "a\n", "a" * 129, "é"])
def test_names_that_are_no_job_ids(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with running(tmp_path / "logs") as store:
            for use in (store.open, store.remove, store.exists):
                with pytest.raises(InvalidArgument, match="is not a job id"):
                    await use(name)
            assert await store.list() == []

    run(main)


def test_logs_are_listed_and_removed(tmp_path: Path) -> None:
    async def main() -> None:
        with Pipe() as pipe:
            async with running(tmp_path) as store:
                for name in ("b", "a", "c"):
                    await store.open(name)
                assert await store.list() == ["a", "b", "c"]
                log = await store.open("b")
                await log.expect({OUT})
                log.attach(OUT, pipe.read_end())
                pipe.write(b"old")
                await until(log, 3)
                with pytest.raises(FailedPrecondition, match="still being read"):
                    await store.remove("b")
                await log.finish(OUT)
                await store.remove("b")
                with pytest.raises(NotFound, match="it was removed"):
                    await collect(log)
                with pytest.raises(NotFound):
                    await log.sync()
                with pytest.raises(NotFound):
                    log.attach(OUT, pipe.read_end())
                with pytest.raises(NotFound, match="there is none"):
                    await store.remove("b")
                assert await store.list() == ["a", "c"]
                assert (await store.exists("a"), await store.exists("b")) == (True, False)
                new = await store.open("b")
                assert (new.size, new.expected) == (0, None)
            # A removal that was cut short is completed by the next start.
            (tmp_path / "a").rename(tmp_path / ".removed-a")
            async with running(tmp_path) as store:
                assert await store.list() == ["b", "c"]
            assert not (tmp_path / ".removed-a").exists()

    run(main)


def test_a_log_is_one_object_for_all(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            logs = await asyncio.gather(*(store.open("job") for _ in range(20)))
            assert len(set(map(id, logs))) == 1
            follower = logs[0].follow()
            await logs[0].sync()
            del logs
            gc.collect()
            log = await store.open("job")  # the follower's, which would not see another grow
            assert log.core is follower._core

    run(main)


def test_logs_that_nobody_uses_cost_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, max_idle_logs=5) as store:
            before = _descriptors()
            log: JobLog | None = None
            for number in range(60):
                log = await store.open(f"job-{number}")
                await log.expect({OUT, ERR})
                with log.core.pinned():
                    say(log.core, OUT, b"out")
                    say(log.core, ERR, b"err")
                await log.finish(OUT)
                await log.finish(ERR)
                assert stream_of(await collect(log), OUT) == b"out"
                await log.sync()
            log = None
            while store.statistics().logs_open:  # a pool's thread may still hold the last one
                await asyncio.sleep(0)
                gc.collect()
            assert _descriptors() - before <= 5 * 3
            for number in range(60):
                log = await store.open(f"job-{number}")
                assert log.ended
                assert stream_of(await collect(log), ERR) == b"err"
            assert _descriptors() - before <= 5 * 3

    run(main)


def test_a_log_opened_again_leaves_no_files_of_the_time_before(tmp_path: Path) -> None:
    """Between a job's launch and its first output nobody holds its log, and what the stage has of
    it is stored: the next who opens it begins anew there."""

    async def main() -> None:
        async with running(tmp_path, sync_s=0.001) as store:
            for number in range(10):
                log: JobLog | None = await store.open(f"job-{number}")
                assert log is not None
                await log.expect({OUT})
                await log.sync()
                log = None
                while store.statistics().logs_open:  # the writer's thread may still hold it
                    await asyncio.sleep(0)
                    gc.collect()
                log = await store.open(f"job-{number}")
                await log.finish(OUT)
                await log.sync()
            # the writer's thread may still be at the last one's end
            await eventually(lambda: not _open_and_removed(tmp_path))

    run(main)


def test_a_clean_stop_is_known_after_a_reboot_and_a_kill_is_not(tmp_path: Path) -> None:
    async def boot(name: str, said: bytes, size: int) -> None:
        async with running(tmp_path, boot_id=name) as store:
            log = await store.open("job")
            assert log.size == size
            with log.core.pinned():
                say(log.core, OUT, said)

    async def main() -> None:
        await boot("one", b"12345", 0)
        await boot("one", b"12345", 5)
        await boot("two", b"12345", 10)
        program = (
            "import asyncio, os, sys\n"
            "from pathlib import Path\n"
            "sys.path.insert(0, sys.argv[2])\n"
            "from joblet.server.logs import LogStore\n"
            "async def main():\n"
            "    stage = sys.argv[1] + '.stage'\n"
            "    store = LogStore(sys.argv[1], stage, clock_us=lambda: 1, boot_id='two')\n"
            "    await store.start()\n"
            "    await store.open('job')\n"
            "    os._exit(0)\n"
            "asyncio.run(main())\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path), str(ROOT)]
        await asyncio.to_thread(subprocess.run, command, check=True)
        await boot("two", b"12345", 15)  # the same boot: a kill loses nothing
        (tmp_path / ".clean").unlink()  # as if it had been killed this time, too
        await boot("three", b"", 1 << 40)

    run(main)


def test_a_log_that_vanished_with_an_earlier_boot_begins_with_a_gap(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            log = await store.open("job", from_earlier_boot=True)
            (gap,) = await collect(log, follow=False)
            assert (gap.offset, gap.offset_end) == (0, 1 << 40)
        async with running(tmp_path) as store:
            log = await store.open("job", from_earlier_boot=True)
            assert log.size == 1 << 40

    run(main)


def test_gaps_that_callers_enter(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            log = await store.open("job")
            await log.expect({OUT})
            await log.append_gap(GapKind.EXPIRED, count=100, stream=OUT)
            await log.append_gap(GapKind.LOST)
            for bad in (0, -1, 1 << 40):
                with pytest.raises(InvalidArgument):
                    await log.append_gap(GapKind.LOST, count=bad)
            with pytest.raises(InvalidArgument):
                await log.append_gap(GapKind.LOST, count=1, stream=ERR)
            await log.finish(OUT)
            with pytest.raises(FailedPrecondition, match="the log has ended"):
                await log.append_gap(GapKind.LOST, count=1)
            first, second = await collect(log)
            assert (first.offset, first.offset_end) == (0, 100)
            assert (second.offset, second.offset_end) == (100, 1 << 40)

    run(main)


def test_a_sync_that_fails_is_told_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            log = await store.open("job")
            await log.append_gap(GapKind.LOST, count=1)
            real = os.fdatasync

            def fdatasync(_: int) -> None:
                raise OSError(errno.EIO, "Input/output error")

            monkeypatch.setattr(os, "fdatasync", fdatasync)
            with pytest.raises(Internal, match="cannot store the output of job job: Input/output"):
                await log.sync()
            assert log.core in store._dirty  # a stop would try again
            monkeypatch.setattr(os, "fdatasync", real)
            await log.sync()
            assert log.core not in store._dirty

    run(main)


def test_a_caller_that_gives_up_leaves_nothing_half_done(tmp_path: Path) -> None:
    async def main() -> None:
        rest = tmp_path / "rest"
        rest.write_bytes(b"x" * 2_000_000)
        async with running(tmp_path / "logs") as store:
            log = await store.open("job")
            await log.expect({OUT})
            importing = asyncio.create_task(log.import_rest(OUT, rest, 2_000_000))
            await asyncio.sleep(0)
            importing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await importing
            with Pipe() as pipe, pytest.raises(FailedPrecondition, match="in use"):
                log.attach(OUT, pipe.read_end())
            await log.finish(OUT)  # waits for its turn
            assert log.size == 2_000_000

    run(main)


def test_what_a_killed_server_left_is_stored_though_nobody_reads_it(tmp_path: Path) -> None:
    async def main() -> None:
        with opened(tmp_path / "job", boot=0, kept=False) as core:
            say(core, OUT, b"said")
        stage = tmp_path.with_name(f"{tmp_path.name}.stage")
        stage.mkdir()
        (tmp_path / "job.stage").rename(stage / "job")
        told: list[object] = []
        async with running(
            tmp_path, boot_id="one", on_trouble=lambda *args: told.append(args)
        ) as store:
            await store.settle()
            assert not (stage / "job").exists()
            log = await store.open("job", create=False)
            assert stream_of(await collect(log, follow=False), OUT) == b"said"
            assert told == []

    run(main)
