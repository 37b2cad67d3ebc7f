# SPDX-License-Identifier: MIT
"""What may become a job: requests that are refused, commands that are found, what systemctl
shows."""

import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from joblet.config import UID_FIRST, UID_LAST, UIDS_PER_JOB, InitPolicy
from joblet.errors import InvalidArgument, JobletError, PermissionDenied, ResourceExhausted
from joblet.launch.plan import MAX_STRING, MAX_STRINGS, Plan
from joblet.model import JOURNALD, JobSpec
from joblet.server import admission
from joblet.server.admission import (
    DEFAULT_PATH,
    Permits,
    check_profile,
    describe,
    environment,
    find_command,
    free_uid_base,
    validate,
    work_dir,
)
from tests.unit.server.support import job, job_id

ENV = environment(job_id(1), JobSpec("true"))
MAX_PLAN = InitPolicy().max_plan_bytes


# -- the request -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (JobSpec(""), "command is required"),
        (JobSpec("a\0b"), "NUL"),
        (JobSpec("true", args=("fine", "a\0b")), "NUL"),
        (JobSpec("true", work_dir="a\0b"), "NUL"),
        (JobSpec("true", environment={"A": "a\0b"}), "NUL"),
        (JobSpec("true", secret_environment={"A": "a\0b"}), "NUL"),
        (JobSpec("true", args=("x" * MAX_STRING,)), f"longer than {MAX_STRING - 1} bytes"),
        (JobSpec("true", args=("ä" * (MAX_STRING // 2),)), f"longer than {MAX_STRING - 1} bytes"),
        (JobSpec("true", args=("x" * (MAX_STRING - 1),) * 7), "arguments and environment take"),
        (JobSpec("true", args=("",) * MAX_STRINGS), "arguments or variables"),
        (
            JobSpec("true", environment={f"A{n}": "" for n in range(MAX_STRINGS)}),
            "arguments or variables",
        ),
        (JobSpec("true", name="a\nb"), "its name"),
        (JobSpec("true", name="\x1b[31m"), "its name"),
        (JobSpec("true", name="x" * 257), "longer than 256"),
        (JobSpec("true", environment={"": "x"}), "is not a name"),
        (JobSpec("true", environment={"A=B": "x"}), "'A=B' is not a name"),
        (JobSpec("true", environment={"1A": "x"}), "is not a name"),
        (JobSpec("true", environment={"Ä": "x"}), "is not a name"),
        (JobSpec("true", environment={"A" * 300: "x"}), "is not a name"),
        (JobSpec("true", secret_environment={"A B": "x"}), "is not a name"),
        (JobSpec("true", environment={"A": "x" * 32769}), "A is longer than 32768"),
        (JobSpec("true", environment={"A": "ä" * 16385}), "A is longer than 32768"),
        (JobSpec("true", network="none-such"), "there is no network 'none-such'"),
        (JobSpec("true", network="isolated"), "there is no network"),
        (JobSpec("true", overflow_strategy="pray"), "there is no overflow_strategy 'pray'"),
        (JobSpec("true", on_full="x" * 999), "there is no on_full 'xxx"),
    ],
)
def test_refused(spec: JobSpec, why: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(why)) as caught:
        validate(spec)
    assert len(str(caught.value)) < 300
    assert str(caught.value).startswith("cannot run the job: ")


@pytest.mark.parametrize(
    "spec",
    [
        JobSpec("true"),
        JobSpec("true", args=("", "-x", "ä", "a b", "\n", "\x1b")),
        JobSpec("true", args=("x" * (MAX_STRING - 1),)),
        JobSpec("true", name="x" * 256),
        JobSpec("true", name="Tränen 42"),
        JobSpec("true", environment={"_": "", "a1": "x" * 32768}),
        JobSpec("true", network="host"),
        JobSpec("true", network="bridge"),
        JobSpec("true", work_dir="anywhere/at all"),
    ],
)
def test_accepted(spec: JobSpec) -> None:
    validate(spec)


TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)))


@settings(max_examples=60, deadline=None)
@given(
    args=st.lists(TEXT, max_size=5),
    value=TEXT,
    times=st.sampled_from([1, 1000, 9000, 40_000]),
    work=TEXT,
)
def test_what_is_accepted_fits_into_a_plan(
    args: list[str], value: str, times: int, work: str
) -> None:
    """Init mode refuses larger ones, and by then the job would have a record."""
    spec = JobSpec(
        "true",
        args=tuple(arg * times for arg in args),
        environment={"A": value * 100},
        work_dir=work * times,
    )
    try:
        validate(spec)
    except InvalidArgument:
        assume(times > 1 or len(value) > 50)
        return
    made = admission.plan(job(spec=spec), "/usr/bin/true", {"MemoryMax": 2**60}, grace_us=1)
    data = made.to_bytes()
    assert len(data) <= MAX_PLAN
    assert Plan.from_bytes(data) == made


