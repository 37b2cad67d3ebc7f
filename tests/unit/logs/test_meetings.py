# SPDX-License-Identifier: MIT
"""Two that meet at the wrong moment: a gap and what overflow left out, a stop and what is half
read, a seal and the writer, an opening and a removal."""

import asyncio
import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from joblet.errors import Internal, NotFound, ResourceExhausted
from joblet.server.logs import OUT, Batching, Bounds, Gap, GapKind, Keeping, recovery
from joblet.server.logs import core as core_module
from tests.unit.logs.support import (
    Pipe,
    collect,
    opened,
    read_all,
    run,
    running,
    say,
    stage_of,
    stream_of,
    until,
)

# Nothing is stored by itself.
LATER: dict[str, Any] = {
    "batching": Batching(flush_s=600),
    "bounds": Bounds(batch_bytes=1 << 30, batch_chunks=1 << 30),
}


def test_a_loss_behind_what_overflow_left_out(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as core:
        core.expect(frozenset({OUT}))
        os.pwrite(core.staged.stream(OUT), b"x" * 10_000, 0)
        core.written[OUT] = 10_000
        core.discard(OUT, GapKind.DROPPED)
        thread = threading.Thread(target=core.lose_tail, args=({OUT},), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        left_out, lost = read_all(core)
        assert (left_out.kind, left_out.bytes) == (GapKind.DROPPED, 10_000)  # type: ignore[union-attr]
        assert lost.offset_end == 1 << 40


def test_a_stop_while_the_stage_refuses_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = True
    real = recovery.append

    def append(fd: int, state: Any, record: Any) -> None:
        if refusing and record.kind.name == "DATA":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, state, record)

    monkeypatch.setattr(core_module, "append", append)

    async def main() -> None:
        nonlocal refusing
        with Pipe() as out:
            with contextlib.suppress(ResourceExhausted):
                async with running(tmp_path, boot_id="one") as store:
                    log = await store.open("job")
                    await log.expect({OUT})
                    log.attach(OUT, out.read_end())
                    out.write(b"these bytes left the pipe\n")
                    while log.trouble is None:  # noqa: ASYNC110 - nothing tells of it
                        await asyncio.sleep(0.001)
            refusing = False
            async with running(tmp_path, boot_id="one") as store:
                log = await store.open("job")
                text = stream_of(await collect(log, follow=False), OUT)
                assert text == b"these bytes left the pipe\n"

    run(main)


def test_a_stop_before_all_of_the_stage_was_looked_at_is_not_clean(tmp_path: Path) -> None:
    async def main() -> None:
        with opened(tmp_path / "job", kept=False) as core:
            say(core, OUT, b"staged")
        stage = tmp_path.with_name(f"{tmp_path.name}.stage")
        stage.mkdir()
        stage_of(tmp_path / "job").rename(stage / "job")
        async with running(tmp_path, stage=stage, boot_id="one"):
            pass
        assert (stage / "job").exists()
        assert not (tmp_path / ".clean").exists()
        async with running(tmp_path, stage=stage, boot_id="one") as store:
            await store.settle()
        assert (tmp_path / ".clean").exists()

    run(main)


def test_an_ended_log_is_not_compressed_before_its_end_is_stored(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, **LATER) as store:
            log = await store.open("job")
            await log.expect({OUT})
            keeper = store.keeper(Keeping(), expire=_never)
            with log.core.pinned():
                say(log.core, OUT, os.urandom(300_000))
                log.core.store()
                say(log.core, OUT, b"the last words")
                log.core.end(OUT)
                keeper._seal_core(log.core)
            assert not list((tmp_path / "job").glob("*.zst"))
            await log.sync()
            assert stream_of(await collect(log), OUT).endswith(b"the last words")

    run(main)


async def _never(job_id: str) -> None:
    raise AssertionError(job_id)


def test_a_log_whose_staged_bytes_are_gone_does_not_stop_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, **LATER) as store:
            first, second = await store.open("first"), await store.open("second")
            for log in (first, second):
                with log.core.pinned():
                    say(log.core, OUT, b"0123456789" * 20_000)
            with first.core.pinned():
                os.truncate(first.core.staged.stream(OUT), 0)
                await first.sync()
            await second.sync()
            assert store.staged_bytes == 0
            gaps = [item for item in await collect(first, follow=False) if isinstance(item, Gap)]
            assert {gap.kind for gap in gaps} == {GapKind.LOST}
            assert sum(gap.bytes or 0 for gap in gaps) == 200_000

    run(main)


def test_one_that_cannot_be_stored_at_a_stop_costs_the_others_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(Internal):  # noqa: PT012 - it is raised at the end
            async with running(tmp_path, **LATER) as store:
                for name in ("a", "b", "c"):
                    log = await store.open(name)
                    with log.core.pinned():
                        say(log.core, OUT, name.encode())
                log = await store.open("b")

                def refuse() -> bool:
                    raise OSError(errno.EIO, "Input/output error")

                log.core.store = refuse  # type: ignore[method-assign]
        async with running(tmp_path) as store:
            for name in ("a", "b", "c"):
                found = await collect(await store.open(name), follow=False)
                assert stream_of(found, OUT) == name.encode()

    run(main)


def test_a_log_that_is_removed_while_somebody_asks_for_it_stays_away(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as store:
            log = await store.open("job")
            await log.expect(())
            await store.remove("job")
            with pytest.raises(NotFound):
                await store.open("job", create=False)
            assert not (tmp_path / "job").exists()
            # who makes it need not care for who looked for it at the same time
            looking = asyncio.ensure_future(store.open("job", create=False))
            await asyncio.sleep(0)
            made = await store.open("job")
            with pytest.raises(NotFound):
                await looking
            assert made.size == 0

    run(main)


def test_a_stage_that_was_freed_meanwhile_gives_its_room_back_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, **LATER) as store:
            log = await store.open("job")
            with Pipe() as out:
                await log.expect({OUT})
                log.attach(OUT, out.read_end())
                out.write(b"0123456789")
                await until(log, 10)
                out.hang_up()
                await log.wait_ended()
                while log.attached:  # noqa: ASYNC110 - the thread closes it a moment later
                    await asyncio.sleep(0)
            core = log.core
            await store.remove("job")
            assert core.store() is False  # the writer's turn, too late
            assert store.staged_bytes == 0
            assert not (tmp_path / "job").exists()

    run(main)
