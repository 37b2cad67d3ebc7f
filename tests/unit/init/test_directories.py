# SPDX-License-Identifier: MIT
"""Job directories as root makes them: modes, owners, pipes, `ctl`'s states, and what removing them
does not follow. Needs root, as the machine tests do."""

import concurrent.futures
import contextlib
import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from joblet import link
from joblet.errors import AlreadyExists, FailedPrecondition, Internal, NotFound
from joblet.init.directories import PIPE_SIZE, Directories

UID = 0x70000000
STREAMS = ("out", "err")
TREE = Path(__file__).resolve().parents[3]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def directories(base: Path) -> Iterator[Directories]:
    made = Directories(base)
    yield made
    made.close()


def new_id() -> str:
    return str(uuid.uuid4())


def make(directories: Directories, uid: int = UID, streams: tuple[str, ...] = STREAMS) -> str:
    """A job's directory, of which nobody holds anything."""
    job = new_id()
    fd, ends = directories.create(job, uid, streams)
    link.close_all([fd, *ends])
    return job


def bind(sock: socket.socket, path: Path) -> None:
    """Wherever it is: a path of a socket has 108 bytes."""
    fd = os.open(path.parent, os.O_PATH)
    try:
        sock.bind(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)


class Listener:
    """What a PID 1 does with `ctl`."""

    def __init__(self, directories: Directories, job: str, backlog: int = 8) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bind(self.socket, directories.base / job / "ctl")
        self.socket.listen(backlog)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()


def mode(path: Path) -> str:
    return stat.filemode(path.lstat().st_mode)


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


# --- the place ------------------------------------------------------------------------------------


def test_the_place_is_made_for_root_alone(base: Path) -> None:
    umask = os.umask(0o077)
    try:
        Directories(base).close()
    finally:
        os.umask(umask)
    assert mode(base) == "drwx--x--x"
    Directories(base).close()  # the second time it is there


@pytest.mark.parametrize("bits", [0o777, 0o775, 0o757, 0o1777])
def test_a_place_that_others_can_write_is_refused(base: Path, bits: int) -> None:
    base.mkdir()
    base.chmod(bits)
    with pytest.raises(Internal, match="written by others") as info:
        Directories(base)
    assert "chmod" in info.value.hint


def test_somebody_elses_place_is_refused(base: Path) -> None:
    base.mkdir()
    os.chown(base, 1000, 0)
    with pytest.raises(Internal, match="written by others"):
        Directories(base)


def test_a_place_that_is_none(base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    base.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Internal, match="cannot use"):
        Directories(base)
    base.unlink()
    base.write_text("")
    with pytest.raises(Internal, match="cannot use"):
        Directories(base)


def test_what_an_earlier_init_mode_left_is_known(directories: Directories, base: Path) -> None:
    first, second = make(directories, UID), make(directories, UID + 65536)
    (base / "lost+found").mkdir()
    (base / new_id()).mkdir()  # made, and no further
    again = Directories(base)
    try:
        assert {uid for _, uid in again.jobs()} == {UID, UID + 65536, -1}
        assert again.uids[first] == UID
        assert again.uids[second] == UID + 65536
        assert len(again.uids) == 3
    finally:
        again.close()


# --- create ---------------------------------------------------------------------------------------


def test_a_jobs_directory(directories: Directories, base: Path) -> None:
    umask = os.umask(0o077)
    try:
        job = new_id()
        fd, ends = directories.create(job, UID, STREAMS)
    finally:
        os.umask(umask)
    top = base / job
    assert (mode(top), owner(top)) == ("drwx------", (0, 0))
    assert (mode(top / "work"), owner(top / "work")) == ("drwx------", (UID, UID))
    for name in STREAMS:
        # whoever holds one may write, whatever uid it has; nobody but root gets there by name
        assert (mode(top / name), owner(top / name)) == ("p-w--w--w-", (0, 0))
    opened = os.open(top, os.O_RDONLY)
    assert os.path.sameopenfile(fd, opened)
    os.close(opened)
    assert directories.uids == {job: UID}
    assert len(ends) == 4
    for end in (fd, *ends):
        assert not os.get_inheritable(end)
    for reader, writer in (ends[:2], ends[2:]):
        assert fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ) == PIPE_SIZE == 1 << 20
        assert not os.get_blocking(reader)
        assert os.get_blocking(writer)
        with pytest.raises(BlockingIOError):  # not the end: there is a writer
            os.read(reader, 1)
        os.write(writer, b"x")
        os.close(writer)
        assert os.read(reader, 10) == b"x"
        assert os.read(reader, 10) == b""
        os.close(reader)
    os.close(fd)


