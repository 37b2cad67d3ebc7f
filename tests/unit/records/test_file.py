# SPDX-License-Identifier: MIT
"""Files that cannot be used are refused with a hint, and never touched; crashes lose nothing."""

import asyncio
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from joblet.errors import FailedPrecondition, Internal, JobletError, NewerRelease
from joblet.server import records_file
from joblet.server.records import Records
from tests.unit.records.jobs import numbered

ROOT = Path(__file__).resolve().parents[3]

# Puts jobs one by one or several at once, and says which ones are safe as soon as they are.
PUTTER = """
import asyncio, os, sys
from pathlib import Path
from joblet.server.records import Records
from tests.unit.records.jobs import numbered

async def main(path, first, at_once):
    records = await Records.open(path)
    numbers = iter(range(first, first + 100_000))

    async def work():
        for number in numbers:
            await records.put(numbered(number, name="n" * (number % 3000)))
            os.write(1, b"%d\\n" % number)

    await asyncio.gather(*(work() for _ in range(at_once)))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
"""


# Brings a database up to date, and is killed before the given statement.
MIGRATOR = """
import ast, os, signal, sqlite3, sys
from pathlib import Path
from joblet.server import records_file

left = int(sys.argv[2])
records_file.MIGRATIONS = ast.literal_eval(sys.argv[3])
connect = sqlite3.connect

class Connection(sqlite3.Connection):
    migrating = False

    def execute(self, sql, *arguments):
        global left
        self.migrating = self.migrating or sql.startswith("BEGIN")
        if self.migrating:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(sql, *arguments)

sqlite3.connect = lambda *arguments, **named: connect(*arguments, factory=Connection, **named)
db = records_file.open_for_writing(Path(sys.argv[1]))
db.execute("SELECT 1")  # a kill behind the commit
os._exit(0)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "joblet.db"


def refusal(path: Path) -> JobletError:
    async def main() -> None:
        records = await Records.open(path)
        await records.close()

    with pytest.raises(JobletError) as caught:
        asyncio.run(main())
    error = caught.value
    assert str(error).startswith(f"cannot open the records in {path}: ")
    assert error.hint
    return error


def filled(path: Path, count: int = 300) -> None:
    async def main() -> None:
        records = await Records.open(path)
        await asyncio.gather(*(records.put(numbered(n, name="x" * 200)) for n in range(count)))
        await records.close()

    asyncio.run(main())


async def after_a_crash(path: Path) -> set[str]:
    records = await Records.open(path)
    assert not records.was_closed
    found = {job.id for job in await records.list()}
    await records.put(numbered(99_999_999))
    await records.close()
    return found


def test_nothing_acknowledged_is_lost_by_a_kill(path: Path) -> None:
    generator = random.Random(7)
    safe: set[str] = set()
    for turn in range(25):
        first = turn * 100_000
        argv = [sys.executable, "-c", PUTTER, str(path), str(first), str(1 + 15 * (turn % 2))]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            wanted = generator.randrange(1, 60)
            said = [child.stdout.readline() for _ in range(wanted)]
            child.send_signal(signal.SIGKILL)
            said += child.stdout.read().splitlines(keepends=True)
        lines = [line for line in said if line.endswith(b"\n")]
        assert len(lines) >= wanted
        safe |= {numbered(int(line)).id for line in lines}

        assert safe <= asyncio.run(after_a_crash(path))


def test_only_its_owner_may_read_it(path: Path) -> None:
    async def main() -> None:
        records = await Records.open(path)
        await records.put(numbered(1))
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert {file.name for file in path.parent.iterdir()} == {
            "joblet.db",
            "joblet.db-wal",
            "joblet.db-shm",
            "joblet.db.lock",
        }
        await records.close()

    old = os.umask(0)
    try:
        asyncio.run(main())
    finally:
        os.umask(old)


def test_one_server_at_a_time(path: Path) -> None:
    async def main() -> None:
        records = await Records.open(path)
        with pytest.raises(FailedPrecondition, match="another server has them open"):
            await Records.open(path)
        await records.close()
        again = await Records.open(path)
        await again.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\0" * 8192, "damaged"),
        (b"this is not a database, it is a letter. " * 200, "damaged"),
        (random.Random(1).randbytes(8192), "damaged"),
        (b"SQLite format 3\0", "damaged"),
    ],
    ids=["empty", "zeros", "text", "random", "cut off"],
)
def test_what_is_no_database_is_refused_and_left_alone(
    path: Path, content: bytes, why: str
) -> None:
    path.write_bytes(content)
    error = refusal(path)
    assert isinstance(error, Internal)
    assert why in error.why
    assert "backup" in error.hint
    assert path.read_bytes() == content


def test_damage_inside_is_found_before_anything_is_believed(path: Path) -> None:
    filled(path)
    good = path.read_bytes()
    page = int.from_bytes(good[16:18], "big")
    found = 0
    for number in range(1, len(good) // page):
        bad = bytearray(good)
        bad[number * page : number * page + 64] = b"\xa5" * 64
        path.write_bytes(bad)
        error = refusal(path)
        assert isinstance(error, Internal), error
        assert "damaged" in error.why
        assert path.read_bytes() == bad
        found += 1
    assert found > 10
    path.write_bytes(good)
    filled(path)


def test_a_database_cut_in_the_middle(path: Path) -> None:
    filled(path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert isinstance(refusal(path), Internal)


def test_changes_whose_database_is_gone(path: Path) -> None:
    filled(path)
    path.unlink()
    path.with_name("joblet.db-wal").write_bytes(b"x" * 4096)
    error = refusal(path)
    assert "joblet.db-wal is there and joblet.db is not" in error.why
    assert not path.exists()


def test_another_programs_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE jobs (x)")
    db.close()
    before = path.read_bytes()
    assert "another program" in refusal(path).why
    assert path.read_bytes() == before


def test_a_newer_servers_database(path: Path) -> None:
    filled(path, 1)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=7")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    before = path.read_bytes()
    error = refusal(path)
    assert path.read_bytes() == before
    assert isinstance(error, NewerRelease)
    assert error.why == "they were written by a newer Joblet (schema 7, this one knows 2)"
    assert "install that version again" in error.hint


def test_an_older_servers_database_is_brought_up_to_date(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path, 3)
    grown = (*records_file.MIGRATIONS, ("ALTER TABLE jobs ADD COLUMN colour TEXT",))
    monkeypatch.setattr(records_file, "MIGRATIONS", grown)
    filled(path, 4)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*), count(colour) FROM jobs").fetchone() == (4, 0)
        assert db.execute("PRAGMA user_version").fetchone() == (len(grown),)
    db.close()


def test_a_kill_at_any_step_of_a_migration_is_safe(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All versions that are missing are one transaction: the old database, or the new one."""
    filled(path, 3)
    old = path.read_bytes()
    grown = (
        *records_file.MIGRATIONS,
        ("ALTER TABLE jobs ADD COLUMN colour TEXT", "UPDATE jobs SET colour = 'red'"),
        ("CREATE TABLE shades (colour TEXT)", "INSERT INTO shades SELECT colour FROM jobs"),
    )
    old_version, new = len(grown) - 2, len(grown)
    steps = sum(map(len, grown[old_version:]))
    found = set()
    for step in range(1, steps + 6):
        for file in path.parent.iterdir():
            file.unlink()
        path.write_bytes(old)
        argv = [sys.executable, "-c", MIGRATOR, str(path), str(step), repr(grown)]
        child = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=60)
        assert child.returncode in (0, -signal.SIGKILL), child.stderr
        with sqlite3.connect(path) as db:
            [version] = db.execute("PRAGMA user_version").fetchone()
            [integrity] = db.execute("PRAGMA integrity_check").fetchone()
        db.close()
        assert integrity == "ok"
        found.add((child.returncode, version))
        with monkeypatch.context() as patch:
            patch.setattr(records_file, "MIGRATIONS", grown)
            filled(path, 4)
        with sqlite3.connect(path) as db:
            assert db.execute("SELECT count(*) FROM shades").fetchone() == (3,)
            assert db.execute("SELECT count(*), count(colour) FROM jobs").fetchone() == (4, 3)
        db.close()
    assert found == {(-signal.SIGKILL, old_version), (-signal.SIGKILL, new), (0, new)}