def test_the_longest_requests_fit_into_a_plan() -> None:
    for char in ("x", "ä", "\x01", "\U0001f600", '"'):
        size = len(char.encode())
        most = (MAX_STRING - 1) // size
        for count in range(1, 8):
            spec = JobSpec("true", args=(char * most,) * count, work_dir=char * most)
            try:
                validate(spec)
            except InvalidArgument:
                continue
            made = admission.plan(job(spec=spec), "/usr/bin/true", {}, grace_us=1)
            assert len(made.to_bytes()) <= MAX_PLAN


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["true", "sh", "env"])
def test_found_on_the_jobs_path(command: str) -> None:
    path = find_command(command, ENV)
    assert path.endswith(f"/{command}")
    assert Path(path).stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("/usr/bin/true", "/usr/bin/true"),
        ("/bin/sh", "/bin/sh"),
        ("/usr/bin/../bin/true", "/usr/bin/true"),
        ("/usr//bin/./true", "/usr/bin/true"),
        ("../usr/bin/true", "/usr/bin/true"),  # from /work
    ],
)
def test_found_by_its_path(command: str, path: str) -> None:
    assert find_command(command, ENV) == path


def test_the_first_of_the_path_wins() -> None:
    assert find_command("true", {"PATH": "/nowhere:/bin:/usr/bin"}) == "/bin/true"
    assert find_command("true", {"PATH": "/usr/bin:/bin"}) == "/usr/bin/true"
    assert find_command("true", {}) in {"/usr/bin/true", "/bin/true"}


