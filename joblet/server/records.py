# SPDX-License-Identifier: MIT
"""The records of all jobs, in SQLite. What `put` returned from, no crash takes away.

Invariants:
- One thread writes, with one connection; another reads, with one that cannot write. Nothing of
  SQLite runs on the event loop.
- Group commit: whatever was put while the last transaction was on its way to the disk shares the
  next one. `put` returns when that is on the disk (WAL, synchronous=FULL).
- A put that is called later wins, whatever order the event loop then runs them in.
- A bounded number of calls waits for each thread; more wait for their turn.
- A cancelled call may still be carried out.
- A job whose deletion has begun is in no answer, but for `deletions`.
- After an error of the disk nothing of that transaction is kept, all who wait for it hear of it,
  and the next one is tried.

Jobs go in and come out frozen; who holds jobs in memory is the supervisor's business. The file and
its format: records_file.py, records_codec.py; the threads: records_thread.py; how records go:
records_deletion.py.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import sqlite3
from collections.abc import Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from joblet.errors import AlreadyExists, Internal, JobletError, NotFound, Unavailable
from joblet.model import FINAL, Job, JobState
from joblet.server import records_codec as codec
from joblet.server import records_deletion as deletion
from joblet.server import records_file as file
from joblet.server.records_thread import DatabaseThread, Operation, Row, WriterThread

PAGE: Final = 500
CLOSE_SECONDS: Final = 4.0

# A full UUID; anything shorter may be a prefix.
ID_LENGTH: Final = 36
KEPT_BODY: Final = 4096  # characters of a job's text, beyond which it is not kept decoded
MATCHES: Final = 5  # ids that are shown to who gave a prefix of several

# Puts of one run of the server, at most; its number stands above them in a revision.
PUTS_BITS: Final = 40

# Above every number of a job.
LAST: Final = 2**63 - 1

T = TypeVar("T")
Head = tuple[int, str]  # a job's number and its id
Jobs = list[Job]  # inside the class, `list` is a method


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, in order; `cursor` asks for the next ones, None: there are no more."""

    jobs: tuple[Job, ...]
    cursor: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    puts: int
    commits: int
    failed_commits: int


