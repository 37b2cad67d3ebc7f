# SPDX-License-Identifier: MIT
"""How records go: what a deletion does to the database. Blocking: for the threads of the records.

    begin    the job is marked in its row (`deleting`): nobody is shown it any more
    keep     the mark is taken back
    forget   the row goes; its idempotency key stays known (`spent_keys`), or a client that tries
             again what it asked for long ago would run it again

Only a job in a final state is ever marked, and only a marked one is forgotten.
"""

import dataclasses
import json
import sqlite3
from collections.abc import Collection
from typing import Final

from joblet.errors import FailedPrecondition, NotFound
from joblet.model import FINAL

# Keys of deleted jobs: the last ones, about 200 bytes each. A client that tries again does so
# within minutes.
SPENT_KEYS: Final = 100_000

FINAL_STATES: Final = frozenset(state.value for state in FINAL)


@dataclasses.dataclass(frozen=True, slots=True)
class Begun:
    """One step through all jobs: those whose deletion has begun, how many had not ended, and where
    the next step goes on; None: there are no more."""

    ids: tuple[str, ...]
    skipped: int
    cursor: int | None


def begin(db: sqlite3.Connection, job_id: str) -> None:
    """Raises NotFound, also if it has begun already, and FailedPrecondition."""
    what = f"delete job {job_id}"
    query = "SELECT state FROM jobs WHERE id = ? AND deleting = 0"
    row = db.execute(query, (job_id,)).fetchone()
    if row is None:
        raise NotFound(what, f"job not found: {job_id}")
    if row[0] not in FINAL_STATES:
        raise not_ended(job_id, row[0])
    db.execute("UPDATE jobs SET deleting = 1 WHERE id = ?", (job_id,))


def begin_ended(db: sqlite3.Connection, cursor: int, until: int, limit: int) -> Begun:
    """Looks at up to `limit` jobs behind `cursor`, up to the one created as number `until`."""
    rows = db.execute(
        "SELECT seq, id, state FROM jobs WHERE deleting = 0 AND seq > ? AND seq <= ?"
        " ORDER BY seq LIMIT ?",
        (cursor, until, limit),
    ).fetchall()
    ids = tuple(job_id for _, job_id, state in rows if state in FINAL_STATES)
    if ids:
        db.execute(f"UPDATE jobs SET deleting = 1 WHERE {_AMONG}", (json.dumps(ids),))  # noqa: S608
    return Begun(ids, len(rows) - len(ids), rows[-1][0] if len(rows) == limit else None)


def keep(db: sqlite3.Connection, ids: Collection[str]) -> None:
    db.execute(f"UPDATE jobs SET deleting = 0 WHERE {_AMONG}", (json.dumps([*ids]),))  # noqa: S608


def forget(db: sqlite3.Connection, ids: Collection[str]) -> None:
    these = (json.dumps([*ids]),)
    db.execute(
        "INSERT OR IGNORE INTO spent_keys (identity, key, job)"
        " SELECT identity, key, job FROM idempotency"
        " WHERE job IN (SELECT value FROM json_each(?)) ORDER BY job",
        these,
    )
    db.execute(f"DELETE FROM jobs WHERE deleting = 1 AND {_AMONG}", these)  # noqa: S608
    newest = "(SELECT max(seq) FROM spent_keys)"
    db.execute(f"DELETE FROM spent_keys WHERE seq <= {newest} - ?", (SPENT_KEYS,))  # noqa: S608


def begun(db: sqlite3.Connection) -> list[str]:
    """Jobs whose deletion has begun and did not come to its end."""
    rows = db.execute("SELECT id FROM jobs WHERE deleting = 1 ORDER BY seq").fetchall()
    return [job_id for (job_id,) in rows]


def last(db: sqlite3.Connection) -> int:
    """The number of the job that was created last; 0: there is none."""
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM jobs").fetchone()[0])


def not_ended(job_id: str, state: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"delete job {job_id}",
        f"it has not ended (status: {state})",
        hint=f"stop the job first: rnx job stop {job_id}",
    )


_AMONG: Final = "id IN (SELECT value FROM json_each(?))"