@pytest.mark.parametrize(
    "command",
    [
        "no-such-command",
        "./true",
        "bin/true",
        "../usr/bin/../../etc/passwd",
        "/etc/passwd",
        "/usr/bin/../../etc/passwd",
        "/usr/../etc/passwd",
        "/usr",
        "/",
        ".",
        "..",
        "/usr/bin/no-such-command",
        "/usr/bin/env/true",
        "/proc/self/exe",
        "/tmp",
        "/work/upload",
        "~/true",
        "true ",
        " ",
        "$SHELL",
        "true;reboot",
        "a" * 5000,
        "a/" * 5000,
    ],
)
def test_not_found(command: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        find_command(command, ENV)
    assert caught.value.why == f"command not found: {command:.200}"
    assert caught.value.hint


@pytest.mark.parametrize("command", ["./upload", "/work/upload", "x/../upload", "/work/a/../b"])
def test_what_would_have_to_be_uploaded(command: str) -> None:
    with pytest.raises(InvalidArgument, match="command not found") as caught:
        find_command(command, ENV)
    assert caught.value.hint == ("/work is empty when a job begins, and uploads are not served yet")


@pytest.mark.parametrize("command", ["/usr/bin", "/usr/share/doc", "/bin/../usr/lib"])
def test_a_directory_is_no_command(command: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        find_command(command, ENV)
    assert str(caught.value) == f"cannot run {command}: it is a directory"
    assert caught.value.hint


def test_relative_to_the_work_directory() -> None:
    assert find_command("./true", ENV, "/usr/bin") == "/usr/bin/true"
    assert find_command("bin/true", ENV, "/usr") == "/usr/bin/true"
    assert find_command("../bin/true", ENV, "/usr/lib") == "/usr/bin/true"
    assert find_command("true", {"PATH": "."}, "/usr/bin") == "/usr/bin/true"
    assert find_command("true", {"PATH": "/nowhere:"}, "/usr/bin") == "/usr/bin/true"
    with pytest.raises(InvalidArgument, match=r"cannot run \./bin: it is a directory"):
        find_command("./bin", ENV, "/usr")
    with pytest.raises(InvalidArgument, match="command not found"):
        find_command("./true", ENV, "/work/deeper")
    with pytest.raises(InvalidArgument, match="command not found"):
        find_command("../../etc/passwd", ENV, "/usr/bin")


def not_executable() -> str:
    """A file beneath /usr that nobody may execute."""
    for path in Path("/usr/lib/python3").rglob("*.py"):
        if not path.stat().st_mode & 0o111:
            return str(path)
    raise AssertionError("no such file")


def test_not_executable() -> None:
    path = not_executable()
    with pytest.raises(InvalidArgument) as caught:
        find_command(path, ENV)
    why = "it is not executable for everybody (mode 0644)"
    assert str(caught.value) == f"cannot run {path:.200}: {why}"
    assert "python3 FILE" in caught.value.hint
    name = Path(path).name
    with pytest.raises(InvalidArgument) as caught:
        find_command(name, {"PATH": str(Path(path).parent)})
    assert str(caught.value) == f"cannot run {name}: {path}: {why}"


def test_a_later_directory_of_the_path_may_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As shells do it: what cannot be executed is passed over, and told if nothing better comes."""
    asked = {"/usr/a/tool": "no", "/usr/b/tool": "", "/usr/d/tool": admission.DIRECTORY}
    monkeypatch.setattr(admission, "_why_not", lambda path: asked.get(path, admission.NOT_THERE))
    assert find_command("tool", {"PATH": "/usr/a:/usr/b"}) == "/usr/b/tool"
    with pytest.raises(InvalidArgument, match="cannot run tool: /usr/a/tool: no"):
        find_command("tool", {"PATH": "/usr/d:/usr/a"})
    with pytest.raises(InvalidArgument, match="command not found: tool"):
        find_command("tool", {"PATH": "/usr/d"})


@pytest.mark.parametrize(
    "path",
    ["", ".", ":", "/etc", "usr/bin", "/usr/bin/../../etc", "/work", "/proc/self/root/usr/bin"],
)
def test_a_path_that_leads_nowhere(path: str) -> None:
    with pytest.raises(InvalidArgument, match="command not found: true") as caught:
        find_command("true", {"PATH": path})
    assert caught.value.hint == f"the job's PATH is {path}"


def test_a_path_that_leads_out_of_what_a_job_sees(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    with pytest.raises(InvalidArgument):
        find_command("tool", {"PATH": str(tmp_path)})
    with pytest.raises(InvalidArgument):
        find_command(str(tool), ENV)


# -- the environment -------------------------------------------------------------------------------


def test_the_environment_is_made_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_SERVER", "x")
    env = environment(job_id(1), JobSpec("true"))
    assert env == {
        "PATH": DEFAULT_PATH,
        "HOME": "/work",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "JOB_ID": job_id(1),
    }


def test_the_clients_variables_win_and_its_secrets_last() -> None:
    spec = JobSpec(
        "true",
        environment={"PATH": "/usr/bin", "A": "1", "B": "1", "JOB_ID": "mine"},
        secret_environment={"B": "2", "HOME": "/secret"},
    )
    env = environment(job_id(1), spec)
    assert (env["PATH"], env["A"], env["B"], env["HOME"]) == ("/usr/bin", "1", "2", "/secret")
    assert env["JOB_ID"] == "mine"


@pytest.mark.parametrize(
    ("asked", "is_"),
    [
        ("", "/work"),
        ("sub", "/work/sub"),
        ("./a/../b", "/work/b"),
        ("/tmp", "/tmp"),
        ("..", "/"),
        ("../../..", "/"),
    ],
)
def test_work_dir(asked: str, is_: str) -> None:
    assert work_dir(asked) == is_


# -- ids -------------------------------------------------------------------------------------------


def test_ids_run_out() -> None:
    every = range(UID_FIRST, UID_LAST + 1, UIDS_PER_JOB)
    assert Permits().uid_bases == every
    assert free_uid_base((), every) == every[0]
    assert free_uid_base(set(every) - {every[7]}, every) == every[7]
    assert free_uid_base({every[0], every[2]}, every) == every[1]
    with pytest.raises(ResourceExhausted, match=f"all {len(every)} ranges"):
        free_uid_base(set(every), every)


def test_ids_of_a_range_that_init_mode_narrows() -> None:
    first = UID_FIRST + 10 * UIDS_PER_JOB
    two = Permits(uid_first=first, uid_last=first + 2 * UIDS_PER_JOB - 1).uid_bases
    assert free_uid_base({first}, two) == first + UIDS_PER_JOB
    with pytest.raises(ResourceExhausted, match="all 2 ranges of user ids are in use") as info:
        free_uid_base(set(two), two)
    assert "uid_first and uid_last in /etc/joblet/init.yml" in info.value.hint


def test_profiles() -> None:
    validate(JobSpec("true", profile="strict"))
    with pytest.raises(InvalidArgument, match="no profile 'stric'") as info:
        validate(JobSpec("true", profile="stric"))
    assert info.value.hint.startswith("default, strict, trusted;")
    narrow = Permits(profiles=("default", "strict"))
    check_profile("strict", narrow)
    with pytest.raises(PermissionDenied, match="profile trusted is not permitted on this host"):
        check_profile("trusted", narrow)


def test_limits_of_a_process() -> None:
    validate(JobSpec("true", rlimits={"nofile": 16, "core": 1 << 40}))
    with pytest.raises(InvalidArgument, match="no limit 'cpu' of a process") as info:
        validate(JobSpec("true", rlimits={"cpu": 1}))
    assert info.value.hint.endswith("core, fsize, memlock, nofile, stack")
    with pytest.raises(InvalidArgument, match="limit nofile is 3, not between 16 and 1048576"):
        validate(JobSpec("true", rlimits={"nofile": 3}))


def test_strict_has_no_place_for_temporary_files_but_its_own() -> None:
    assert environment("id", JobSpec("true", profile="strict"))["TMPDIR"] == "/work"
    own = JobSpec("true", profile="strict", environment={"TMPDIR": "/work/t"})
    assert environment("id", own)["TMPDIR"] == "/work/t"
    assert "TMPDIR" not in environment("id", JobSpec("true", profile="default"))


@given(st.sets(st.integers(0, 40)))
def test_the_lowest_free_range(taken: set[int]) -> None:
    used = {UID_FIRST + number * UIDS_PER_JOB for number in taken}
    base = free_uid_base(used, Permits().uid_bases)
    number, rest = divmod(base - UID_FIRST, UIDS_PER_JOB)
    assert rest == 0
    assert number == min(set(range(42)) - taken)


# -- what systemctl shows --------------------------------------------------------------------------


def test_describe() -> None:
    spec = JobSpec("/usr/bin/python3", args=("train.py", "--epochs", "3"), name="net")
    assert describe(job(spec=spec)) == "rnx job 00000001 (net): python3 train.py --epochs 3"
    assert describe(job(spec=JobSpec("sh", args=("-c", "a\n  b\tc")))) == (
        "rnx job 00000001: sh -c a b c"
    )


WORD = st.text("qwyzQWYZ5", min_size=4, max_size=8)
NOISE = st.text("ab \t\n\x00\x07\x1b[m\x9b\u2028\u202eäé/")


@settings(max_examples=200)
@given(
    secrets=st.lists(WORD | st.tuples(WORD, NOISE, WORD).map("".join), min_size=1, max_size=4),
    parts=st.lists(NOISE | st.integers(0, 3), max_size=12),
    cut=st.booleans(),
)
def test_describe_shows_no_secret_and_obeys_no_terminal(
    secrets: list[str], parts: list[str | int], cut: bool
) -> None:
    texts = [secrets[part % len(secrets)] if isinstance(part, int) else part for part in parts]
    args = tuple(texts) if cut else ("".join(texts),)
    command = "".join(texts)[:50] or "true"
    spec = JobSpec(
        command,
        args=args,
        name="a " + secrets[0],
        secret_environment={f"S{number}": secret for number, secret in enumerate(secrets)},
    )
    shown = describe(job(spec=spec))
    assert shown.isprintable()
    assert len(shown) <= 100 + 30 + 256
    for secret in secrets:
        assert secret not in shown


def test_a_secret_in_another_is_not_shown_in_part() -> None:
    spec = JobSpec(
        "curl",
        args=("https://me:hunter2-and-more@host/",),
        secret_environment={"A": "hunter2", "B": "hunter2-and-more", "C": ""},
    )
    assert describe(job(spec=spec)) == "rnx job 00000001: curl https://me:***@host/"


# -- the plan --------------------------------------------------------------------------------------


def test_the_plan() -> None:
    spec = JobSpec(
        "sh",
        args=("-c", "true"),
        work_dir="sub",
        merge=True,
        log_driver=JOURNALD,
        timeout_us=7,
        environment={"A": "1"},
    )
    made = admission.plan(job(3, spec=spec), "/usr/bin/sh", {"TasksMax": 9}, grace_us=2_000_000)
    assert made == Plan(
        job=job_id(3),
        path="/usr/bin/sh",
        argv=("sh", "-c", "true"),
        env=environment(job_id(3), spec),
        uid_base=job(3).uid_base,
        cwd="/work/sub",
        hostname="job-00000003",
        description="rnx job 00000003: sh -c true",
        merge=True,
        journal=True,
        timeout_us=7,
        grace_us=2_000_000,
        stop_us=2_000_000 + admission.STOP_MARGIN_US,
        properties={"TasksMax": 9},
    )


@pytest.mark.parametrize("call", [lambda: validate(JobSpec("")), lambda: find_command("x/y", ENV)])
def test_refusals_are_for_people(call: Callable[[], None]) -> None:
    with pytest.raises(JobletError) as caught:
        call()
    assert str(caught.value).startswith("cannot run the job: ")