class Records:
    """`open`, use, `close`; for one event loop."""

    def __init__(self, lock: file.Lock, writer: WriterThread, reader: DatabaseThread) -> None:
        self._lock = lock
        self._writer = writer
        self._reader = reader
        self._run = 0
        self._puts = itertools.count(1)
        self._puts_done = 0
        self._boot = ""
        self._closing = False
        # Whether the server before this one closed its records.
        self.was_closed = True

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open the records, or make them. What is there is never emptied.

        Raises FailedPrecondition (another server, a newer one, a directory that cannot be used),
        Internal (damaged), ResourceExhausted, Unavailable; all with a hint.
        """
        lock, write, read = await asyncio.to_thread(_open, path)
        writer, reader = (
            WriterThread("records", write, put_rows=PUT_ROWS),
            DatabaseThread("records reader", read),
        )
        self = cls(lock, writer, reader)
        try:
            await self._write("open the records", self._begin)
        except BaseException:
            with contextlib.suppress(JobletError):
                await self.close()
            raise
        return self

    async def close(self) -> None:
        """Commit what waits, then close. Raises Unavailable if the disk takes too long.

        Calls from now on fail with Unavailable. May be called again.
        """
        if self._closing:
            return
        mark = self._write("close the records", lambda db: _set_meta(db, "closed", "1"))
        written = asyncio.ensure_future(mark)
        await asyncio.sleep(0)  # it is in the queue, behind everything else
        self._closing = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.wait([written])
                # the reader first: the log is emptied only while nobody reads
                await self._reader.end()
                await self._writer.end()
        except TimeoutError:
            written.cancel()
            why = f"the disk did not take them within {CLOSE_SECONDS:g} s"
            raise Unavailable("close the records", why) from None
        self._lock.release()
        if (error := written.exception()) is not None:
            raise error

    @property
    def statistics(self) -> Statistics:
        return Statistics(self._puts_done, self._writer.commits, self._writer.failures)

    def put(self, job: Job, *, key: str = "") -> Coroutine[Any, Any, None]:
        """Record the job as it is now, new or known; await it, it returns when that is durable.

        `key`: the job is what its creator (`created_by`) asked for with this idempotency key; both
        are recorded together or not at all. Raises AlreadyExists if the key stands for another
        job, ResourceExhausted (disk full), Unavailable, Internal.
        """
        if "\0" in job.id or not -(2**63) <= job.created_us < 2**63:
            # the statement that takes many rows would read both otherwise than they are written
            raise Internal(f"record job {job.id!r}", "its id or time of creation is not one")
        revision = self._run << PUTS_BITS | next(self._puts)
        row = [
            job.id,
            revision,
            job.state.value,
            job.created_us,
            job.spec.name,
            self._boot,
            codec.FORMAT,
            codec.encode(job),
        ]
        return self._put(job, Row(json.dumps(row)), key)

    async def _put(self, job: Job, row: Row, key: str) -> None:
        what = f"record job {job.id}"

        def put_with_key(db: sqlite3.Connection) -> None:
            owner = _idempotent(db, job.created_by, key)
            if owner not in (None, job.id):
                raise AlreadyExists(what, f"its idempotency key stands for job {owner}")
            db.execute(PUT_ROWS, (f"[{row.values}]",))
            db.execute(CLAIM, (job.created_by, key, job.id))

        await self._submit(self._writer, what, put_with_key if key else row)
        self._puts_done += 1

    async def idempotent(self, identity: str, key: str) -> str | None:
        """The id of the job that `identity` asked for with this key; it may have been deleted."""
        return await self._read(
            "look up an idempotency key", lambda db: _idempotent(db, identity, key)
        )

    async def get(self, text: str) -> Job:
        """The job with this id, or the only one whose id begins so. Raises NotFound."""
        rows = await self._read("find a job", lambda db: _find(db, text))
        if len(rows) == 1:
            return _job(*rows[0])
        hint = "`rnx list` shows all jobs"
        if rows:
            ids = [_job(*row).id for row in rows[:MATCHES]]
            more = ", and more" if len(rows) > MATCHES else ""
            hint = f"several ids begin so: {', '.join(ids)}{more}; write more of it"
        raise NotFound("find the job", f"job not found: {text:.80}", hint=hint)

    async def list(self, *, states: Collection[JobState] = ()) -> Jobs:
        """All jobs, or those in `states`, in the order of their creation."""
        jobs: Jobs = []
        cursor: int | None = 0
        while cursor is not None:
            page = await self.page(states=states, cursor=cursor)
            jobs += page.jobs
            cursor = page.cursor
        return jobs

    async def page(
        self, *, states: Collection[JobState] = (), cursor: int = 0, limit: int = PAGE
    ) -> Page:
        """Up to `limit` jobs, in the order of their creation. `cursor` 0 begins.

        A job that changes its state or is created while somebody turns pages may be on none or on
        a later one; none is on two.
        """
        query, args = _page_query(states, cursor=cursor, limit=limit)

        def read(db: sqlite3.Connection) -> Page:
            rows = db.execute(query, args).fetchall()
            more = len(rows) > limit
            jobs = tuple(_job(*row) for _, *row in rows[:limit])
            return Page(jobs, rows[limit - 1][0] if more else None)

        return await self._read("list the jobs", read)

    async def heads(
        self, *, cursor: int = 0, limit: int = PAGE, newest_first: bool = False
    ) -> Sequence[Head]:
        """Numbers and ids of up to `limit` jobs behind `cursor`, or, newest first, before it; 0
        begins. For who has met most of these jobs before; `load` reads the others.

        A number is a job's for ever, so that a cursor stays good whatever comes and goes.
        """
        bound = cursor or (LAST if newest_first else 0)
        query = HEADS_DOWN if newest_first else HEADS_UP

        def read(db: sqlite3.Connection) -> Sequence[Head]:
            text = db.execute(query, (bound, limit)).fetchone()[0]
            found: list[list[Any]] = json.loads(text)
            return sorted(((number, job_id) for number, job_id in found), reverse=newest_first)

        return await self._read("list the jobs", read)

    async def load(self, ids: Collection[str]) -> dict[str, Job]:
        """The jobs with these ids, those that there are."""

        def read(db: sqlite3.Connection) -> dict[str, Job]:
            rows = db.execute(LOAD, (json.dumps([*ids]),)).fetchall()
            return {job_id: _job(number, body) for job_id, number, body in rows}

        return await self._read("read jobs", read)

    async def ids(self) -> frozenset[str]:
        """Of all jobs, also of those whose deletion has begun."""
        query = "SELECT json_group_array(id) FROM jobs"
        [text] = await self._read("list the jobs", lambda db: db.execute(query).fetchone())
        return frozenset(json.loads(text))

    async def count(self) -> dict[JobState, int]:
        """How many jobs are in each state; states without any are left out."""
        rows = await self._read(
            "count the jobs",
            lambda db: db.execute(COUNT).fetchall(),
        )
        return {JobState(state): number for state, number in rows}

    async def load_unfinished(self) -> Jobs:
        """The jobs that are in no final state, in the order of their creation."""
        return await self.list(states=[state for state in JobState if state not in FINAL])

    async def begin_deletion(self, job_id: str) -> None:
        """Durable when it returns: nobody finds the job any more, `forget` or `keep` must follow.

        Raises NotFound, also when it has begun already, and FailedPrecondition for a job that has
        not ended.
        """
        await self._write(f"delete job {job_id}", lambda db: deletion.begin(db, job_id))

    async def begin_deletions(self, cursor: int, until: int, *, limit: int) -> deletion.Begun:
        """The same for those that have ended of the next `limit` jobs, up to number `until`."""
        return await self._write(
            "delete jobs", lambda db: deletion.begin_ended(db, cursor, until, limit)
        )

    async def keep(self, ids: Collection[str]) -> None:
        """Take back that their deletion has begun."""
        await self._write("keep jobs", lambda db: deletion.keep(db, ids))

    async def forget(self, ids: Collection[str]) -> None:
        """Forget jobs whose deletion has begun. The idempotency keys that stand for them stay
        known, the last SPENT_KEYS."""
        await self._write("forget jobs", lambda db: deletion.forget(db, ids))

    async def deletions(self) -> Sequence[str]:
        """Ids of the jobs whose deletion has begun."""
        return await self._read("look up what is being deleted", deletion.begun)

    async def last(self) -> int:
        """The number of the job that was created last; 0: there is none."""
        return await self._read("count the jobs", deletion.last)

    def boot(self, boot_id: str) -> None:
        """Say which boot of the machine this is: jobs recorded for the first time belong to it."""
        self._boot = boot_id

    async def boots(self) -> dict[str, str]:
        """Id -> the boot that it was launched in, of each job that is in no final state.

        "" where nobody said: such a job counts as one of another boot.
        """
        states = [state.value for state in JobState if state not in FINAL]
        marks = ",".join("?" * len(states))
        query = f"SELECT id, boot FROM jobs WHERE state IN ({marks})"  # noqa: S608  marks only
        rows = await self._read(
            "look up the boots of the jobs", lambda db: db.execute(query, states).fetchall()
        )
        return dict(rows)

    async def meta(self, key: str) -> str | None:
        """A value that is no job's, such as when something was last done."""
        return await self._read(f"read {key}", lambda db: _meta(db, key))

    async def set_meta(self, key: str, value: str) -> None:
        await self._write(f"record {key}", lambda db: _set_meta(db, key, value))

    def _begin(self, db: sqlite3.Connection) -> None:
        """Number this run of the server, so that its revisions are above those of all before."""
        self._run = int(_meta(db, "run") or 0) + 1
        self.was_closed = _meta(db, "closed") != "0"
        _set_meta(db, "run", str(self._run))
        _set_meta(db, "closed", "0")

    async def _write(self, what: str, operation: Operation[T]) -> T:
        return await self._submit(self._writer, what, operation)

    async def _read(self, what: str, operation: Operation[T]) -> T:
        return await self._submit(self._reader, what, operation)

    async def _submit(self, thread: DatabaseThread, what: str, task: Operation[T] | Row) -> T:
        if self._closing:
            raise Unavailable(what, "the records are closed")
        try:
            return await thread.submit(task)
        except sqlite3.Error as error:
            raise file.translated(what, error) from None