def test_a_merged_job_has_one_fifo(directories: Directories, base: Path) -> None:
    job = make(directories, streams=("out",))
    assert sorted(path.name for path in (base / job).iterdir()) == ["out", "work"]
    job = make(directories, streams=())
    assert [path.name for path in (base / job).iterdir()] == ["work"]


def test_a_job_has_one_directory(directories: Directories, base: Path) -> None:
    job = make(directories)
    (base / job / "work" / "kept").write_text("")
    before = open_descriptors()
    with pytest.raises(AlreadyExists):
        directories.create(job, UID + 65536, STREAMS)
    assert open_descriptors() == before
    assert directories.uids == {job: UID}
    assert (base / job / "work" / "kept").exists()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_cannot_be_made_leaves_nothing(directories: Directories, base: Path) -> None:
    before = open_descriptors()
    job = new_id()
    with pytest.raises(Internal, match="make the job's directory"):
        directories.create(job, UID, ("out", "no/such/name"))
    assert open_descriptors() == before
    assert list(base.iterdir()) == []
    assert directories.uids == {}


def test_many_at_once(directories: Directories, base: Path) -> None:
    """Each job is made once, whoever asks how often at the same time."""
    before = open_descriptors()
    jobs = [new_id() for _ in range(20)]

    def create(job: str) -> bool:
        try:
            fd, ends = directories.create(job, UID, STREAMS)
        except AlreadyExists:
            return False
        link.close_all([fd, *ends])
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, jobs * 4))
    assert sum(made) == len(jobs)
    assert {path.name for path in base.iterdir()} == set(jobs) == set(directories.uids)
    for job in jobs:
        assert {path.name for path in (base / job).iterdir()} == {"out", "err", "work"}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(directories.remove, jobs))
    assert list(base.iterdir()) == []
    assert directories.uids == {}
    assert open_descriptors() == before


# --- connect --------------------------------------------------------------------------------------


def test_states_of_ctl(directories: Directories) -> None:
    job = make(directories)
    assert directories.connect(job) == (link.NEVER, None)
    assert directories.state(job) == link.NEVER
    with Listener(directories, job) as listener:
        state, sock = directories.connect(job)
        assert state == link.CONNECTED
        assert sock is not None
        assert not sock.get_inheritable()
        assert sock.gettimeout() == 0
        peer, _ = listener.socket.accept()
        sock.send(b"hello")
        assert peer.recv(10) == b"hello"
        peer.close()
        sock.close()
        assert directories.state(job) == link.LIVE
    assert directories.connect(job) == (link.GONE, None)
    assert directories.state(job) == link.GONE


def test_a_full_backlog_is_a_job_that_lives(directories: Directories) -> None:
    job = make(directories)
    with Listener(directories, job, backlog=0):
        _, sock = directories.connect(job)
        assert sock is not None
        assert directories.connect(job) == (link.BUSY, None)
        assert directories.state(job) == link.LIVE
        sock.close()


def test_what_cannot_be_connected_is_not_taken_for_gone(
    directories: Directories, base: Path
) -> None:
    """What lives must not be cleaned up, so only two answers of the kernel say that it does not."""
    job = make(directories)
    ctl = base / job / "ctl"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:  # another kind of socket
        bind(stream, ctl)
        stream.listen()
        before = open_descriptors()
        for ask in (
            directories.connect,
            directories.state,
            directories.results,
            directories.remove,
        ):
            with pytest.raises(Internal, match="cannot connect"):
                ask(job)
        assert open_descriptors() == before
    assert (base / job).exists()
    ctl.unlink()
    ctl.symlink_to("nowhere")
    assert directories.state(job) == link.NEVER


