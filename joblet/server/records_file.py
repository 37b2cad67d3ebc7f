# SPDX-License-Identifier: MIT
"""The database file of the records: made, opened, checked, migrated. Blocking: for threads only.

    PATH        SQLite, WAL, synchronous=FULL; application_id says that it is ours, user_version
                how many MIGRATIONS it has had; 0600, because jobs' secrets are in it
    PATH-wal, PATH-shm   SQLite's own
    PATH.lock   flock: one server at a time, because each believes that it alone writes
    PATH.new    a database in the making; it gets its name when it is whole and on the disk

Invariants: a file that is there is never replaced or emptied. A file that is empty, not a database,
damaged, another program's, or a newer server's is refused, and the error says what to do.
"""

import contextlib
import fcntl
import itertools
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from joblet.errors import (
    FailedPrecondition,
    Internal,
    JobletError,
    NewerRelease,
    ResourceExhausted,
    Unavailable,
)

APPLICATION_ID: Final = 0x4A6F626C

# Each entry is one version: statements. Those that a database has not had are run in one
# transaction, with the new number in it: a crash leaves the old database or the new one, never
# anything between, so that no copy of it is needed. Entries are only ever added. A new format of
# the jobs' bodies (records_codec) is a new version, too, or an older server would open what it
# cannot read.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # seq is the order of creation and is never used twice: a page's cursor stays good.
        # revision grows with every put, so that an older put never overwrites a newer one.
        # name is for searching, and ends at a NUL; the whole one is in body, as everything else.
        """CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            revision INTEGER NOT NULL,
            state TEXT NOT NULL,
            created_us INTEGER NOT NULL,
            name TEXT NOT NULL,
            boot TEXT NOT NULL,
            format INTEGER NOT NULL,
            body TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX jobs_by_state ON jobs (state)",
        """CREATE TABLE idempotency (
            identity TEXT NOT NULL,
            key TEXT NOT NULL,
            job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            PRIMARY KEY (identity, key)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX idempotency_by_job ON idempotency (job)",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    ),
    (
        # deleting: 1 once the job's deletion has begun; nobody is shown such a job any more, and it
        # is not undone by a crash. spent_keys: keys of jobs that are gone, the last ones only.
        # Lists read jobs_listed alone, as far as they have met the jobs before.
        "ALTER TABLE jobs ADD COLUMN deleting INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX jobs_listed ON jobs (deleting, seq, id)",
        """CREATE TABLE spent_keys (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            identity TEXT NOT NULL,
            key TEXT NOT NULL,
            job TEXT NOT NULL,
            UNIQUE (identity, key)
        ) STRICT""",
    ),
)

# How long a writer waits for another program that has the database open (a backup, an admin).
BUSY_SECONDS: Final = 5.0

# What SQLite leaves of the write-ahead log after a checkpoint.
WAL_BYTES: Final = 16 << 20

RESTORE: Final = (
    "stop joblet.service, keep a copy of the file for a look at it, and put a backup in its place"
    " or move it away; jobs that are running go on, and logs are kept elsewhere"
)


class Lock:
    """The right to write the records; until `release`, or the end of the process."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(f"{path}.lock", flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise

    def release(self) -> None:
        os.close(self._fd)


def opening(path: Path) -> str:
    return f"open the records in {path}"


def lock(path: Path) -> Lock:
    """Raises FailedPrecondition if another server has it, or if the directory cannot be used."""
    try:
        return Lock(path)
    except BlockingIOError:
        raise FailedPrecondition(
            opening(path),
            "another server has them open",
            hint="see systemctl status joblet.service",
        ) from None
    except OSError as error:
        raise _directory(path, error) from None


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The database, made if there is none, checked and brought up to date. Hold the lock.

    Raises FailedPrecondition, Internal (damaged), ResourceExhausted (full), Unavailable.
    """
    what = opening(path)
    try:
        if not _there(path):
            _make(path)
        db = connect(path)
    except sqlite3.Error as error:
        raise translated(what, error) from None
    except OSError as error:
        raise _directory(path, error) from None
    try:
        with refused(what):
            _check(path, db)
            _migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def connect(path: Path, *, query_only: bool = False) -> sqlite3.Connection:
    """One more connection to a database that is open for writing. Raises sqlite3.Error."""
    db = sqlite3.connect(
        f"file:{quote(os.fspath(path))}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_SECONDS,
    )
    try:
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA foreign_keys=ON")
        db.execute("PRAGMA secure_delete=ON")
        db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
        db.execute(f"PRAGMA query_only={int(query_only)}")
    except BaseException:
        db.close()
        raise
    return db


def translated(what: str, error: sqlite3.Error) -> JobletError:
    """SQLite's error as one of ours."""
    # primary result code; an extended one adds bits above it
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL:
            return ResourceExhausted(what, "the disk is full", hint="make room on it")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_FORMAT:
            return Internal(what, f"the database is damaged ({error})", hint=RESTORE)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            hint = "the server's user must be able to write the file and its directory"
            return FailedPrecondition(what, str(error), hint=hint)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(what, "another program has the database locked")
        case sqlite3.SQLITE_IOERR:
            return Unavailable(what, f"the disk does not work ({error})")
        case _:
            return Internal(what, str(error))


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """Turns SQLite's errors into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise translated(what, error) from None


def _there(path: Path) -> bool:
    """Whether there is a database. Raises Internal for what looks like the rest of one."""
    what = opening(path)
    try:
        empty = path.stat().st_size == 0
    except FileNotFoundError:
        # its changes are in there, and SQLite would pour them into whatever gets the name
        if Path(f"{path}-wal").exists():
            why = f"{path.name}-wal is there and {path.name} is not"
            raise Internal(what, why, hint=RESTORE) from None
        return False
    if empty:
        raise Internal(what, "the database is empty, which it never is by itself", hint=RESTORE)
    return True


def _make(path: Path) -> None:
    new = Path(f"{path}.new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.closing(connect(new)) as db:
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        _migrate(db)
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check(path: Path, db: sqlite3.Connection) -> None:
    what = opening(path)
    [application_id] = db.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise FailedPrecondition(what, "it is the database of another program", hint=RESTORE)
    [version] = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        why = (
            f"they were written by a newer Joblet (schema {version}, this one knows"
            f" {len(MIGRATIONS)})"
        )
        hint = "install that version again, or put a backup of before the upgrade in their place"
        raise NewerRelease(what, why, hint=hint)
    [verdict] = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise Internal(what, f"the database is damaged ({verdict})", hint=RESTORE)
    [mode] = db.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        why = "its filesystem does not let SQLite share memory, which WAL needs"
        raise FailedPrecondition(what, why, hint="keep the state on a local filesystem")


def _migrate(db: sqlite3.Connection) -> None:
    [version] = db.execute("PRAGMA user_version").fetchone()
    if version == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in itertools.chain.from_iterable(MIGRATIONS[version:]):
            db.execute(statement)
        db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _directory(path: Path, error: OSError) -> JobletError:
    hint = f"{path.parent} must be a directory that the server's user can write"
    return FailedPrecondition(opening(path), f"{error.filename}: {error.strerror}", hint=hint)