PUT_ROWS: Final = """
    INSERT INTO jobs (id, revision, state, created_us, name, boot, format, body)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3,
        value ->> 4, value ->> 5, value ->> 6, value ->> 7
    FROM json_each(?) WHERE true
    ON CONFLICT (id) DO UPDATE SET
        revision = excluded.revision, state = excluded.state, created_us = excluded.created_us,
        name = excluded.name, format = excluded.format, body = excluded.body
    WHERE excluded.revision > jobs.revision
"""
# By two indexes alone: the few that are being deleted are taken off.
COUNT: Final = """
    SELECT state, sum(number) FROM (
        SELECT state, count(*) AS number FROM jobs GROUP BY state
        UNION ALL SELECT state, -1 FROM jobs WHERE deleting = 1)
    GROUP BY state HAVING sum(number) > 0
"""
OWNER: Final = (
    "SELECT job FROM idempotency WHERE identity = ? AND key = ?"
    " UNION ALL SELECT job FROM spent_keys WHERE identity = ? AND key = ?"
)
CLAIM: Final = (
    "INSERT INTO idempotency (identity, key, job) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
)


# A + keeps SQLite from going through all jobs by jobs_listed.
PREFIX: Final = """
    SELECT format, body FROM jobs WHERE id > ? AND id < ? AND +deleting = 0 ORDER BY id LIMIT ?
"""
LOAD: Final = """
    SELECT id, format, body FROM jobs
    WHERE +deleting = 0 AND id IN (SELECT value FROM json_each(?))
"""
# One row, because the interpreter's lock is taken for each.
HEADS_UP: Final = """
    SELECT json_group_array(json_array(seq, id)) FROM (
        SELECT seq, id FROM jobs INDEXED BY jobs_listed WHERE deleting = 0 AND seq > ?
        ORDER BY seq LIMIT ?)
"""
HEADS_DOWN: Final = HEADS_UP.replace("seq > ?", "seq < ?").replace("BY seq", "BY seq DESC")


