# SPDX-License-Identifier: MIT
"""The records: what is put is there, in order, once, and shared commits are few."""

import asyncio
import contextlib
import dataclasses
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from joblet.model import FINAL, Job, JobState
from joblet.server import records as module
from joblet.server import records_deletion as deletion
from joblet.server import records_thread
from joblet.server.records import Records
from tests.unit.records.jobs import jobs, make, numbered

S = JobState


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Records]:
    records = await Records.open(path)
    try:
        yield records
    finally:
        await records.close()


async def delete(records: Records, job_id: str) -> None:
    await records.begin_deletion(job_id)
    await records.forget([job_id])


def run(path: Path, test: Callable[[Records], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(path) as records:
            await test(records)

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "joblet.db"


def test_what_is_put_is_there(path: Path) -> None:
    job = numbered(1, name="a", state=S.RUNNING)
    later = dataclasses.replace(job, state=S.COMPLETED, ended_us=9)

    async def test(records: Records) -> None:
        await records.put(job)
        assert await records.get(job.id) == job
        await records.put(later)
        assert await records.get(job.id) == later
        assert await records.list() == [later]

    run(path, test)

    async def again(records: Records) -> None:
        assert await records.list() == [later]

    run(path, again)


@settings(max_examples=30, deadline=None)
@given(some=st.lists(jobs(), min_size=1, max_size=5, unique_by=lambda job: job.id))
def test_every_job_comes_back(some: list[Job], tmp_path_factory: pytest.TempPathFactory) -> None:
    async def test(records: Records) -> None:
        await asyncio.gather(*(records.put(job) for job in some))
        assert await records.list() == some
        for job in some:
            if job.id:
                assert await records.get(job.id) == job

    run(tmp_path_factory.mktemp("records") / "joblet.db", test)


def test_ids_and_prefixes(path: Path) -> None:
    one = make("ab000000-0000-4000-8000-000000000000")
    two = make("ac000000-0000-4000-8000-000000000000")
    # an id that is another one's prefix: exact before prefix
    short, long = make("fe"), make("fe000000-0000-4000-8000-000000000000")

    async def test(records: Records) -> None:
        for job in (one, two, short, long):
            await records.put(job)
        assert await records.get("ab") == one
        assert await records.get("ac0000") == two
        assert await records.get(two.id) == two
        assert await records.get("fe") == short
        assert await records.get("fe0") == long
        for text in ("a", "", "b", "AB", "ab_", "a%", one.id + "0", "0" * 36, "ab\0"):
            with pytest.raises(NotFound) as caught:
                await records.get(text)
            assert caught.value.why == f"job not found: {text}"
            assert ("begin so" in caught.value.hint) == (text == "a")

    run(path, test)


def test_a_prefix_of_several_shows_them(path: Path) -> None:
    jobs = [make(f"ab{n:06x}-0000-4000-8000-000000000000") for n in range(7)]
    other = make("ac000000-0000-4000-8000-000000000000")

    async def test(records: Records) -> None:
        for job in (*jobs[:2], other):
            await records.put(job)
        with pytest.raises(NotFound) as caught:
            await records.get("ab")
        assert caught.value.why == "job not found: ab"
        shown = f"several ids begin so: {jobs[0].id}, {jobs[1].id}"
        assert caught.value.hint == f"{shown}; write more of it"
        for job in jobs[2:]:
            await records.put(job)
        with pytest.raises(NotFound) as caught:
            await records.get("ab")
        ids = ", ".join(job.id for job in jobs[:5])
        assert caught.value.hint == f"several ids begin so: {ids}, and more; write more of it"
        with pytest.raises(NotFound) as caught:
            await records.get("x" * 100_000)
        assert len(caught.value.text) < 200

    run(path, test)


def test_order_states_and_pages(path: Path) -> None:
    states = [S.RUNNING, S.COMPLETED, S.FAILED, S.RUNNING, S.SCHEDULED, S.STOPPED, S.STOPPING]
    # ids in another order than creation, and a clock that goes backwards
    some = [
        dataclasses.replace(numbered(100 - n, state=state), created_us=1000 - n)
        for n, state in enumerate(states)
    ]

    async def test(records: Records) -> None:
        for job in some:
            await records.put(job)
        # a change does not move a job
        some[0] = dataclasses.replace(some[0], state=S.STOPPING)
        await records.put(some[0])
        assert await records.list() == some
        assert await records.load_unfinished() == [job for job in some if job.state not in FINAL]
        assert await records.list(states=[S.COMPLETED, S.FAILED]) == some[1:3]
        assert await records.count() == {
            S.STOPPING: 2,
            S.COMPLETED: 1,
            S.FAILED: 1,
            S.RUNNING: 1,
            S.SCHEDULED: 1,
            S.STOPPED: 1,
        }
        seen: list[Job] = []
        cursor: int | None = 0
        sizes = []
        while cursor is not None:
            page = await records.page(cursor=cursor, limit=3)
            seen += page.jobs
            sizes.append(len(page.jobs))
            cursor = page.cursor
        assert (seen, sizes) == (some, [3, 3, 1])
        page = await records.page(limit=len(some))
        assert (len(page.jobs), page.cursor) == (len(some), None)

    run(path, test)


def test_heads_in_both_orders(path: Path) -> None:
    some = [numbered(100 - n) for n in range(7)]  # ids in another order than creation

    async def test(records: Records) -> None:
        assert await records.heads() == await records.heads(newest_first=True) == []
        for job in some:
            await records.put(job)
        for newest_first in (False, True):
            seen: list[str] = []
            cursor = 0
            while heads := await records.heads(cursor=cursor, limit=3, newest_first=newest_first):
                seen += [job_id for _, job_id in heads]
                cursor = heads[-1][0]
            ids = [job.id for job in some]
            assert seen == (ids[::-1] if newest_first else ids)
        assert await records.load([some[2].id, some[5].id, "nobody's"]) == {
            some[2].id: some[2],
            some[5].id: some[5],
        }
        assert await records.ids() == {job.id for job in some}

    run(path, test)


def test_no_question_goes_through_all_jobs(path: Path) -> None:
    """Each is answered by the index that is there for it, however many jobs have ended."""
    unfinished = module._page_query([S.RUNNING, S.STOPPING], cursor=0, limit=9)
    queries = {
        (module.HEADS_UP, (0, 9)): "COVERING INDEX jobs_listed (deleting=? AND seq>?)",
        (module.HEADS_DOWN, (9, 9)): "COVERING INDEX jobs_listed (deleting=? AND seq<?)",
        (unfinished[0], tuple(unfinished[1])): "INDEX jobs_by_state (state=? AND rowid>?)",
        (module.PREFIX, ("a", "b", 9)): "INDEX sqlite_autoindex_jobs_1 (id>? AND id<?)",
        (module.LOAD, ("[]",)): "INDEX sqlite_autoindex_jobs_1 (id=?)",
    }

    async def test(records: Records) -> None:
        await records.put(numbered(1))

    run(path, test)
    with contextlib.closing(sqlite3.connect(path)) as db:
        for (query, args), index in queries.items():
            plan = [row[-1] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", args)]
            assert any(line == f"SEARCH jobs USING {index}" for line in plan), plan


def test_lists_longer_than_a_page(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 7)
    some = [numbered(n) for n in range(50)]

    async def test(records: Records) -> None:
        await asyncio.gather(*(records.put(job) for job in some))
        assert await records.list() == some

    run(path, test)


def test_only_small_jobs_are_kept_decoded(path: Path) -> None:
    """Or a few thousand with a large environment would be gigabytes, for ever."""

    async def test(records: Records) -> None:
        small, large = numbered(1), numbered(2, usage={"x" * module.KEPT_BODY: 1})
        await asyncio.gather(records.put(small), records.put(large))
        first, second = await records.list(), await records.list()
        assert first == second == [small, large]
        assert first[0] is second[0]
        assert first[1] is not second[1]

    run(path, test)


def test_pages_survive_the_deletion_of_what_they_end_with(path: Path) -> None:
    some = [numbered(n, state=S.FAILED) for n in range(6)]

    async def test(records: Records) -> None:
        await asyncio.gather(*(records.put(job) for job in some))
        first = await records.page(limit=3)
        heads = await records.heads(limit=3)
        await delete(records, some[2].id)
        assert first.cursor == heads[-1][0]
        rest = await records.page(cursor=first.cursor)
        assert list(rest.jobs) == some[3:]
        following = await records.heads(cursor=first.cursor)
        assert [job_id for _, job_id in following] == [job.id for job in some[3:]]

    run(path, test)


def test_concurrent_puts_share_commits(path: Path) -> None:
    some = [numbered(n) for n in range(200)]

    async def test(records: Records) -> None:
        before = records.statistics
        await asyncio.gather(*(records.put(job) for job in some))
        after = records.statistics
        assert after.puts - before.puts == 200
        assert after.commits - before.commits <= 10
        assert await records.list() == some

    run(path, test)


def test_one_after_the_other_each_has_its_commit(path: Path) -> None:
    async def test(records: Records) -> None:
        before = records.statistics.commits
        for n in range(5):
            await records.put(numbered(n))
        assert records.statistics.commits - before == 5

    run(path, test)


def test_the_later_call_wins_whatever_runs_first(path: Path) -> None:
    job = numbered(1, state=S.RUNNING)
    later = dataclasses.replace(job, state=S.STOPPING)

    async def test(records: Records) -> None:
        first = records.put(job)
        second = records.put(later)
        await second
        await first
        assert await records.get(job.id) == later

    run(path, test)

    async def again(records: Records) -> None:
        # and the revisions of another run are higher than all of the first one's
        await records.put(job)
        assert await records.get(job.id) == job

    run(path, again)


def test_more_than_the_queue_takes_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_thread, "QUEUE_MAX", 4)
    some = [numbered(n) for n in range(100)]

    async def test(records: Records) -> None:
        await asyncio.gather(
            *(records.put(job) for job in some), *(records.count() for _ in range(20))
        )
        assert await records.list() == some

    run(path, test)


def test_a_cancelled_put_harms_nobody(path: Path) -> None:
    async def test(records: Records) -> None:
        tasks = [asyncio.create_task(records.put(numbered(n))) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result is None for result in results] == [False, True] * 10
        found = {job.id for job in await records.list()}
        assert {numbered(n).id for n in range(1, 20, 2)} <= found

    run(path, test)


def test_idempotency_keys(path: Path) -> None:
    one = numbered(1, created_by="anna", state=S.FAILED)
    two = numbered(2, created_by="anna")
    other = numbered(3, created_by="ben")

    async def test(records: Records) -> None:
        assert await records.idempotent("anna", "k") is None
        await records.put(one, key="k")
        await records.put(one, key="k")
        assert await records.idempotent("anna", "k") == one.id
        assert await records.idempotent("ben", "k") is None
        await records.put(other, key="k")
        with pytest.raises(AlreadyExists, match=f"stands for job {one.id}"):
            await records.put(two, key="k")
        assert await records.list() == [one, other]
        # one that fails does not take those along that share its commit
        results = await asyncio.gather(
            records.put(numbered(4)),
            records.put(two, key="k"),
            records.put(numbered(5)),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), AlreadyExists, type(None)]
        assert await records.list() == [one, other, numbered(4), numbered(5)]

    run(path, test)


def test_the_key_of_a_deleted_job_is_spent(path: Path) -> None:
    one = numbered(1, created_by="anna", state=S.FAILED)
    two = numbered(2, created_by="anna")

    async def test(records: Records) -> None:
        await records.put(one, key="k")
        await delete(records, one.id)
        assert await records.idempotent("anna", "k") == one.id
        assert await records.idempotent("ben", "k") is None
        with pytest.raises(AlreadyExists, match=f"stands for job {one.id}"):
            await records.put(two, key="k")
        await records.put(two, key="another")
        assert await records.idempotent("anna", "another") == two.id

    run(path, test)


def test_of_spent_keys_the_last_ones_are_known(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "SPENT_KEYS", 3)

    async def test(records: Records) -> None:
        for number in range(1, 7):
            done = numbered(number, created_by="anna", state=S.COMPLETED)
            await records.put(done, key=str(number))
            await delete(records, done.id)
        known = [await records.idempotent("anna", str(number)) for number in range(1, 7)]
        assert known == [None, None, None, *(numbered(number).id for number in (4, 5, 6))]

    run(path, test)


def test_what_the_database_could_not_hold_is_refused(path: Path) -> None:
    async def test(records: Records) -> None:
        for job in (
            make("a\0b"),
            dataclasses.replace(numbered(1), created_us=2**63),
            dataclasses.replace(numbered(1), created_us=-(2**63) - 1),
        ):
            with pytest.raises(Internal, match="is not one"):
                await records.put(job)
        odd = numbered(2, name="a\0b'\"\\\ud800\U0001f600")
        await records.put(odd)
        assert await records.list() == [odd]

    run(path, test)


def test_what_is_being_deleted_is_nowhere(path: Path) -> None:
    one, two = numbered(1, state=S.COMPLETED), numbered(2, state=S.FAILED)

    async def test(records: Records) -> None:
        await records.put(one)
        await records.put(two)
        await records.begin_deletion(one.id)
        assert await records.list() == [two]
        assert [job_id for _, job_id in await records.heads()] == [two.id]
        assert await records.load([one.id, two.id]) == {two.id: two}
        assert await records.count() == {S.FAILED: 1}
        for text in (one.id, one.id[:8]):
            with pytest.raises(NotFound):
                await records.get(text)
        assert (await records.get("0000")).id == two.id  # a prefix that it has for itself now
        with pytest.raises(NotFound, match="job not found"):
            await records.begin_deletion(one.id)
        assert await records.deletions() == [one.id]
        assert await records.ids() == {one.id, two.id}

        await records.keep([one.id])
        assert await records.deletions() == []
        assert await records.list() == [one, two]

        await records.begin_deletion(one.id)
        await records.forget([one.id, two.id])  # that of the second has not begun
        assert await records.ids() == {two.id}

    run(path, test)


@pytest.mark.parametrize("state", sorted(set(S) - FINAL))
def test_a_job_that_has_not_ended_is_not_deleted(path: Path, state: S) -> None:
    async def test(records: Records) -> None:
        await records.put(numbered(1, state=state))
        with pytest.raises(FailedPrecondition, match=f"not ended .status: {state}") as caught:
            await records.begin_deletion(numbered(1).id)
        assert "stop the job first: rnx job stop" in caught.value.hint
        with pytest.raises(NotFound):
            await records.begin_deletion("0000")  # no prefixes here
        await records.forget([numbered(1).id])
        assert await records.ids() == {numbered(1).id}

    run(path, test)


def test_all_that_have_ended(path: Path) -> None:
    states = [S.RUNNING, S.COMPLETED, S.FAILED, S.RUNNING, S.SCHEDULED, S.STOPPED, S.CANCELED]
    some = [numbered(n, state=state) for n, state in enumerate(states)]

    async def test(records: Records) -> None:
        assert await records.last() == 0
        for job in some:
            await records.put(job)
        until = await records.last()
        await records.put(numbered(50, state=S.COMPLETED))
        begun: list[str] = []
        skipped, sizes = 0, []
        cursor: int | None = 0
        while cursor is not None:
            step = await records.begin_deletions(cursor, until, limit=3)
            begun += step.ids
            skipped += step.skipped
            sizes.append(len(step.ids) + step.skipped)
            cursor = step.cursor
        assert begun == [job.id for job in some if job.state in FINAL]
        assert (skipped, sizes) == (3, [3, 3, 1])
        assert await records.deletions() == begun
        await records.forget(begun)
        left = [job for job in some if job.state not in FINAL]
        assert await records.list() == [*left, numbered(50, state=S.COMPLETED)]

    run(path, test)


def test_a_job_keeps_the_boot_that_it_was_launched_in(path: Path) -> None:
    """However often the server starts meanwhile, and whatever other boots there are jobs of."""
    old, done, new = numbered(1, state=S.RUNNING), numbered(2, state=S.FAILED), numbered(3)

    async def first(records: Records) -> None:
        records.boot("one")
        await records.put(old)
        await records.put(done)

    async def other(records: Records) -> None:
        records.boot("two")
        await records.put(new)
        await records.put(dataclasses.replace(old, state=S.STOPPING))

    async def recovered(records: Records) -> None:
        records.boot("two")
        assert await records.boots() == {old.id: "one", new.id: "two"}
        await records.put(dataclasses.replace(old, state=S.FAILED))
        assert await records.boots() == {new.id: "two"}

    async def unsaid(records: Records) -> None:
        await records.put(numbered(4))
        assert (await records.boots())[numbered(4).id] == ""

    for step in (first, other, recovered, unsaid):
        run(path, step)


def test_meta(path: Path) -> None:
    async def test(records: Records) -> None:
        assert await records.meta("a") is None
        await records.set_meta("a", "1")
        await records.set_meta("a", "2")
        assert await records.meta("a") == "2"

    run(path, test)


def test_whether_the_last_server_closed_them(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as records:
            assert records.was_closed
        async with opened(path) as records:
            assert records.was_closed
            copy = path.with_name("copy.db")
            # what a crash leaves
            with (
                contextlib.closing(sqlite3.connect(path)) as db,
                contextlib.closing(sqlite3.connect(copy)) as into,
            ):
                db.backup(into)
        async with opened(copy) as records:
            assert not records.was_closed

    asyncio.run(main())


def test_close_commits_what_waits_and_refuses_what_comes(path: Path) -> None:
    some = [numbered(n) for n in range(50)]

    async def main() -> None:
        records = await Records.open(path)
        puts = [asyncio.create_task(records.put(job)) for job in some]
        await asyncio.sleep(0)
        await records.close()
        await records.close()
        await asyncio.gather(*puts)
        for call in (records.put(some[0]), records.list(), records.get("a"), records.boots()):
            with pytest.raises(Unavailable, match="closed"):
                await call
        # nothing of SQLite's own is left beside it
        assert not path.with_name("joblet.db-wal").exists()
        async with opened(path) as again:
            assert await again.list() == some

    asyncio.run(main())


def test_a_full_disk_is_said_and_survived(path: Path) -> None:
    """SQLite's own bound on the file stands for the disk's."""
    some = [numbered(n, name="x" * 5000) for n in range(100)]

    async def test(records: Records) -> None:
        await records.put(numbered(1000))
        pages = await records._write(
            "test", lambda db: db.execute("PRAGMA page_count").fetchone()[0]
        )
        bound = f"PRAGMA max_page_count={pages}"
        await records._write("test", lambda db: db.execute(bound).fetchone())
        results = await asyncio.gather(*(records.put(job) for job in some), return_exceptions=True)
        assert all(isinstance(result, ResourceExhausted) for result in results)
        assert "disk is full" in str(results[0])
        assert records.statistics.failed_commits >= 1
        assert await records.list() == [numbered(1000)]
        await records._write(
            "test", lambda db: db.execute("PRAGMA max_page_count=1000000").fetchone()
        )
        await asyncio.gather(*(records.put(job) for job in some))
        assert await records.list() == [numbered(1000), *some]

    run(path, test)


def test_close_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs: here another program that holds the database."""
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)

    async def main() -> None:
        records = await Records.open(path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            put = asyncio.create_task(records.put(numbered(1)))
            with pytest.raises(Unavailable, match="within"):
                await records.close()
            db.execute("ROLLBACK")
        await put

    asyncio.run(main())