def test_no_directory_no_ctl(directories: Directories, base: Path, tmp_path: Path) -> None:
    job = new_id()
    (tmp_path / "elsewhere").mkdir()
    (base / job).symlink_to(tmp_path / "elsewhere")
    for missing in (new_id(), job):
        for ask in (directories.connect, directories.state, directories.results):
            with pytest.raises(NotFound):
                ask(missing)


def test_a_look_costs_no_descriptor(directories: Directories) -> None:
    job = make(directories)
    with Listener(directories, job, backlog=2):
        before = open_descriptors()
        for _ in range(20):
            assert directories.state(job) == link.LIVE
        assert open_descriptors() == before


# --- results --------------------------------------------------------------------------------------


def test_results(directories: Directories, base: Path) -> None:
    job = make(directories)
    with Listener(directories, job):
        (base / job / "exit").write_text("record")
        with pytest.raises(FailedPrecondition, match="still there"):
            directories.results(job)
        with pytest.raises(FailedPrecondition, match="still there"):
            directories.remove(job)
        assert (base / job).exists()
    names, fds = directories.results(job)
    assert names == ["exit"]
    assert os.read(fds[0], 100) == b"record"
    assert fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert not os.get_inheritable(fds[0])
    link.close_all(fds)
    (base / job / "err.rest").write_text("e")
    (base / job / "out.rest").write_text("o")
    names, fds = directories.results(job)
    assert names == ["exit", "out.rest", "err.rest"]
    link.close_all(fds)


def test_results_are_no_links(directories: Directories, base: Path) -> None:
    job = make(directories)
    (base / job / "exit").write_text("record")
    (base / job / "out.rest").symlink_to("/etc/shadow")
    before = open_descriptors()
    with pytest.raises(Internal, match=r"read out\.rest"):
        directories.results(job)
    assert open_descriptors() == before


def test_a_job_without_results(directories: Directories) -> None:
    assert directories.results(make(directories)) == ([], [])


# --- remove ---------------------------------------------------------------------------------------


def test_remove(directories: Directories, base: Path) -> None:
    job, other = make(directories), make(directories, UID + 65536)
    directories.remove(job)
    assert [path.name for path in base.iterdir()] == [other]
    assert directories.uids == {other: UID + 65536}
    directories.remove(job)  # what is not there is removed
    directories.uids[job] = UID  # a launch that got no further than this
    directories.remove(job)
    assert directories.uids == {other: UID + 65536}


def test_links_are_not_followed(directories: Directories, base: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "inner").mkdir(parents=True)
    (precious / "file").write_text("kept")
    job = make(directories)
    work = base / job / "work"
    (work / "link").symlink_to(precious)
    (work / "inner").symlink_to(precious / "inner", target_is_directory=True)
    (work / "file").symlink_to(precious / "file")
    (work / "absolute").symlink_to("/")
    (work / "up").symlink_to("../..")
    (work / "loop").symlink_to("loop")
    (work / "hard").hardlink_to(precious / "file")
    (work / "deep").mkdir()
    (work / "deep" / "link").symlink_to(precious)
    (base / job / "exit").symlink_to(precious / "file")
    (base / job / "out.rest").symlink_to(precious)
    directories.remove(job)
    assert list(base.iterdir()) == []
    assert (precious / "file").read_text() == "kept"
    assert (precious / "inner").is_dir()


