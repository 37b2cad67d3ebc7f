# SPDX-License-Identifier: MIT
"""A job, its PID 1, and servers that are killed one after the other. A program of its own.

    python3 kill_driver.py DIRECTORY PLAN        PLAN as JSON, the result as JSON on stdout

The process that runs this stands for PID 1: it holds both FIFOs' read ends and reads nothing. It
forks a producer (the job) and servers, each of which runs a LogStore on copies of the read
ends. It has one thread and no event loop of its own, so that it may fork.

Plan:
    blocks        how many numbered blocks the job writes to each stream; null: until all kills
                  are done
    kills         one entry a server: [step, n] kills it at its n-th passing of the step,
                  a number kills it that many seconds after it began to read
    end           "eof": the job closes its pipes; "finish": a stranger keeps them open, and the
                  servers finish the streams once the job is gone
    rest          how many bytes of each stream PID 1 keeps in a file before the last servers run,
                  which import them; then the streams are finished
    settings      of the readers; bounds, batching, rotation: of the stage and the store
    strategy, on_full    what is done when the stage is nearly full
    slow          seconds that the disk takes for a block, while servers are killed
"""

import asyncio
import collections
import fcntl
import hashlib
import itertools
import json
import os
import signal
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from joblet.server.logs import ERR, OUT, Batching, Bounds, Chunk, GapKind, LogStore, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

JOB = "job"
NAMES = {OUT: "out", ERR: "err"}


def block(stream: int, number: int) -> bytes:
    """Numbered, of sizes that fit no page."""
    line = b"%d:%09d\n" % (stream, number)
    return line * (1 + number * 37 % 300)


def produce(sinks: dict[int, int], blocks: int | None, report: int) -> None:
    """The job: writes to both streams, then says what it has written."""
    digests = {stream: hashlib.sha256() for stream in sinks}
    lengths = dict.fromkeys(sinks, 0)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    number = 0
    while number != blocks and not stopped:
        for stream, sink in sinks.items():
            data = block(stream, number)
            view = memoryview(data)
            while view:
                view = view[os.write(sink, view) :]
            digests[stream].update(data)
            lengths[stream] += len(data)
        number += 1
    result = {NAMES[s]: [lengths[s], digests[s].hexdigest()] for s in sinks}
    os.write(report, json.dumps(result).encode())


class Steps:
    """The store's step hook: notes every step, and dies at the one that was asked for."""

    def __init__(self, note: int, kill: object, slow: float) -> None:
        self._note = note
        self._slow = slow
        self._name: str = kill[0] if isinstance(kill, list) else ""
        self._left: int = kill[1] if isinstance(kill, list) else 0

    def __call__(self, name: str) -> None:
        os.write(self._note, f"{name}\n".encode())
        if self._slow and name == "store:copied":
            time.sleep(self._slow)
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


async def serve(
    directory: Path,
    sources: dict[int, int],
    plan: dict[str, Any],
    step: "Callable[[str], None]",
    gone: int,
) -> None:
    """A server: reads until the log has ended, stores it, stops."""
    store = LogStore(
        directory / "logs",
        directory / "stage",
        clock_us=lambda: time.time_ns() // 1000,
        settings=Settings(**plan.get("settings", {})),
        bounds=Bounds(**plan.get("bounds", {})),
        batching=Batching(**plan.get("batching", {})),
        rotation_bytes=plan.get("rotation", 64 << 20),
        sync_s=plan.get("sync", 1.0),
        strategy=plan.get("strategy", "compress"),
        on_full=plan.get("on_full", "block"),
        spill=directory / plan.get("spill", "spill"),
        spare=lambda: 0,
        disk_is_slow=lambda: True,
        step=step,
    )
    await store.start()
    log = await store.open(JOB)
    await log.expect(sources)
    if plan.get("rest") and (directory / "exit").exists():
        for stream in sources:
            rest = directory / f"{NAMES[stream]}.rest"
            await log.import_rest(stream, rest, rest.stat().st_size)
            await log.finish(stream)
    else:
        for stream, fd in sources.items():
            log.attach(stream, os.dup(fd))
        if plan.get("end") == "finish":
            # Readable once the job is gone and no server can miss it.
            loop = asyncio.get_running_loop()
            ready = asyncio.Event()
            loop.add_reader(gone, ready.set)
            await ready.wait()
            loop.remove_reader(gone)
            await asyncio.gather(*(log.finish(stream) for stream in sources))
        await log.wait_ended()
    await log.sync()
    await store.stop()