def _open(path: Path) -> tuple[file.Lock, sqlite3.Connection, sqlite3.Connection]:
    lock = file.lock(path)
    try:
        write = file.open_for_writing(path)
        try:
            with file.refused(file.opening(path)):
                return lock, write, file.connect(path, query_only=True)
        except BaseException:
            write.close()
            raise
    except BaseException:
        lock.release()
        raise


def _job(number: int, body: str) -> Job:
    return _kept(number, body) if len(body) <= KEPT_BODY else _decoded(number, body)


# The same text is the same job, frozen; a server reads its last jobs again and again. Each takes
# about 3 KB, so 10 MB, and no more than some 50 if all are as large as KEPT_BODY. One with an
# environment of 700 KB is decoded each time.
@functools.lru_cache(maxsize=3000)
def _kept(number: int, body: str) -> Job:
    return _decoded(number, body)


def _decoded(number: int, body: str) -> Job:
    try:
        return codec.decode(number, body)
    except ValueError as error:
        raise Internal("read a job's record", str(error), hint=file.RESTORE) from None


def _find(db: sqlite3.Connection, text: str) -> list[tuple[int, str]]:
    query = "SELECT format, body FROM jobs WHERE id = ? AND deleting = 0"
    found = db.execute(query, (text,)).fetchall()
    if found or not text or len(text) >= ID_LENGTH:
        return found
    beyond = text + chr(0x10FFFF)
    return db.execute(PREFIX, (text, beyond, MATCHES + 1)).fetchall()


def _page_query(states: Collection[JobState], *, cursor: int, limit: int) -> tuple[str, list[Any]]:
    where = ["+deleting = 0" if states else "deleting = 0", "seq > ?"]
    args: list[Any] = [cursor]
    if states:
        where.append(f"state IN ({','.join('?' * len(states))})")
        args += [state.value for state in states]
    query = (
        f"SELECT seq, format, body FROM jobs WHERE {' AND '.join(where)}"  # noqa: S608  marks only
        " ORDER BY seq LIMIT ?"
    )
    return query, [*args, limit + 1]


def _idempotent(db: sqlite3.Connection, identity: str, key: str) -> str | None:
    row = db.execute(OWNER, (identity, key, identity, key)).fetchone()
    return None if row is None else row[0]


def _meta(db: sqlite3.Connection, key: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def _set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )
