# SPDX-License-Identifier: MIT
"""A log store on a filesystem that is full. A program of its own, in a mount namespace of its own.

    unshare --mount python3 full_disk.py DIRECTORY output|records|store|seal

output: more output than the filesystem holds. records: room for output, none for records.
store: full from the beginning. seal: no room for a compressed segment beside the plain one. Each
ends when everything is kept, in order; exit status 0.
"""

import asyncio
import fcntl
import logging
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from joblet.errors import JobletError, ResourceExhausted
from joblet.server.logs import OUT, Batching, Bounds, Chunk, JobLog, Keeping, LogStore, Settings


def mount(directory: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(directory)], check=True)


def fill(directory: Path, *, leave: int = 0) -> Path:
    """Take all room but `leave` bytes."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(file.tell() - leave)
    return path


class Watched:
    """A store and what it tells of trouble."""

    def __init__(self, directory: Path) -> None:
        self.told: list[tuple[str, JobletError | None]] = []
        self.changed = asyncio.Event()
        self.store = LogStore(
            directory / "logs",
            directory.with_name(f"{directory.name}.stage"),
            clock_us=lambda: time.time_ns() // 1000,
            settings=Settings(retry_first_s=0.001, retry_last_s=0.01),
            bounds=Bounds(limit_bytes=500_000),
            batching=Batching(flush_s=0.001, retry_first_s=0.001, retry_last_s=0.01),
            on_trouble=self._tell,
        )

    def _tell(self, job_id: str, error: JobletError | None) -> None:
        self.told.append((job_id, error))
        self.changed.set()

    async def trouble(self, *, count: int) -> None:
        while len(self.told) < count:
            self.changed.clear()
            await self.changed.wait()

    async def over(self, job_id: str) -> None:
        """Return once a job was in trouble, and is no longer."""
        while (job_id, None) not in self.told:
            self.changed.clear()
            await self.changed.wait()


async def content(log: JobLog) -> bytes:
    return b"".join([item.data async for item in log.follow() if isinstance(item, Chunk)])


def expect(condition: object, what: str) -> None:
    if not condition:
        raise SystemExit(what)


async def output(directory: Path) -> None:
    data = b"".join(b"%07d\n" % number for number in range(400_000))
    watched = Watched(directory)
    await watched.store.start()
    log, other = await watched.store.open("big"), await watched.store.open("small")
    source, sink = os.pipe()
    small_source, small_sink = os.pipe()
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 1 << 20)
    await log.expect({OUT})
    await other.expect({OUT})

    def write() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view) :]
        os.close(sink)

    writer = threading.Thread(target=write)
    writer.start()
    log.attach(OUT, source)
    await watched.trouble(count=1)
    job, error = watched.told[0]
    expect(job == "big" and isinstance(error, ResourceExhausted), f"told {error!r}")
    expect(str(error).endswith("No space left on device"), str(error))
    expect(log.trouble is error, "the log does not show its trouble")
    expect(not log.ended, "it ended")
    # Nothing was taken that was not kept; what was kept can be read.
    kept = b"".join([i.data async for i in log.follow(follow=False) if isinstance(i, Chunk)])
    expect(0 < len(kept) < len(data) and data.startswith(kept), "what was kept is not a prefix")
    # The job that waits can be asked to finish meanwhile, and another can begin.
    other.attach(OUT, small_source)
    os.write(small_sink, b"hello")
    finishing = asyncio.ensure_future(other.finish(OUT))
    mount(directory, "-o", "remount,size=64m")
    await log.wait_ended()
    await finishing
    await watched.over("big")  # the disk may have refused the other one, too
    expect(log.trouble is None, "its trouble is not over")
    expect(await content(log) == data, "bytes differ")
    expect(await content(other) == b"hello", "the other's bytes differ")
    writer.join()
    os.close(small_sink)
    await log.sync()
    await watched.store.stop()


async def records(directory: Path) -> None:
    watched = Watched(directory)
    await watched.store.start()
    log = await watched.store.open("job")
    source, sink = os.pipe()
    await log.expect({OUT})
    log.attach(OUT, source)
    os.write(sink, b"0")
    follower = log.follow()
    await follower.read()
    filler = fill(directory)  # the first page of each file is there, and no other will be
    sent = 1

    async def read() -> object:
        return await follower.read()

    reading: asyncio.Task[object] | None = None
    while not watched.told:
        os.write(sink, b"%d" % (sent % 10))
        sent += 1
        reading = asyncio.create_task(read())
        changed = asyncio.create_task(watched.trouble(count=1))
        await asyncio.wait([reading, changed], return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
    expect(isinstance(watched.told[0][1], ResourceExhausted), f"told {watched.told[0][1]!r}")
    os.write(sink, b"more")
    os.close(sink)
    filler.unlink()
    await log.wait_ended()
    expected = b"".join(b"%d" % (number % 10) for number in range(sent)) + b"more"
    expect(await content(log) == expected, "bytes differ")
    if reading is not None:
        await reading
    await log.sync()
    expect(not (directory.parent / f"{directory.name}.stage/job").exists(), "something is staged")
    await watched.store.stop()


async def store(directory: Path) -> None:
    filler = fill(directory)
    watched = Watched(directory)
    await watched.store.start()
    try:
        await watched.store.open("job")
    except ResourceExhausted as error:
        expect(str(error).startswith("cannot open the log of job job"), str(error))
    else:
        raise SystemExit("it opened a log on a full filesystem")
    filler.unlink()
    log = await watched.store.open("job")
    await log.expect(())
    expect(log.ended and log.size == 0, "the log is not a new one")
    await watched.store.stop()


async def seal(directory: Path) -> None:
    logging.getLogger("joblet").addHandler(logging.NullHandler())  # it says that the disk is full
    data = random.Random(1).randbytes(600_000)  # which does not get smaller
    watched = Watched(directory)
    await watched.store.start()
    log = await watched.store.open("job")
    await log.expect({OUT})
    source, sink = os.pipe()
    log.attach(OUT, source)
    writer = threading.Thread(target=write_all, args=(sink, data))
    writer.start()
    await log.wait_ended()
    await log.sync()
    writer.join()
    log_directory = directory / "logs" / "job"
    before = sorted(log_directory.iterdir())

    async def expire(_: str) -> None:
        raise SystemExit("a log was removed")

    keeper = watched.store.keeper(Keeping(seal_after_us=0), expire=expire)
    await keeper.sweep()
    await keeper.seal()
    expect(sorted(log_directory.iterdir()) == before, "something is left of what did not fit")
    expect(await content(log) == data, "bytes differ")
    mount(directory, "-o", "remount,size=64m")
    await keeper.sweep()
    await keeper.seal()
    names = [path.suffix for path in log_directory.iterdir() if path.name.startswith("out.")]
    expect(sorted(names) == [".sums", ".zst"], f"it is not compressed: {names}")
    expect(await content(log) == data, "bytes differ")
    await watched.store.stop()


def write_all(sink: int, data: bytes) -> None:
    """To the end, which is the pipe's, too."""
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]
    os.close(sink)


def main() -> None:
    directory = Path(sys.argv[1])
    mount(directory, "-o", "size=1m")
    cases = {"output": output, "records": records, "store": store, "seal": seal}
    asyncio.run(cases[sys.argv[2]](directory))


if __name__ == "__main__":
    main()