def test_a_migration_that_fails_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path, 3)
    broken = ("ALTER TABLE jobs ADD COLUMN colour TEXT", "CREATE TABLE jobs (x)")
    monkeypatch.setattr(records_file, "MIGRATIONS", (*records_file.MIGRATIONS, broken))
    with pytest.raises(Internal):
        filled(path, 4)
    monkeypatch.undo()
    filled(path, 4)


def test_a_database_in_the_making_is_made_again(path: Path) -> None:
    path.with_name("joblet.db.new").write_bytes(b"half a datab")
    filled(path, 1)
    assert not path.with_name("joblet.db.new").exists()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none" / "joblet.db")
    assert isinstance(error, FailedPrecondition)
    assert "No such file or directory" in error.why
    assert f"{tmp_path}/none must be a directory" in error.hint


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal(tmp_path / "file" / "joblet.db").why


@pytest.mark.parametrize("there", [False, True], ids=["new", "old"])
def test_a_directory_that_cannot_be_written(path: Path, *, there: bool) -> None:
    """As somebody else than root, to whom a mode means nothing."""
    if there:
        filled(path, 1)
        path.with_name("joblet.db.lock").unlink()
    script = """
import asyncio, os, sys
from pathlib import Path
from joblet.errors import JobletError
from joblet.server.records import Records
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    asyncio.run(Records.open(Path(sys.argv[1])))
except JobletError as error:
    print(error.code, error.text)
"""
    path.parent.chmod(0o555)
    for parent in path.parents:
        if parent.stat().st_uid == os.getuid() and parent.is_relative_to("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o111)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.parent.chmod(0o700)
    assert done.stderr == ""
    assert done.stdout.startswith(f"FAILED_PRECONDITION cannot open the records in {path}: ")
    assert "Permission denied" in done.stdout
    assert "must be a directory that the server's user can write" in done.stdout


def test_a_database_that_cannot_be_written(path: Path) -> None:
    """A file of another user's in a directory of our own, or a read-only filesystem."""
    filled(path, 1)
    db = records_file.connect(path, query_only=True)
    try:
        with pytest.raises(sqlite3.OperationalError) as caught:
            db.execute("DELETE FROM jobs")
    finally:
        db.close()
    error = records_file.translated("record job x", caught.value)
    assert isinstance(error, FailedPrecondition)
    assert "must be able to write" in error.hint
