# SPDX-License-Identifier: MIT
"""The stage is nearly full, because the disk is slower than jobs: each strategy does as it says.

The disk is a writer that stands still, or goes on block by block, in the store's step hook.
"""

import asyncio
import contextlib
import errno
import os
import random
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from joblet.config import ON_FULL, OVERFLOW_STRATEGIES
from joblet.server.logs import ERR, OUT, Batching, Bounds, Chunk, Gap, GapKind, JobLog, LogStore
from joblet.server.logs.frames import BLOCK_BYTES, Frames
from joblet.server.logs.reader import Settings
from joblet.server.logs.stage import Shelf
from tests.unit.logs.support import Pipe, collect, run, running

LIMIT: Final = 1 << 20
SPLICE: Final = 64 << 10
READERS: Final = 2
SETTINGS: Final = Settings(
    splice_bytes=SPLICE, fair_splice_bytes=SPLICE, retry_first_s=0.001, retry_last_s=0.01
)
# Beside what is staged: a splice of each reader, both ends of what was left out, the indexes.
BEYOND: Final = READERS * SPLICE + (256 << 10)


class Disk:
    """Takes a block for each `go(1)`, without end after `free()`."""

    def __init__(self) -> None:
        self._tokens = threading.Semaphore(0)
        self._free = threading.Event()

    def step(self, name: str) -> None:
        if name == "store:copied" and not self._free.is_set():
            self._tokens.acquire()

    def go(self, blocks: int) -> None:
        self._tokens.release(blocks)

    def free(self) -> None:
        self._free.set()
        self._tokens.release(1 << 20)


class Job:
    """Writes known bytes to its stdout, in a thread of its own."""

    def __init__(self, log: JobLog, data: bytes) -> None:
        self.log = log
        self.data = data
        self.written = 0
        self._pipe = Pipe()
        self._thread = threading.Thread(target=self._write)

    async def start(self) -> None:
        await self.log.expect({OUT})
        self.log.attach(OUT, self._pipe.read_end())
        self._thread.start()

    def _write(self) -> None:
        with self._pipe as pipe:
            view = memoryview(self.data)
            while self.written < len(view):
                self.written += os.write(pipe.sink, view[self.written : self.written + 50_000])
            pipe.hang_up()

    async def check(self) -> dict[GapKind, int]:
        """Every byte that no gap covers is as written; how many bytes gaps of each kind cover."""
        await self.log.wait_ended()
        await asyncio.to_thread(self._thread.join)
        gaps: dict[GapKind, int] = {}
        position = 0
        for item in await collect(self.log):
            assert item.offset == position
            if isinstance(item, Chunk):
                assert item.data == self.data[position : item.offset_end]
            else:
                assert item.bytes == item.offset_end - item.offset
                gaps[item.kind] = gaps.get(item.kind, 0) + item.bytes
            position = item.offset_end
        assert position == len(self.data)
        return gaps