def run_server(
    directory: Path,
    sources: dict[int, int],
    plan: dict[str, Any],
    kill: object,
    gone: int,
) -> bool:
    """One server's life; whether it came to its end by itself."""
    note = os.open(directory / "steps", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    begun, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        steps = Steps(note, kill, plan.get("slow", 0) if kill is not None else 0)
        told: list[str] = []

        def step(name: str) -> None:
            if not told and name.startswith("reader:"):
                told.append(name)
                os.close(begin)
            steps(name)

        try:
            asyncio.run(serve(directory, sources, plan, step, gone))
            os._exit(0)
        except BaseException as exc:
            os.write(2, f"server: {exc!r}\n".encode())
            os._exit(1)
    os.close(note)
    os.close(begin)
    if isinstance(kill, (int, float)):
        os.read(begun, 1)
        time.sleep(kill)
        os.kill(pid, signal.SIGKILL)
    os.close(begun)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status) != 0:
        os.killpg(0, signal.SIGKILL)  # the job, too: it would wait for a server for ever
    return True


def keep_rest(directory: Path, sources: dict[int, int]) -> None:
    """What PID 1 does without a server: splice what is there into files, then say so."""
    for stream, fd in sources.items():
        left = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")
        target = os.open(directory / f"{NAMES[stream]}.rest", os.O_WRONLY | os.O_CREAT, 0o600)
        while left:
            left -= os.splice(fd, target, left)
        os.close(target)
    (directory / "exit").touch()


class Said:
    """What the job says on a stream, from its beginning on."""

    def __init__(self, stream: int) -> None:
        self._blocks = (block(stream, number) for number in itertools.count())
        self._left = b""

    def take(self, count: int) -> bytes:
        parts = []
        while count:
            self._left = self._left or next(self._blocks)
            parts.append(self._left[:count])
            self._left = self._left[count:]
            count -= len(parts[-1])
        return b"".join(parts)


async def check(directory: Path) -> dict[str, Any]:
    """What the log holds at the end, read as a follower does; what was left out, filled in."""
    store = LogStore(
        directory / "logs",
        directory / "stage",
        clock_us=lambda: time.time_ns() // 1000,
        spill=directory / "spill",
    )
    await store.start()
    log = await store.open(JOB)
    digests = {stream: hashlib.sha256() for stream in NAMES}
    lengths = dict.fromkeys(NAMES, 0)
    said = {stream: Said(stream) for stream in NAMES}
    left_out: collections.Counter[str] = collections.Counter()
    offset, gaps = 0, 0
    async for item in log.follow(follow=False):
        if item.offset != offset:
            raise SystemExit(f"offset {item.offset} follows {offset}")
        offset = item.offset_end
        if isinstance(item, Chunk):
            if said[item.stream].take(len(item.data)) != item.data:
                raise SystemExit(f"the bytes from {item.offset} on differ")
            data = item.data
        elif item.kind in (GapKind.SAMPLED, GapKind.DROPPED):
            data = said[item.stream].take(item.bytes or 0)
            left_out[item.kind] += len(data)
        else:
            gaps += 1
            continue
        digests[item.stream].update(data)
        lengths[item.stream] += len(data)
    ended = log.ended
    await store.stop()
    return {
        "streams": {NAMES[s]: [lengths[s], digests[s].hexdigest()] for s in NAMES},
        "gaps": gaps,
        "left_out": left_out,
        "ended": ended,
    }


def main() -> None:
    directory, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    os.setpgid(0, 0)
    sources, sinks = {}, {}
    for stream, name in NAMES.items():
        path = directory / name
        os.mkfifo(path, 0o600)
        sources[stream] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        sinks[stream] = os.open(path, os.O_WRONLY)
        fcntl.fcntl(sinks[stream], fcntl.F_SETPIPE_SZ, plan.get("pipe", 1 << 20))
    report_in, report_out = os.pipe()
    gone, gone_out = os.pipe()
    producer = os.fork()
    if producer == 0:
        os.close(gone)
        produce(sinks, plan["blocks"], report_out)
        os._exit(0)
    os.close(report_out)
    os.close(gone_out)
    if plan.get("end") != "finish":
        for sink in sinks.values():
            os.close(sink)

    survived = []
    rest = plan.get("rest", 0)
    for number, kill in enumerate(plan["kills"]):
        if rest and number == rest:
            os.waitpid(producer, 0)
            keep_rest(directory, sources)
        if spills := plan.get("spills"):
            plan["spill"] = spills[number % len(spills)]
        survived.append(run_server(directory, sources, plan, kill, gone))
    if plan["blocks"] is None:
        os.kill(producer, signal.SIGTERM)
    if rest and rest >= len(plan["kills"]):
        os.waitpid(producer, 0)
        keep_rest(directory, sources)
    run_server(directory, sources, plan, None, gone)
    if not rest:
        os.waitpid(producer, 0)
    sent = json.loads(os.read(report_in, 1 << 16))
    steps = (directory / "steps").read_text().split()
    result = asyncio.run(check(directory))
    result.update(
        sent=sent,
        survived=survived,
        steps={name: steps.count(name) for name in sorted(set(steps))},
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
