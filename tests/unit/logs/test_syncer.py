# SPDX-License-Identifier: MIT
"""What is stored is durable soon, and nobody waits for that."""

import asyncio
import errno
import functools
import gc
import os
import threading
import weakref
from pathlib import Path

import pytest

from joblet.server.logs import OUT, JobLog, syncer, syscalls
from tests.unit.logs.support import collect, eventually, run, running, say, stream_of


class Steps:
    """Tells of the store's steps."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, name: str) -> None:
        self.seen.append(name)

    async def after(self, name: str, count: int = 1) -> None:
        """Return once the step has been passed `count` times."""
        await eventually(lambda: self.seen.count(name) >= count)


def _say(log: JobLog, data: bytes) -> None:
    with log.core.pinned():
        say(log.core, OUT, data)


def _stored(log: JobLog) -> bool:
    return log.core.stored_records == log.core.state.records


def test_a_log_is_durable_after_the_interval_and_clean(tmp_path: Path) -> None:
    async def main() -> None:
        steps = Steps()
        async with running(tmp_path, sync_s=0.005, step=steps) as store:
            log = await store.open("job")
            await log.expect({OUT})
            for number in range(1, 4):
                _say(log, b"said")
                await eventually(
                    lambda: (
                        not (
                            log.core.stored_records < log.core.state.records or log.core.wants_sync
                        )
                    )
                )
                await eventually(lambda: log.core not in store._dirty)
                assert stream_of(await collect(log, follow=False), OUT) == b"said" * number
            # quiet, it is not synced again and again
            seen = steps.seen.count("sync:few")
            await asyncio.sleep(0.05)
            assert steps.seen.count("sync:few") == seen

    run(main)


def test_many_logs_are_synced_by_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = syscalls.syncfs

    def syncfs(fd: int) -> None:
        calls.append(fd)
        real(fd)

    monkeypatch.setattr(syncer, "syncfs", syncfs)

    async def main() -> None:
        steps = Steps()
        async with running(tmp_path, sync_s=0.3, step=steps) as store:
            logs = [await store.open(f"job-{number}") for number in range(60)]
            for log in logs:
                _say(log, b"said")
                await asyncio.to_thread(log.core.store)
            await steps.after("sync:all")
            await eventually(lambda: not any(log.core.wants_sync for log in logs))
        assert calls

    run(main)


def test_a_log_that_is_removed_while_the_disk_refuses_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is synced as a whole, and refused as a whole, too."""
    go_on, syncing = threading.Event(), threading.Event()

    def syncfs(fd: int) -> None:
        syncing.set()
        go_on.wait(30)
        raise OSError(errno.EIO, "the disk refuses")

    monkeypatch.setattr(syncer, "FEW_FILES", 0)
    monkeypatch.setattr(syncer, "syncfs", syncfs)

    async def main() -> None:
        async with running(tmp_path, sync_s=0.005) as store:
            log: JobLog | None = await store.open("job")
            assert log is not None
            core = weakref.ref(log.core)
            _say(log, b"said")
            await asyncio.to_thread(log.core.store)
            assert await asyncio.to_thread(syncing.wait, 30)
            log = None
            await store.remove("job")
            go_on.set()

            def gone() -> bool:
                gc.collect()
                return core() is None

            await eventually(gone)

    run(main)


def test_nobody_waits_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, slow = threading.Event(), threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        if threading.current_thread().name == "log-syncer":
            slow.set()
            go_on.wait(30)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    async def main() -> None:
        async with running(tmp_path, sync_s=0.005) as store:
            log, other = await store.open("job"), await store.open("other")
            _say(log, b"said")
            assert await asyncio.to_thread(slow.wait, 30)
            for each in (log, other):
                follower = each.follow(each.size)
                _say(each, b"more")
                chunk = await follower.read()
                assert chunk is not None
                await eventually(functools.partial(_stored, each))
            go_on.set()

    run(main)


def test_a_disk_that_refuses_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    real = os.fdatasync
    refused: list[int] = []

    def fdatasync(fd: int) -> None:
        if threading.current_thread().name == "log-syncer" and len(refused) < 5:
            refused.append(fd)
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    async def main() -> None:
        steps = Steps()
        async with running(tmp_path, sync_s=0.005, step=steps) as store:
            log = await store.open("job")
            _say(log, b"said")
            await steps.after("sync:few")
            await eventually(lambda: log.core not in store._dirty)

    run(main)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "may be lost" in caplog.records[0].getMessage()