def lines(size: int) -> bytes:
    """Compressible as logs are."""
    text = b"".join(b"%09d: a line of the job, like the others\n" % n for n in range(size // 48))
    return text[:size]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.fixture
def stage() -> Iterator[Path]:
    """On a real tmpfs: other filesystems reserve what nobody has written."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


def size_of(stage: Path) -> int:
    """As du says."""
    total = 0
    for place, _, names in os.walk(stage):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(place) / name).lstat().st_blocks * 512
    return total


def names(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()]


async def eventually(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - threads do it, and nothing tells
        await asyncio.sleep(0.001)


def serve(
    tmp_path: Path,
    stage: Path,
    main: Callable[[LogStore, Disk, list[Any]], Awaitable[None]],
    **options: Any,
) -> None:
    """Run `main` with a store, its disk, and what it tells of overflow."""
    disk, told = Disk(), []
    spill = options.pop("spill", tmp_path / "spill")

    async def bounded() -> None:
        async with running(
            tmp_path / "logs",
            stage=stage,
            settings=SETTINGS,
            readers=READERS,
            bounds=Bounds(limit_bytes=LIMIT, limit_chunks=options.pop("chunks", 100_000)),
            batching=Batching(flush_s=0.001),
            step=disk.step,
            disk_is_slow=lambda: True,
            spill=spill,
            on_overflow=lambda *what: told.append(what),
            **options,
        ) as store:
            try:
                await main(store, disk, told)
            finally:
                disk.free()

    run(bounded)


async def job(store: LogStore, data: bytes, name: str = "job", *policy: str) -> Job:
    log = await store.open(name)
    log.handle_overflow(*policy)
    made = Job(log, data)
    await made.start()
    return made


@pytest.mark.parametrize(
    ("strategy", "content"), [("compress", lines), ("spill", lines), ("spill", noise)]
)
def test_what_is_packed_is_one_stream_with_the_rest(
    tmp_path: Path, stage: Path, strategy: str, content: Callable[[int], bytes]
) -> None:
    """The disk stands still; four times the limit is taken, and read, as if nothing were."""
    data = content(4 * LIMIT)

    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        writer = await job(store, data, "job", strategy)
        await eventually(lambda: writer.log.ended)
        await eventually(lambda: size_of(stage) <= LIMIT + BEYOND)
        assert store.staged_bytes < LIMIT
        assert store.overflow()[strategy] > 20
        assert await writer.check() == {}  # from the stage
        disk.go(3)
        assert await writer.check() == {}
        disk.free()
        await writer.log.sync()
        assert await writer.check() == {}
        assert store.staged_bytes == 0
        assert names(tmp_path / "spill") == []
        assert names(stage) == [".lock"]
        assert told == []

    serve(tmp_path, stage, main)


@pytest.mark.parametrize("strategy", ["compress", "spill"])
def test_jobs_wait_when_nothing_can_be_packed(tmp_path: Path, stage: Path, strategy: str) -> None:
    """What does not become smaller; a spill directory that is none."""
    data = noise(4 * LIMIT)
    (tmp_path / "spill").touch()

    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        writer = await job(store, data, "job", strategy)
        await eventually(lambda: told)
        assert told == [("block", True)]
        assert store.overflow()["block"] >= 1
        assert LIMIT <= store.staged_bytes <= LIMIT + SPLICE
        assert size_of(stage) <= LIMIT + BEYOND
        disk.go(8)
        await eventually(lambda: writer.log.size > LIMIT + 4 * SPLICE)
        assert size_of(stage) <= LIMIT + BEYOND
        disk.free()
        assert await writer.check() == {}
        assert told[1] == ("block", False)

    serve(tmp_path, stage, main)


@pytest.mark.parametrize("strategy", ["compress", "sample", "alert"])
def test_drop_when_the_strategy_has_no_room(tmp_path: Path, stage: Path, strategy: str) -> None:
    data = noise(8 * LIMIT)

    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        writer = await job(store, data, "job", strategy, "drop")
        await eventually(lambda: writer.log.ended)
        assert store.staged_bytes <= LIMIT + SPLICE
        assert size_of(stage) <= LIMIT + BEYOND
        gaps = await writer.check()
        assert gaps.pop(GapKind.DROPPED) > 4 * LIMIT
        assert set(gaps) == ({GapKind.SAMPLED} if strategy == "sample" else set())
        assert ("drop", True) in told
        disk.free()
        await writer.log.sync()
        assert (await writer.check())[GapKind.DROPPED] > 4 * LIMIT
        await eventually(lambda: ("drop", False) in told)
        assert store.staged_bytes == 0
        # what was left out is a hole, and no reason for a file
        assert len(list((tmp_path / "logs/job").glob("out.*"))) == 2

    serve(tmp_path, stage, main, spare=lambda: 0)


def test_a_sampled_job_costs_no_other_a_byte(tmp_path: Path, stage: Path) -> None:
    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        sampled = await job(store, noise(4 * LIMIT), "sampled", "sample")
        await eventually(lambda: store.overflow().get("sample", 0) > 3)
        other = await job(store, lines(3 * LIMIT), "other", "compress")
        disk.go(4)
        await eventually(lambda: ("sample", True) in told)
        disk.free()
        assert await other.check() == {}
        gaps = await sampled.check()
        assert set(gaps) == {GapKind.SAMPLED}
        assert 0 < gaps[GapKind.SAMPLED] < 4 * LIMIT

    serve(tmp_path, stage, main)


def test_alert_goes_beyond_the_limit_as_far_as_the_tmpfs_does(tmp_path: Path, stage: Path) -> None:
    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        writer = await job(store, noise(6 * LIMIT))
        await eventually(lambda: ("block", True) in told)
        assert told[0] == ("alert", True)
        assert 3 * LIMIT <= store.staged_bytes <= 3 * LIMIT + SPLICE
        assert store.overflow()["alert"] > 10
        disk.free()
        assert await writer.check() == {}
        await writer.log.sync()
        await eventually(lambda: ("alert", False) in told)
        assert told.count(("alert", True)) == told.count(("alert", False))

    spare = 3 * LIMIT
    store_of: list[LogStore] = []

    async def remembering(store: LogStore, disk: Disk, told: list[Any]) -> None:
        store_of.append(store)
        await main(store, disk, told)

    serve(
        tmp_path,
        stage,
        remembering,
        strategy="alert",
        spare=lambda: spare - store_of[0].staged_bytes,
    )


def test_a_job_may_have_what_the_configuration_may(tmp_path: Path, stage: Path) -> None:
    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        log = await store.open("job")
        for strategy in ("", *OVERFLOW_STRATEGIES):
            for on_full in ("", *ON_FULL):
                log.handle_overflow(strategy, on_full)
                policy = log.core.policy
                assert policy.strategy.name == (strategy or "sample")
                assert policy.drops == ((on_full or "drop") == "drop")

    serve(tmp_path, stage, main, strategy="sample", on_full="drop")


def test_one_job_waits_and_another_goes_on(tmp_path: Path, stage: Path) -> None:
    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        waiting = await job(store, noise(4 * LIMIT), "waiting", "compress", "block")
        await eventually(lambda: ("block", True) in told)
        before = waiting.log.size
        assert "slower than the jobs" in str(store.trouble("waiting"))
        dropping = await job(store, noise(4 * LIMIT), "dropping", "compress", "drop")
        await eventually(lambda: dropping.log.ended)
        assert store.trouble("dropping") is None
        assert waiting.log.size == before
        disk.free()
        assert await waiting.check() == {}
        assert store.trouble("waiting") is None
        assert set(await dropping.check()) == {GapKind.DROPPED}

    serve(tmp_path, stage, main)


def test_records_of_what_is_left_out_are_bounded_too(tmp_path: Path, stage: Path) -> None:
    """A job that says little, often, and whose every word is a record."""

    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        log = await store.open("job")
        await log.expect({OUT})
        with Pipe() as pipe:
            log.attach(OUT, pipe.read_end())
            said = 0
            while store.statistics().staged_chunks < 16:
                pipe.write(b"x")
                said += 1
                await eventually(lambda: log.size == said)  # noqa: B023 - awaited here
            for _ in range(200):
                pipe.write(b"y")
                said += 1
                await asyncio.sleep(0)
            pipe.hang_up()
            await log.wait_ended()
        assert log.size == said
        gaps = [item for item in await collect(log) if isinstance(item, Gap)]
        assert sum(gap.bytes or 0 for gap in gaps) == 200
        assert store.statistics().staged_chunks < 30
        disk.free()

    serve(tmp_path, stage, main, on_full="drop", chunks=16)


def test_a_removed_log_takes_no_room(tmp_path: Path, stage: Path) -> None:
    """Packed, left out, and as it came."""

    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        for name, strategy in (("packed", "compress"), ("other", "spill"), ("less", "sample")):
            log = await store.open(name)
            log.handle_overflow(strategy, "drop")
            await log.expect({OUT, ERR})
            with Pipe() as pipe:
                log.attach(OUT, pipe.read_end())
                await asyncio.to_thread(pipe.write, lines(LIMIT))
                pipe.hang_up()
                await eventually(lambda: OUT in log.ended_streams)  # noqa: B023 - awaited here
        disk.free()
        for name in ("packed", "other", "less"):
            await store.remove(name)
        assert (store.staged_bytes, store.statistics().staged_chunks) == (0, 0)
        assert names(tmp_path / "spill") == []

    serve(tmp_path, stage, main)


def test_what_a_dead_machine_left_in_the_spill_directory_is_removed(
    tmp_path: Path, stage: Path
) -> None:
    (tmp_path / "spill/gone").mkdir(parents=True)
    (tmp_path / "spill/gone/out.z").touch()
    (stage / "there").mkdir()
    (tmp_path / "spill/there").mkdir()

    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        assert [path.name for path in (tmp_path / "spill").iterdir()] == ["there"]

    serve(tmp_path, stage, main)


class Killed:
    """What a server has left that was killed while blocks were spilled, and what its job said."""

    def __init__(self, tmp_path: Path, stage: Path) -> None:
        self.data = noise(4 * LIMIT)
        self.spill = tmp_path / "spill"
        self.logs, self.stage = tmp_path / "left", stage
        self._aside = tmp_path / "aside"
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:

            async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
                writer = await job(store, self.data, "job", "spill")
                await eventually(lambda: writer.log.ended)
                await eventually(lambda: size_of(Path(name)) <= LIMIT + BEYOND)
                with writer.log.core._packing:  # a kill is one moment: nothing is moved meanwhile
                    for source, target in (
                        (tmp_path / "logs", self.logs),
                        (Path(name) / "job", stage / "job"),
                        (self.spill, self._aside),
                    ):
                        command = ("cp", "-a", "--sparse=always", str(source), str(target))
                        await asyncio.to_thread(subprocess.run, command, check=True)

            serve(tmp_path, Path(name), main)
        self.spill.rmdir()

    def put_back(self) -> int:
        """What was spilled; how many bytes of output that is."""
        self._aside.rename(self.spill)
        frames = Frames(self.spill / "job/out.z")
        return sum(len(frames.read(block) or b"") for block in frames.blocks())

    def fill_holes(self) -> None:
        """As the kernel does that cannot split a large page: there are zeros, and no hole."""
        raw = self.stage / "job/out"
        blocks = Frames(self.spill / "job/out.z").blocks()
        with raw.open("r+b") as file:
            for block in blocks:
                os.pwrite(file.fileno(), bytes(BLOCK_BYTES), block * BLOCK_BYTES)

    def check(self, *, spill: Path | None, lost: int) -> None:
        """By a server that is configured to spill there: all is as it was said, but for gaps of
        so many bytes. It is asked twice, before and after it has begun anew."""

        async def look(store: LogStore) -> None:
            log = await store.open("job")
            position = missing = 0
            for item in await collect(log):
                assert item.offset == position
                if isinstance(item, Chunk):
                    assert item.data == self.data[position : item.offset_end]
                else:
                    assert (item.kind, item.stream) == (GapKind.LOST, OUT)
                    missing += item.bytes or 0
                position = item.offset_end
            assert (position, missing) == (len(self.data), lost)

        async def main() -> None:
            for _ in range(2):
                async with running(self.logs, stage=self.stage, spill=spill) as store:
                    await store.settle()
                    assert names(self.stage) == [".lock"]
                    await look(store)

        run(main)


@pytest.mark.parametrize("other", [True, False])
def test_what_was_spilled_is_found_though_another_directory_is_configured(
    tmp_path: Path, stage: Path, caplog: pytest.LogCaptureFixture, *, other: bool
) -> None:
    killed = Killed(tmp_path, stage)
    assert killed.put_back() > 2 * LIMIT
    killed.check(spill=tmp_path / "other" if other else None, lost=0)
    assert names(killed.spill) == []
    assert caplog.records == []


@pytest.mark.parametrize(("other", "large_pages"), [(True, False), (False, False), (True, True)])
def test_what_was_spilled_and_is_gone_is_a_gap(
    tmp_path: Path,
    stage: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    other: bool,
    large_pages: bool,
) -> None:
    killed = Killed(tmp_path, stage)
    lost = killed.put_back()
    if large_pages:
        killed.fill_holes()
    killed.spill.rename(tmp_path / "unmounted")
    killed.check(spill=tmp_path / "other" if other else None, lost=lost)
    [told] = caplog.records
    assert told.levelname == "ERROR"
    assert f"{lost} bytes of the output of job job are lost" in told.message
    assert f"they are not in {killed.spill / 'job'}" in told.message
    assert "stop joblet.service, which stores all that waits there, before" in told.message


def test_a_log_that_is_removed_takes_along_what_an_earlier_server_has_spilled(
    tmp_path: Path, stage: Path
) -> None:
    killed = Killed(tmp_path, stage)
    killed.put_back()

    async def main() -> None:
        async with running(killed.logs, stage=stage, spill=tmp_path / "other") as store:
            await store.remove("job")
            assert names(killed.spill) == []
            assert names(stage) == [".lock"]

    run(main)


def test_a_policy_that_changes_while_blocks_are_packed(tmp_path: Path, stage: Path) -> None:
    """One packer fails at a block, and will try it again: what another one has packed behind it is
    a hole by then."""
    data = lines(3 * LIMIT)

    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        writer = await job(store, data, "job", "spill")
        core = writer.log.core
        # as the packer of the policy that the job has from then on
        other = threading.Thread(target=core.pack, args=(Shelf.STAGE, 2))
        real = core.step

        def step(name: str) -> None:
            core.step = real
            if name == "overflow:body":
                other.start()
                other.join(0.2)  # it may have to wait for us
                raise OSError(errno.EIO, "the disk refuses")
            core.step = step

        core.step = step
        await eventually(lambda: core.step == real and other.ident is not None)
        await asyncio.to_thread(other.join)
        await eventually(lambda: writer.log.ended)
        assert await writer.check() == {}
        disk.free()
        await writer.log.sync()
        assert await writer.check() == {}
        assert store.staged_bytes == 0

    serve(tmp_path, stage, main)


@pytest.mark.parametrize("seed", range(8))
def test_many_jobs_of_every_kind(tmp_path: Path, stage: Path, seed: int) -> None:
    """Strategies side by side on a disk that goes by fits and starts."""
    chance = random.Random(seed)

    async def main(store: LogStore, disk: Disk, told: list[Any]) -> None:
        jobs: list[tuple[Job, str, str]] = []
        for number in range(6):
            strategy = chance.choice(("compress", "spill", "sample", "alert"))
            on_full = chance.choice(("block", "drop"))
            content = chance.choice((lines, noise))
            data = content(chance.randrange(LIMIT * 2))
            jobs.append(
                (await job(store, data, f"j{number}", strategy, on_full), strategy, on_full)
            )
        most = 0
        while not all(each.log.ended for each, _, _ in jobs):
            disk.go(chance.randrange(1, 4))
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.005)))
            most = max(most, size_of(stage))
        disk.free()
        for each, strategy, on_full in jobs:
            may = {GapKind.SAMPLED} if strategy == "sample" else set()
            may |= {GapKind.DROPPED} if on_full == "drop" else set()
            assert set(await each.check()) <= may
            await each.log.sync()
            assert set(await each.check()) <= may
        assert (store.staged_bytes, store.statistics().staged_chunks) == (0, 0)
        assert most <= LIMIT + BEYOND

    serve(tmp_path, stage, main, spare=lambda: 0)