def test_a_work_that_is_a_link_is_only_unlinked(
    directories: Directories, base: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    job = make(directories)
    (base / job / "work").rmdir()
    (base / job / "work").symlink_to(precious)
    directories.remove(job)
    assert not (base / job).exists()
    assert (precious / "file").exists()


def test_every_kind_of_file_goes(directories: Directories, base: Path) -> None:
    job = make(directories)
    work = base / job / "work"
    os.mkfifo(work / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        bind(sock, work / "socket")
    for name in (b"\xff\xfe", b"\n", b"-rf", b"..."):
        (work / os.fsdecode(name)).write_text("")
        (work / os.fsdecode(b"d" + name)).mkdir()
    for number in range(5):  # names such as removing gives itself
        (work / str(number)).mkdir()
        (base / job / str(number)).mkdir()
        (base / job / str(number) / "1").mkdir()
    locked = work / "locked"
    (locked / "inner").mkdir(parents=True)
    locked.chmod(0)
    directories.remove(job)
    assert list(base.iterdir()) == []


def nest(top: Path, depth: int) -> None:
    """Directories in directories, here and there with a file."""
    here = os.open(top, os.O_RDONLY)
    try:
        for number in range(depth):
            os.mkdir("d" * 20, dir_fd=here)
            if number % 100 == 0:
                os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
            inner = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
    finally:
        os.close(here)


def test_deeper_than_any_stack(directories: Directories, base: Path) -> None:
    """A job can nest directories without an end, and longer than any path."""
    job = make(directories)
    before = open_descriptors()
    try:
        nest(base / job / "work", 3000)
        directories.remove(job)
        assert list(base.iterdir()) == []
        assert open_descriptors() == before
    finally:
        # whatever happens on the way: pytest's own clean-up goes no deeper than Python's stack,
        # and what is left fails it in every run that follows
        subprocess.run(["rm", "-rf", "--", str(base)], check=True)
        base.mkdir()


def test_many_files_go(directories: Directories, base: Path) -> None:
    job = make(directories)
    work = base / job / "work"
    for number in range(3000):
        (work / f"file-{number}").touch()
        if number % 10 == 0:
            (work / f"directory-{number}").mkdir()
    directories.remove(job)
    assert list(base.iterdir()) == []


def test_a_removal_that_was_cut_off_goes_on(directories: Directories, base: Path) -> None:
    job = make(directories)
    for name in ("1", "2", "17"):  # moved up already
        (base / job / name / "below" / "1").mkdir(parents=True)
    (base / job / "work" / "left").mkdir()
    directories.remove(job)
    assert list(base.iterdir()) == []


def test_two_that_remove_at_once(directories: Directories, base: Path) -> None:
    """The later one may fail, but never removes anything else; a third finds nothing."""
    for _ in range(10):
        job = make(directories)
        for number in range(100):
            (base / job / "work" / str(number)).mkdir()

        def remove(job: str = job) -> None:
            with contextlib.suppress(Internal):
                directories.remove(job)

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: remove(), range(2)))
        directories.remove(job)
        assert list(base.iterdir()) == []


MOUNTED = """
import sys
from pathlib import Path
from joblet.errors import Internal
from joblet.init.directories import Directories
from joblet.launch import syscalls
from tests.unit.init.test_directories import UID, make
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
directories = Directories(Path(sys.argv[1]))
job = make(directories)
file = f"{sys.argv[1]}/{job}/work/file"
Path(file).touch()
syscalls.mount("/etc/hostname", file, None, syscalls.MS_BIND)
try:
    directories.remove(job)
except Internal as error:
    print(error)
print(directories.uids[job] == UID)
syscalls.umount2(file)
directories.remove(job)
print(directories.uids)
"""


def test_what_cannot_be_removed_is_said_and_remembered(base: Path) -> None:
    """A mount point, which even root does not unlink, in a mount namespace of a process's own."""
    done = subprocess.run(
        [sys.executable, "-c", MOUNTED, str(base)],
        cwd=TREE, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    error, remembered, removed = done.stdout.splitlines()
    assert error.startswith("cannot remove the directory of job ")
    assert os.strerror(errno.EBUSY) in error
    assert (remembered, removed) == ("True", "{}")
    assert list(base.iterdir()) == []
