# SPDX-License-Identifier: MIT
"""How fast output goes from pipes into the log store, beside `cat > file` in the same run.

    python3 tests/bench/logs_throughput.py [--directory D] [--pipes 1,200] [--mib 2048] [--repeat 3]

Producers write lines of 100 bytes, in blocks of 64 KiB and with one write(2) per line. Every byte
is accounted for: the logs' sizes must add up, and one log is compared with what was sent.
`discard` reads the pipes and keeps nothing: what the producers can do at most.
"""

import argparse
import asyncio
import fcntl
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from joblet.server.logs import OUT, Chunk, LogStore, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

LINE = b"%099d\n" % 0
PIPE_BYTES = 1 << 20

PRODUCER = """
import os, sys
total, block = int(sys.argv[1]), int(sys.argv[2])
data = (b"%099d\\n" % 0) * (block // 100)
sys.stdin.read(1)
while total > 0:
    total -= os.write(1, data[:total] if total < len(data) else data)
"""


class Producers:
    """Processes that wait for `go` and then fill their pipes."""

    def __init__(self, count: int, each: int, block: int) -> None:
        self.read_ends: list[int] = []
        self._gate, self._go = os.pipe()
        self._processes = []
        for _ in range(count):
            source, sink = os.pipe()
            fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            command = [sys.executable, "-IS", "-c", PRODUCER, str(each), str(block)]
            process = subprocess.Popen(command, stdin=self._gate, stdout=sink)
            self._processes.append(process)
            os.close(sink)
            self.read_ends.append(source)
        os.close(self._gate)

    def go(self) -> None:
        os.close(self._go)

    def wait(self) -> None:
        for process in self._processes:
            if process.wait() != 0:
                raise SystemExit("a producer failed")


def into_store(directory: Path, producers: Producers, each: int, settings: Settings) -> float:
    async def main() -> float:
        stage = Path(tempfile.mkdtemp(dir="/dev/shm"))
        store = LogStore(
            directory / "logs",
            stage,
            clock_us=lambda: time.time_ns() // 1000,
            settings=settings,
        )
        await store.start()
        logs = []
        for number, fd in enumerate(producers.read_ends):
            log = await store.open(f"job-{number}")
            await log.expect({OUT})
            log.attach(OUT, fd)
            logs.append(log)
        begin = time.monotonic()
        producers.go()
        for log in logs:
            await log.wait_ended()
        read = time.monotonic() - begin
        for log in logs:
            await asyncio.to_thread(log.core.store)
        took = time.monotonic() - begin
        if any(log.size != each for log in logs):
            raise SystemExit("bytes are missing")
        if each % len(LINE) == 0:
            async for chunk in logs[0].follow():
                at = chunk.offset % len(LINE)
                length = chunk.offset_end - chunk.offset
                sent = (LINE * (length // len(LINE) + 2))[at : at + length]
                if not isinstance(chunk, Chunk) or chunk.data != sent:
                    raise SystemExit("bytes differ")
        chunks = sum(reader.chunks for reader in store.statistics().readers)
        size = len(logs) * each
        print(
            f"      chunks of {size // chunks} bytes, read in {read / took:.2f} of the time",
            file=sys.stderr,
        )
        await store.stop()
        shutil.rmtree(stage)
        return took

    return asyncio.run(main())


def into_cat(directory: Path, producers: Producers, each: int) -> float:
    cats = []
    for number, fd in enumerate(producers.read_ends):
        with (directory / f"cat-{number}").open("wb") as target:
            cats.append(subprocess.Popen(["cat"], stdin=fd, stdout=target))
        os.close(fd)
    begin = time.monotonic()
    producers.go()
    for cat in cats:
        cat.wait()
    took = time.monotonic() - begin
    if any((directory / f"cat-{n}").stat().st_size != each for n in range(len(cats))):
        raise SystemExit("cat lost bytes")
    return took


def discard(_: Path, producers: Producers, each: int) -> float:
    cats = []
    for fd in producers.read_ends:
        null = os.open("/dev/null", os.O_WRONLY)
        cats.append(subprocess.Popen(["cat"], stdin=fd, stdout=null))
        os.close(fd)
        os.close(null)
    begin = time.monotonic()
    producers.go()
    for cat in cats:
        cat.wait()
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--pipes", default="1,200")
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--fair-kib", type=int, default=Settings().fair_splice_bytes >> 10)
    parser.add_argument("--pace-ms", type=float, default=Settings().pace_s * 1000)
    parser.add_argument("--blocks", default="65500,100")
    options = parser.parse_args()
    settings = Settings(fair_splice_bytes=options.fair_kib << 10, pace_s=options.pace_ms / 1000)

    ways: dict[str, Callable[[Path, Producers, int], float]] = {
        "store": lambda path, producers, each: into_store(path, producers, each, settings),
        "cat > file": into_cat,
        "discard": discard,
    }
    for block in map(int, options.blocks.split(",")):
        for count in map(int, options.pipes.split(",")):
            total = options.mib << 20
            if block < 4096:
                total //= 8  # a system call per line is slow whoever reads
            each = total // count // 100 * 100
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.repeat):
                for name, way in ways.items():
                    path = Path(tempfile.mkdtemp(dir=options.directory))
                    try:
                        producers = Producers(count, each, block)
                        took = way(path, producers, each)
                        producers.wait()
                    finally:
                        shutil.rmtree(path)
                    rates[name].append(each * count / took / 1e9)
            line = ", ".join(
                f"{name} {statistics.median(values):.3f}" for name, values in rates.items()
            )
            print(f"{count:4} pipes, writes of {block:5} bytes, GB/s: {line}", flush=True)


if __name__ == "__main__":
    main()
