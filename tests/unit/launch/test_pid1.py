# SPDX-License-Identifier: MIT
"""PID 1 and the command as real processes: how a job starts, what ends it, and what it cannot do
about that. A machine with systemd is in tests/machine/test_pid1.py."""

import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from joblet.init import seccomp
from joblet.launch import pid1, protocol
from joblet.launch.plan import MAX_STRING, PROFILES
from tests.unit.launch.support import ENV, Host, Job, descriptors, eventually, python

SECOND_US = 1_000_000
DEAF = ["sh", "-c", "trap '' TERM INT HUP; echo deaf; while :; do sleep 0.05; done"]


def line_of(job: Job, stream: str = "out") -> bytes:
    """What the job has printed, once that is a line."""
    assert job.holder
    fd = job.holder.streams[stream]
    data = b""

    def more() -> bool:
        nonlocal data
        try:
            data += os.read(fd, 4096)
        except BlockingIOError:
            return False
        return data.endswith(b"\n")

    eventually(more, "a line of the job")
    return data


def started(host: Host, argv: list[str], **fields: object) -> Job:
    """A job that runs, its hello read."""
    job = host.launch(argv, **fields)
    assert job.holder
    job.holder.hello()
    job.holder.expect(protocol.STARTED)
    return job


# --- the way of an ordinary job -------------------------------------------------------------------


def test_what_a_holder_hears(host: Host) -> None:
    before = time.time_ns() // 1000
    job = host.launch(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert job.holder
    assert job.holder.hello() == ["out", "err"]
    told = job.holder.expect(protocol.STARTED)
    assert told["pid"] == 2
    record = job.holder.end()
    assert (record.job, record.code, record.signal, record.ended_by) == (job.plan.job, 7, 0, "")
    assert before <= record.started_us == told["at_us"] <= record.ended_us
    assert record.usage["cpu_usec"] > 0
    assert record.rest is None
    assert job.holder.output("out") == b"out\n"
    assert job.holder.output("err") == b"err\n"
    # it waits for the acknowledgement, without a deadline
    assert not job.gone
    assert job.holder.silent()
    assert job.record() == record
    job.acknowledge()
    assert job.files() == {"ctl", "exit", "out", "err", "work"}


def test_exit_codes(host: Host) -> None:
    for code in sorted({*range(0, 256, 5), 1, 2, 124, 126, 127, 128, 129, 137, 143}):
        record, _ = host.run(["sh", "-c", f"exit {code}"])
        assert (record.code, record.signal, record.ended_by) == (code, 0, "")


@pytest.mark.parametrize("name", ["TERM", "KILL", "HUP", "SEGV", "USR1", "ABRT", "PIPE"])
def test_a_command_ended_by_a_signal(host: Host, name: str) -> None:
    record, _ = host.run(["sh", "-c", f"kill -{name} $$"])
    assert (record.code, record.signal, record.ended_by) == (0, signal.Signals[f"SIG{name}"], "")


def test_a_merged_job_has_one_stream(host: Host) -> None:
    job = host.launch(["sh", "-c", "echo 1; echo 2 >&2; echo 3"], merge=True)
    assert job.holder
    assert job.holder.hello() == ["out"]
    job.holder.end()
    assert job.holder.output() == b"1\n2\n3\n"
    job.acknowledge()
    assert job.files() == {"ctl", "exit", "out", "work"}


ODD = [
    "",
    " ",
    "a b",
    "'\"$HOME`id`\\",
    "*",
    "-n",
    "--",
    "\n\t\x01\x7f",
    "ü☃\U0001f600",
    "\ufffd\u200b",
]
SHOW_ARGV = (
    "import sys; sys.stdout.buffer.write(b'\\0'.join(map(__import__('os').fsencode, sys.argv[1:])))"
)


def test_arguments_arrive_as_they_are(host: Host) -> None:
    record, output = host.run([*python(SHOW_ARGV), *ODD])
    assert record.code == 0
    assert output.split(b"\0") == [word.encode() for word in ODD]


def test_the_locale_of_the_service_changes_nothing(tmp_path: Path) -> None:
    """Text becomes UTF-8 whatever Python thinks of the environment it was started in."""
    with Host(tmp_path, python=["-X", "utf8=0"], env={"LC_ALL": "C"}) as ascii_host:
        env = {**ENV, "VALUE": "ü☃", "PYTHONUTF8": "1"}
        record, output = ascii_host.run([*python(SHOW_ARGV), "ü☃"], env=env, cwd="/work/ü☃")
        assert record.step == ""
        assert output == "ü☃".encode()
        record, output = ascii_host.run(["sh", "-c", "echo $VALUE; pwd"], env=env, cwd="/work/ü☃")
        assert output == "ü☃\n/work/ü☃\n".encode()


def test_the_environment_is_the_plans_alone(host: Host) -> None:
    env = {"PATH": "/usr/bin", "A": "b=c", "EMPTY": "", "LINES_": "1\n2", "U": "ü"}
    _, output = host.run(["env", "-0"], env=env)
    assert dict(line.split("=", 1) for line in output.decode().split("\0") if line) == env


def test_a_mebibyte_of_environment(host: Host) -> None:
    env = {f"VARIABLE_{n}": chr(ord("a") + n % 26) * 65_000 for n in range(16)}
    script = "import os; print(sum(len(v) for k, v in os.environ.items() if k.startswith('VAR')))"
    record, output = host.run(python(script), env=env | ENV)
    assert record.code == 0
    assert int(output) == 16 * 65_000 > 1_000_000


def test_more_than_the_kernel_takes_is_a_failed_launch(host: Host) -> None:
    # 8 MiB of stack give execve 2 MiB for both
    argv = ["true", *["a" * (MAX_STRING - 1)] * 60]
    record, _ = host.run(argv)
    assert (record.ended_by, record.step, record.errno) == ("launch", "exec", errno.E2BIG)


def test_nothing_but_three_descriptors(host: Host) -> None:
    # the shell opens none to look for one
    look = (
        "for n in $(seq 0 300); do [ -e /proc/$$/fd/$n ] && echo $n; done; readlink /proc/$$/fd/0"
    )
    _, output = host.run(["sh", "-c", look])
    assert output == b"0\n1\n2\n/dev/null\n"


def test_what_a_process_inherits(host: Host) -> None:
    script = "umask; ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; "
    script += "grep -E '^(Sig(Blk|Ign)|NoNewPrivs|CapInh|CapBnd|CapAmb|Groups)' /proc/self/status"
    _, output = host.run(["sh", "-c", script])
    umask, soft, hard, core, adjust, *status = output.decode().splitlines()
    assert (umask, soft, core, adjust) == ("0022", "1024", "0", "0")
    assert 1024 <= int(hard) <= 524288
    found = dict(line.split(":", 1) for line in status)
    found = {name: value.strip() for name, value in found.items()}
    assert found["SigBlk"] == "0" * 16
    assert not int(found["SigIgn"], 16) & ~(0b11 << 31)  # 32 and 33 are libc's own
    assert found["NoNewPrivs"] == "1"
    assert found["CapInh"] == found["CapAmb"] == "0" * 16
    assert not int(found["CapBnd"], 16) & (1 << 21)  # CAP_SYS_ADMIN
    assert found["Groups"] == ""


def test_limits_of_a_process(host: Host) -> None:
    """Soft and hard, for a job's root for good; that they can be raised is test_sandbox.py's."""
    asked = {"nofile": 4096, "core": 65536, "fsize": 1 << 20, "memlock": 1 << 22, "stack": 1 << 24}
    script = "for n in n c f l s; do ulimit -S$n; ulimit -H$n; done; ulimit -Hn 5000 2>&1; "
    script += "head -c 2000000 /dev/zero > /work/x; stat -c %s /work/x"
    _, output = host.run(["bash", "-c", script], rlimits=asked)
    *limits, refusal, size = output.decode().splitlines()
    assert [int(text) for text in limits] == [4096, 4096, 64, 64, 1024, 1024, 4096, 4096,
                                              1 << 14, 1 << 14]  # fmt: skip
    assert "Operation not permitted" in refusal
    assert size == str(1 << 20)


def test_more_descriptors_than_the_host_has(host: Host) -> None:
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    record, _ = host.run(["true"], rlimits={"nofile": most + 1})
    assert (record.ended_by, record.step, record.errno) == ("launch", "rlimits", errno.EPERM)


def test_inherited_sockets_go_neither_to_the_zygote_nor_to_a_pid1(tmp_path: Path) -> None:
    """systemd's listening socket comes as a descriptor that is not close-on-exec."""
    reader, writer = os.pipe()
    with Host(tmp_path, extra_fds=[writer]) as other:
        os.close(writer)
        job = started(other, ["sleep", "60"])
        pipe = str(Path(f"/proc/self/fd/{reader}").readlink())
        for pid in (other.process.pid, job.pid):
            assert pipe not in descriptors(pid)
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""  # nobody has the other end
    os.close(reader)


def test_a_pid1_says_what_it_is(host: Host) -> None:
    job = started(host, ["sleep", "60"])
    assert Path(f"/proc/{job.pid}/comm").read_text() == "joblet-pid1\n"
    cmdline = Path(f"/proc/{job.pid}/cmdline").read_bytes().rstrip(b"\0")
    assert cmdline == f"joblet: {job.plan.job[:8]} sleep".encode()
    # and it has given up all but what it needs
    status = Path(f"/proc/{job.pid}/status").read_text()
    assert "CapEff:\t0000000000000020\n" in status  # CAP_KILL


def test_a_job_has_a_session_keyring_of_its_own(host: Host) -> None:
    """keyctl(2): a key that one job adds to its session is not found by another."""
    script = """
import ctypes, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
add, keyctl = (248, 250) if platform.machine() == "x86_64" else (217, 219)
if sys.argv[1] == "add":
    print(libc.syscall(add, b"user", b"joblet-test", b"secret", 6, -3) > 0)
print(libc.syscall(keyctl, 10, -3, b"user", b"joblet-test", 0) > 0)  # KEYCTL_SEARCH
"""
    found = [host.run([*python(script), word])[1].split() for word in ("add", "look", "add")]
    assert found == [[b"True", b"True"], [b"False"], [b"True", b"True"]]


ATTEMPTS = """
import ctypes, errno, platform, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, result):
    print(name, errno.errorcode[ctypes.get_errno()] if result < 0 else "ok")
x86 = platform.machine() == "x86_64"
attempt("request_key", libc.syscall(249 if x86 else 218, b"user", b"joblet-none", None, -3))
attempt("unshare", libc.unshare(0x10000000))
attempt("clone3", libc.syscall(435, None, 0))
attempt("io_uring", libc.syscall(425, 1, None))
attempt("ptrace", libc.ptrace(0, 0, None, None))
def worker():
    attempt("in a thread", libc.syscall(425, 1, None))
thread = threading.Thread(target=worker)
thread.start()
thread.join()
print([line for line in open("/proc/self/status") if line.startswith("Seccomp:")])
"""


def attempts(host: Host, **fields: object) -> list[str]:
    record, output = host.run(python(ATTEMPTS), **fields)
    assert record.code == 0
    return output.decode().splitlines()


def test_filters_of_system_calls(host: Host) -> None:
    """Of what every user may do, for a job without filters, with its profile's, and with them
    and all that its profile permits."""
    filters = seccomp.make(PROFILES)
    bare = attempts(host)
    assert bare == ["request_key ENOKEY", "unshare ENOSPC", "clone3 EINVAL", "io_uring EFAULT",
                    "ptrace ok", "in a thread EFAULT", "['Seccomp:\\t0\\n']"]  # fmt: skip
    default = attempts(host, filters=filters["default"])
    assert default == ["request_key EPERM", "unshare EPERM", "clone3 ENOSYS", "io_uring EPERM",
                       "ptrace ok", "in a thread EPERM", "['Seccomp:\\t2\\n']"]  # fmt: skip
    strict = attempts(host, filters=filters["strict"], profile="strict")
    assert strict == [*default[:4], "ptrace EPERM", *default[5:]]
    trusted = attempts(host, filters=filters["trusted"], profile="trusted")
    assert trusted == ["request_key ENOKEY", "unshare ok", "clone3 EINVAL", "io_uring EFAULT",
                       "ptrace ok", "in a thread EFAULT", "['Seccomp:\\t2\\n']"]  # fmt: skip


def test_a_filter_that_the_kernel_does_not_take(host: Host) -> None:
    job = host.launch(["true"], filters=((b"\xff" * 8, 0),))
    assert job.holder
    job.holder.hello()
    record = job.holder.end()
    assert (record.ended_by, record.step, record.errno) == ("launch", "seccomp", errno.EINVAL)
    assert "cannot prepare the job: seccomp: Invalid argument" in record.detail


WRITES = (
    "for d in /work /tmp /var/tmp /run /dev/shm /dev /etc /; do touch $d/x 2>&1 && echo $d; done"
)


def test_strict_writes_to_its_work_alone(host: Host) -> None:
    _, everybody = host.run(["sh", "-c", WRITES])
    written = [line for line in everybody.decode().splitlines() if "touch" not in line]
    assert written == ["/work", "/tmp", "/var/tmp", "/run", "/dev/shm"]
    _, strict = host.run(["sh", "-c", WRITES], profile="strict")
    assert [line for line in strict.decode().splitlines() if "touch" not in line] == ["/work"]
    assert strict.count(b"Read-only file system") == 7


# --- launches that fail ---------------------------------------------------------------------------


def test_outside_its_scope_a_pid1_starts_nothing(host: Host) -> None:
    """A scope can be dead on arrival (systemd 252): PID 1 sees that it is not in it."""
    job = host.fork(["touch", "/work/ran"])
    job.wait_ready()
    holder = job.go()
    assert holder.hello() == ["out", "err"]
    told = holder.expect(protocol.LAUNCH_FAILED)
    assert told["step"] == "scope"
    assert "PID 1 is in" in told["detail"]
    record = holder.end()
    assert (record.ended_by, record.step, record.errno) == ("launch", "scope", 0)
    assert (record.code, record.signal, record.started_us) == (0, 0, 0)
    assert record.detail == told["detail"]
    assert holder.output() == b""  # the streams end all the same
    job.acknowledge()
    assert not (job.path / "work" / "ran").exists()


def test_without_cgroup2_a_pid1_starts_nothing(tmp_path: Path) -> None:
    with Host(tmp_path, cgroup=False) as bare:
        job = bare.fork(["true"])
        job.wait_ready()
        assert job.go().end().step == "scope"
        job.acknowledge()


START = "cannot start the command: "
ENTER = "cannot enter the work directory: "


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(
    ("fields", "step", "number", "text"),
    [
        ({"path": "/nonexistent"}, "exec", errno.ENOENT,
         START + "/nonexistent: No such file or directory"),
        ({"path": "/usr"}, "exec", errno.EACCES, START + "/usr: Is a directory"),
        ({"path": "/etc/passwd"}, "exec", errno.EACCES, START + "/etc/passwd: Permission denied"),
        ({"path": "/usr/bin/true/x"}, "exec", errno.ENOTDIR,
         START + "/usr/bin/true/x: Not a directory"),
        ({"path": "/usr/\x1b[2J"}, "exec", errno.ENOENT,
         START + "/usr/?[2J: No such file or directory"),
        ({"path": "/" + "x" * 300}, "exec", errno.ENAMETOOLONG,
         START + "/" + "x" * 199 + ": File name too long"),
        ({"cwd": "/nonexistent"}, "chdir", errno.ENOENT,
         ENTER + "/nonexistent: No such file or directory"),
        ({"cwd": "/etc/passwd"}, "chdir", errno.ENOTDIR, ENTER + "/etc/passwd: Not a directory"),
        ({"cwd": "/work/../nonexistent"}, "chdir", errno.ENOENT,
         ENTER + "/work/../nonexistent: No such file or directory"),
        ({"cwd": "/proc/1/root"}, "chdir", errno.EACCES,
         ENTER + "/proc/1/root: Permission denied"),
        ({"uid_base": 2**32 - 10}, "uid_map", errno.EINVAL,
         "cannot prepare the job: uid_map: Invalid argument"),
    ],
)  # fmt: skip
def test_the_step_that_failed(
    host: Host, fields: dict[str, object], step: str, number: int, text: str, *, merge: bool
) -> None:
    """Told to the holder, in the record, and as the one line of the job's output."""
    job = host.launch(["true"], merge=merge, **fields)
    assert job.holder
    job.holder.hello()
    told = job.holder.expect(protocol.LAUNCH_FAILED)
    assert (told["step"], told["errno"], told["detail"]) == (step, number, text)
    record = job.holder.end()
    assert (record.ended_by, record.step, record.errno) == ("launch", step, number)
    assert record.detail == text
    assert record.started_us == 0
    assert job.holder.output("out" if merge else "err") == text.encode() + b"\n"
    assert merge or job.holder.output("out") == b""
    job.acknowledge()


def script_at(path: str, content: bytes, mode: int = 0o755) -> Callable[[Job], None]:
    """For `before`: a file in the job's /work."""

    def write(job: Job) -> None:
        file = job.path / "work" / path
        file.write_bytes(content)
        file.chmod(mode)

    return write


@pytest.mark.parametrize(
    ("content", "mode", "number", "why"),
    [
        (b"#!/usr/bin/python9 -I\n", 0o755, errno.ENOENT,
         "its interpreter /usr/bin/python9 is not there"),
        (b"echo\n", 0o755, errno.ENOEXEC, "neither a program for this machine nor"),
        (b"#! /usr/bin/ph\xffp", 0o755, errno.ENOENT, "its interpreter /usr/bin/ph\ufffdp is not"),
        (b"#!/bin/sh\n", 0o644, errno.EACCES, "Permission denied"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_command(
    host: Host, content: bytes, mode: int, number: int, why: str
) -> None:
    before = script_at("x", content, mode)
    job = host.fork(["x"], path="/work/x", before=before)
    job.enter_scope()
    job.wait_ready()
    holder = job.go()
    holder.hello()
    record = holder.end()
    assert (record.step, record.errno) == ("exec", number)
    assert record.detail.startswith(f"cannot start the command: /work/x: {why}")
    assert holder.output("err") == record.detail.encode() + b"\n"
    job.acknowledge()


def test_a_step_that_failed_without_a_server(host: Host) -> None:
    """The line is put aside like everything that a job has written: whole, and once."""
    job = host.launch(["true"], path="/nonexistent")
    assert job.holder
    job.holder.close()
    job.wait_gone()
    text = b"cannot start the command: /nonexistent: No such file or directory\n"
    assert job.record().rest == {"out": 0, "err": len(text)}
    assert (job.path / "err.rest").read_bytes() == text


def test_a_root_that_cannot_be_built(host: Host) -> None:
    """Told after the go, to the holder: until then nobody listens."""
    job = host.fork(["true"], before=lambda job: (job.path / "work").rmdir())
    job.enter_scope()
    job.wait_ready()
    holder = job.go()
    holder.hello()
    record = holder.end()
    assert (record.ended_by, record.step, record.errno) == ("launch", "bind work", errno.ENOENT)
    assert record.detail == "cannot prepare the job: bind work: No such file or directory"
    assert holder.output("err") == record.detail.encode() + b"\n"
    job.acknowledge()


def test_a_directory_below_work_is_made(host: Host) -> None:
    job = started(host, ["sh", "-c", "pwd; touch here"], cwd="/work/a/b")
    job.holder.end()  # type: ignore[union-attr]
    made = job.path / "work" / "a" / "b"
    assert (made / "here").stat().st_uid == made.stat().st_uid == job.plan.uid_base
    job.acknowledge()


def test_withdrawn_before_the_go(host: Host) -> None:
    for word, detail in (
        (pid1.WITHDRAWN, "withdrawn"),
        (b"", "init mode gone"),
        (b"?", "init mode gone"),
    ):
        job = host.fork(["touch", "/work/ran"])
        job.enter_scope()
        job.wait_ready()
        job.gate.send(word) if word else job.gate.close()
        job.wait_gone()
        record = job.record()
        assert (record.ended_by, record.step, record.detail) == ("launch", "go", detail)
        assert not (job.path / "work" / "ran").exists()


def test_nobody_gets_a_hello_before_the_go(host: Host) -> None:
    job = host.fork(["true"])
    job.enter_scope()
    job.wait_ready()
    early = job.connect()
    assert early.silent()
    job.gate.send(pid1.GO)
    assert early.hello() == ["out", "err"]
    early.end()
    early.say(protocol.ACKNOWLEDGE)
    job.wait_gone()
    early.close()


def test_terminated_before_the_go(host: Host) -> None:
    job = host.fork(["touch", "/work/ran"])
    job.enter_scope()
    job.wait_ready()
    job.signal(signal.SIGTERM)
    holder = job.go()
    record = holder.end()
    assert (record.ended_by, record.started_us, record.code, record.signal) == ("signal", 0, 0, 0)
    job.acknowledge()
    assert not (job.path / "work" / "ran").exists()


def test_terminated_at_any_moment_of_a_launch(host: Host) -> None:
    """The signal comes as systemd sends it: to PID 1, then to every other process of the scope."""
    for step in range(40):
        job = host.launch(["sleep", "60"], grace_us=0)
        time.sleep(step / 40 * 0.02)  # the moment is what is tried; none of them is waited for
        for pid in job.processes():
            with contextlib.suppress(ProcessLookupError):  # PID 1 has ended it meanwhile
                os.kill(pid, signal.SIGTERM)
        assert job.holder
        record = job.holder.end()
        assert record.ended_by == "signal"
        assert record.step == ""
        job.acknowledge()


# --- stop, time-out, SIGTERM ----------------------------------------------------------------------


def test_stop(host: Host) -> None:
    job = started(host, ["sleep", "60"])
    assert job.holder
    job.holder.say(protocol.STOP, grace_us=60 * SECOND_US)
    record = job.holder.end()
    assert (record.ended_by, record.signal, record.code) == ("ctl", signal.SIGTERM, 0)
    job.acknowledge()


def test_a_stopped_command_can_say_goodbye(host: Host) -> None:
    job = started(
        host, ["sh", "-c", "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done"]
    )
    assert job.holder
    assert line_of(job) == b"up\n"
    job.holder.say(protocol.STOP, grace_us=60 * SECOND_US)
    record = job.holder.end()
    assert (record.ended_by, record.code) == ("ctl", 4)
    assert job.holder.output() == b"bye\n"
    job.acknowledge()


@pytest.mark.parametrize("grace_us", [0, 100_000])
def test_a_deaf_command_is_killed_after_the_grace(host: Host, grace_us: int) -> None:
    job = started(host, DEAF)
    assert job.holder
    assert line_of(job) == b"deaf\n"
    begun = time.monotonic()
    job.holder.say(protocol.STOP, grace_us=grace_us)
    record = job.holder.end()
    assert (record.ended_by, record.signal) == ("ctl", signal.SIGKILL)
    assert time.monotonic() - begun >= grace_us / 1e6
    job.acknowledge()


def test_a_second_stop_can_only_shorten_the_grace(host: Host) -> None:
    job = started(host, DEAF)
    assert job.holder
    assert line_of(job) == b"deaf\n"
    for grace_us in (3600 * SECOND_US, 2**80, 0):
        job.holder.say(protocol.STOP, grace_us=grace_us)
    assert job.holder.end().signal == signal.SIGKILL
    job.acknowledge()


def test_a_suspended_job_can_be_stopped(host: Host) -> None:
    job = started(host, ["sh", "-c", "kill -STOP $$"])
    assert job.holder
    command = next(pid for pid in job.processes() if pid != job.pid)
    eventually(lambda: "State:\tT" in Path(f"/proc/{command}/status").read_text(), "SIGSTOP")
    job.holder.say(protocol.STOP, grace_us=60 * SECOND_US)
    record = job.holder.end()
    assert (record.ended_by, record.signal) == ("ctl", signal.SIGTERM)
    job.acknowledge()


def test_time_out(host: Host) -> None:
    job = started(host, ["sleep", "60"], timeout_us=50_000)
    assert job.holder
    record = job.holder.end()
    assert (record.ended_by, record.signal) == ("timeout", signal.SIGTERM)
    assert record.ended_us - record.started_us >= 50_000
    job.acknowledge()
    job = started(host, DEAF, timeout_us=50_000, grace_us=50_000)
    assert job.holder
    record = job.holder.end()
    assert (record.ended_by, record.signal) == ("timeout", signal.SIGKILL)
    job.acknowledge()


@pytest.mark.parametrize("days", [24, 25, 30, 1000, 100_000])
def test_a_time_out_of_many_days(host: Host, days: int) -> None:
    """poll(2) waits at most 2^31 ms."""
    record, _ = host.run(["sh", "-c", "exit 3"], timeout_us=days * 86400 * SECOND_US)
    assert (record.code, record.ended_by) == (3, "")


def test_a_time_out_that_is_changed(host: Host) -> None:
    job = started(host, ["sleep", "60"], timeout_us=3600 * SECOND_US)
    assert job.holder
    job.holder.say(protocol.TIME_OUT, after_us=2**80)
    job.holder.say(protocol.TIME_OUT, after_us=0)
    assert job.holder.silent(0.05)
    job.holder.say(protocol.TIME_OUT, after_us=1)
    assert job.holder.end().ended_by == "timeout"
    # after the end it means nothing, and must not keep PID 1 busy
    job.holder.say(protocol.TIME_OUT, after_us=1)
    job.holder.say(protocol.STOP, grace_us=0)
    assert asleep(job)
    job.acknowledge()


def asleep(job: Job) -> bool:
    """Whether PID 1 waits: its ticks of processor time stand still."""

    def ticks() -> list[str]:
        return Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    before = eventually(ticks)
    time.sleep(0.3)  # 30 ticks, were it busy
    return sum(map(int, ticks())) - sum(map(int, before)) < 15


def test_a_time_out_before_the_command_is_executed_counts_from_its_start(host: Host) -> None:
    job = host.fork(["sleep", "60"])
    job.enter_scope()
    job.wait_ready()
    job.holder = job.connect()
    job.holder.say(protocol.TIME_OUT, after_us=3600 * SECOND_US)  # read at the first moment
    job.gate.send(pid1.GO)
    job.holder.hello()
    job.holder.expect(protocol.STARTED)
    assert job.holder.silent(0.05)
    job.holder.say(protocol.STOP, grace_us=0)
    assert job.holder.end().ended_by == "ctl"
    job.acknowledge()


def test_sigterm_from_outside(host: Host) -> None:
    """Not forwarded: systemd signals every process itself. But it begins PID 1's grace."""
    job = started(
        host, ["sh", "-c", "trap 'echo heard' TERM; while :; do sleep 0.05; done"], grace_us=50_000
    )
    assert job.holder
    job.signal(signal.SIGTERM)
    record = job.holder.end()
    assert (record.ended_by, record.signal) == ("signal", signal.SIGKILL)
    assert job.holder.output() == b""
    job.acknowledge()


def test_the_first_cause_counts(host: Host) -> None:
    script = "trap 'echo heard' TERM; echo up; while :; do sleep 0.05; done"
    job = started(host, ["sh", "-c", script])
    assert job.holder
    assert line_of(job) == b"up\n"
    job.holder.say(protocol.STOP, grace_us=SECOND_US)
    assert line_of(job) == b"heard\n"
    job.holder.say(protocol.TIME_OUT, after_us=1)
    job.signal(signal.SIGTERM)
    record = job.holder.end()
    assert (record.ended_by, record.signal) == ("ctl", signal.SIGKILL)
    job.acknowledge()


def test_sigterm_after_the_end_changes_nothing(host: Host) -> None:
    job = started(host, ["sh", "-c", "exit 5"], stop_us=10 * SECOND_US)
    assert job.holder
    record = job.holder.end()
    job.signal(signal.SIGTERM)
    assert job.holder.silent()
    assert not job.gone
    assert job.record() == record
    job.acknowledge()


def test_near_the_end_of_systemds_patience_it_leaves_unacknowledged(host: Host) -> None:
    job = started(host, ["sh", "-c", "exit 5"], grace_us=0, stop_us=pid1.MARGIN_US + 50_000)
    assert job.holder
    record = job.holder.end()
    job.signal(signal.SIGTERM)
    assert job.holder.receive() is None
    job.wait_gone()
    # the holder reads on; nothing was put aside under its hands
    assert job.record() == record
    assert "out.rest" not in job.files()


def test_pid1_killed_takes_all_along(host: Host) -> None:
    job = started(host, ["sh", "-c", "sleep 60 & sleep 60"])
    assert job.holder
    eventually(lambda: len(job.processes()) >= 4, "the job's processes")
    job.signal(signal.SIGKILL)
    job.wait_gone()
    eventually(lambda: not job.processes(), "an empty scope")
    assert job.holder.receive() is None
    assert job.holder.output() == b""
    assert "exit" not in job.files()
    assert host.directories.connect(job.plan.job) == ("gone", None)


# --- hostile jobs ---------------------------------------------------------------------------------


def test_what_a_command_leaves_behind_ends_with_it(host: Host) -> None:
    script = "(trap '' TERM; sleep 600) & (setsid setsid sleep 600 &) ; nohup sleep 600 & exit 3"
    record, _ = host.run(["sh", "-c", script])
    assert (record.code, record.ended_by) == (3, "")


DAEMONS = """
import os, signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
print("up", flush=True)
time.sleep(600)
"""


def test_daemons_that_hear_nothing_are_gone_after_a_stop(host: Host) -> None:
    job = started(host, python(DAEMONS))
    assert job.holder
    assert line_of(job) == b"up\n"
    eventually(lambda: len(job.processes()) == 22, "20 daemons")
    job.holder.say(protocol.STOP, grace_us=50_000)
    record = job.holder.end()
    assert (record.ended_by, record.signal) == ("ctl", signal.SIGKILL)
    assert job.processes() == [job.pid]
    job.acknowledge()


def test_what_forks_while_it_is_killed_is_gone_too(host: Host) -> None:
    """Two processes that fork and die all the time, so that there is always a new one."""
    script = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
os.fork()
while True:
    if os.fork():
        os._exit(0)
"""
    job = started(host, python(script))
    assert job.holder
    assert line_of(job) == b"up\n"
    record = job.holder.end()  # the first has exited, and so has the job
    assert record.code == 0
    assert job.processes() == [job.pid]
    job.acknowledge()


def test_zombies_are_reaped(host: Host) -> None:
    """Orphans that have ended do not stay as long as the job runs."""
    script = "for i in 1 2 3 4 5 6 7 8; do (true & true &) ; done; echo up; sleep 600"
    job = started(host, ["sh", "-c", script])
    assert job.holder
    assert line_of(job) == b"up\n"
    eventually(lambda: len(job.processes()) == 3, "the end of the orphans")
    job.holder.say(protocol.STOP, grace_us=SECOND_US)
    job.holder.end()
    job.acknowledge()


TRACE = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(0, 0, None, None), flush=True)  # PTRACE_TRACEME
"""


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("sys.exit(9)", (9, 0)),
        ("os.kill(os.getpid(), signal.SIGTERM)", (0, 15)),
        (
            "signal.signal(15, lambda *a: os._exit(8)); os.kill(os.getpid(), 15); signal.pause()",
            (8, 0),
        ),
        ("os.execv('/bin/sh', ['sh', '-c', 'exit 7'])", (7, 0)),
        ("os.kill(os.getpid(), signal.SIGKILL)", (0, 9)),
    ],
)
def test_a_command_that_has_itself_traced(host: Host, what: str, expected: tuple[int, int]) -> None:
    """PTRACE_TRACEME makes PID 1 the tracer; a stop it then sees is no end, and must go on."""
    record, output = host.run(python(TRACE + what))
    assert output == b"0\n"
    assert (record.code, record.signal) == expected
    assert record.ended_by == ""


def test_a_traced_command_can_be_stopped(host: Host) -> None:
    job = started(host, python(f"{TRACE}\nsignal.pause()"))
    assert job.holder
    assert line_of(job) == b"0\n"
    job.holder.say(protocol.STOP, grace_us=60 * SECOND_US)
    record = job.holder.end()
    assert (record.ended_by, record.signal) == ("ctl", signal.SIGTERM)
    job.acknowledge()


CLONES = """
import ctypes, os, platform, signal, time
libc = ctypes.CDLL(None, use_errno=True)
clone, CLONE_PARENT = 56 if platform.machine() == "x86_64" else 220, 0x8000
def child(flags):
    if libc.syscall(clone, flags, None, None, None, None) == 0:
        os._exit(0)
child(CLONE_PARENT | signal.SIGTERM)
if os.fork() == 0:
    # an orphan whose end is announced with SIGTERM
    if libc.syscall(clone, signal.SIGTERM, None, None, None, None) == 0:
        time.sleep(0.05)
        os._exit(0)
    os._exit(0)
os.wait()
time.sleep(0.2)
for number in range(1, 65):
    try:
        os.kill(1, number)
    except OSError as error:
        print(error.errno, end=" ")
os.kill(os.getpid(), 0)
raise SystemExit(6)
"""


def test_a_job_cannot_pass_for_systemd(host: Host) -> None:
    """SIGTERM to PID 1 means that somebody outside stops the unit: no job may send one, neither by
    kill nor as the signal of a child's end."""
    record, output = host.run(python(CLONES))
    assert (record.code, record.ended_by) == (6, "")
    assert set(output.split()) == {b"1"}  # EPERM, for every signal
    assert len(output.split()) == 64


def test_a_job_cannot_read_its_own_pipe(host: Host) -> None:
    script = """
import os
os.write(1, b"mine ")
for name in ("/proc/self/fd/1", "/dev/stdout"):
    try:
        os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        os.write(1, b"opened ")
    except PermissionError:
        os.write(1, b"refused ")
    os.close(os.open(name, os.O_WRONLY))
for change in (lambda: os.fchmod(1, 0o666), lambda: os.fchown(1, 0, 0)):
    try:
        change()
        os.write(1, b"changed ")
    except PermissionError:
        os.write(1, b"refused ")
"""
    record, output = host.run(python(script))
    assert record.code == 0
    assert output == b"mine refused refused refused refused "


# --- holders --------------------------------------------------------------------------------------


def test_one_holder_at_a_time(host: Host) -> None:
    job = started(host, ["sleep", "60"])
    second, third = job.connect(), job.connect()
    assert second.silent()
    assert job.holder
    job.holder.close()
    assert second.hello() == ["out", "err"]
    earlier = second.expect(protocol.STARTED)
    assert third.silent()
    second.close()
    assert third.hello() == ["out", "err"]
    third.say(protocol.STOP, grace_us=0)
    later = third.expect(protocol.STARTED)
    assert later["at_us"] == earlier["at_us"]
    assert later["ran_us"] > earlier["ran_us"] >= 0
    job.holder = third
    third.end()
    job.acknowledge()


def test_the_next_holder_hears_of_an_end_before_its_time(host: Host) -> None:
    job = started(host, ["sh", "-c", "echo kept; exit 2"])
    assert job.holder
    record = job.holder.end()
    waiting = job.connect()
    job.holder.close()  # nobody has read: it is the next one's
    assert waiting.hello() == ["out", "err"]
    waiting.expect(protocol.STARTED)
    assert waiting.end() == record
    assert waiting.output() == b"kept\n"
    job.holder = waiting
    job.acknowledge()
    assert "out.rest" not in job.files()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"?",
        b"{}",
        b"[" * protocol.MAX_MESSAGE,
        b'{"t":"stop"}',
        b'{"t":"stop","grace_us":-1}',
        b'{"t":"stop","grace_us":"0"}',
        b'{"t":"time-out","after_us":1e9}',
        b'{"t":"stop","grace_us":' + b"[" * 3000 + b"]" * 3000 + b"}",
        b"x" * (protocol.MAX_MESSAGE + 1000),
    ],
    ids=lambda nonsense: repr(nonsense[:30]),
)
def test_a_holder_that_talks_nonsense_is_hung_up_on(host: Host, nonsense: bytes) -> None:
    job = started(host, ["sleep", "60"])
    assert job.holder
    job.holder.socket.send(nonsense)
    assert job.holder.receive() is None
    # and the job runs on
    job.holder.close()
    job.holder = job.connect()
    assert job.holder.hello() == ["out", "err"]
    job.holder.say(protocol.STOP, grace_us=0)
    assert job.holder.end().ended_by == "ctl"
    job.acknowledge()


def test_words_that_mean_nothing_yet_are_passed_over(host: Host) -> None:
    job = started(host, ["sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"])
    assert job.holder
    assert line_of(job) == b"up\n"
    job.holder.say(protocol.ACKNOWLEDGE)  # of what?
    job.holder.say("invented-later", x=1)
    job.holder.say(protocol.STOP, grace_us=60 * SECOND_US)
    assert job.holder.end().code == 3
    assert not job.gone
    job.acknowledge()


def test_descriptors_that_a_holder_sends_are_not_kept(host: Host) -> None:
    job = started(host, ["sleep", "60"])
    assert job.holder
    before = len(descriptors(job.pid))
    for _ in range(50):
        socket.send_fds(job.holder.socket, [b'{"t":"x"}'], [0, 1, 2])
    job.holder.say(protocol.TIME_OUT, after_us=0)
    eventually(lambda: len(descriptors(job.pid)) <= before, "no more descriptors")


# --- the end without a holder ---------------------------------------------------------------------


def waiting(host: Host, script: str) -> Job:
    """A job that does not go on with its script before `let_on`."""

    def fifo(job: Job) -> None:
        os.mkfifo(job.path / "work" / "go")
        (job.path / "work" / "go").chmod(0o666)

    job = host.fork(["sh", "-c", script.replace("WAIT", "read x < /work/go")], before=fifo)
    job.enter_scope()
    job.wait_ready()
    holder = job.go()
    holder.hello()
    holder.expect(protocol.STARTED)
    return job


def let_on(job: Job) -> None:
    with (job.path / "work" / "go").open("w") as go:
        go.write("\n")


def fill(job: Job) -> Path:
    """The job's filesystem, to its last byte, with this file."""
    ballast = job.path / "work" / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    free = os.statvfs(ballast)
    assert free.f_bavail == 0
    return ballast


def test_without_a_holder_the_rest_is_put_aside(host: Host) -> None:
    job = waiting(host, "printf 12345; printf 123 >&2; WAIT; printf 678; exit 9")
    assert job.holder
    assert line_or(job, b"12345") == b"12345"
    job.holder.close()
    let_on(job)
    job.wait_gone()
    record = job.record()
    assert (record.code, record.rest) == (9, {"out": 3, "err": 3})
    assert (job.path / "out.rest").read_bytes() == b"678"
    assert (job.path / "err.rest").read_bytes() == b"123"
    assert job.files() == {"ctl", "exit", "out", "err", "out.rest", "err.rest", "work"}
    assert host.directories.connect(job.plan.job) == ("gone", None)


def line_or(job: Job, expected: bytes) -> bytes:
    """As much of stdout as is expected, read by the holder."""
    assert job.holder
    fd = job.holder.streams["out"]
    data = b""

    def enough() -> bool:
        nonlocal data
        try:
            data += os.read(fd, len(expected) - len(data))
        except (BlockingIOError, FileNotFoundError):
            return False
        return len(data) == len(expected)

    eventually(enough, "the job's output")
    return data


def test_a_full_pipe_is_put_aside_whole(host: Host) -> None:
    job = started(host, python("import os\nos.write(1, bytes(range(256)) * 4096)"))
    assert job.holder
    job.holder.end()
    job.holder.close()
    job.wait_gone()
    assert job.record().rest == {"out": 1 << 20, "err": 0}
    assert (job.path / "out.rest").read_bytes() == bytes(range(256)) * 4096


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_on_a_full_disk_nothing_leaves_the_pipe(small: Host, size: int) -> None:
    job = started(small, ["sh", "-c", f"head -c {size} /dev/zero; exit 9"])
    assert job.holder
    record = job.holder.end()
    ballast = fill(job)
    job.holder.close()
    eventually(lambda: "exit.new" in job.files() or "out.rest" in job.files(), "its try")
    assert not job.gone
    assert job.record() == record
    # the next one finds everything where it was, and leaves it there
    job.holder = job.connect()
    assert job.holder.hello() == ["out", "err"]
    assert job.holder.end() == record
    job.holder.close()
    ballast.unlink()
    job.wait_gone()
    assert job.record().rest == {"out": size, "err": 0}
    assert (job.path / "out.rest").read_bytes() == bytes(size)


def test_a_try_on_a_full_disk_costs_no_descriptor(small: Host) -> None:
    job = started(small, ["sh", "-c", "head -c 10 /dev/zero; exit 9"])
    assert job.holder
    job.holder.end()
    fill(job)
    job.holder.close()
    counts: list[int] = []
    for _ in range(5):
        job.holder = job.connect()
        job.holder.end()
        counts.append(len(descriptors(job.pid)))
        job.holder.close()
    assert counts == [counts[0]] * 5


def test_without_room_for_the_record_a_holder_still_gets_it(small: Host) -> None:
    job = waiting(small, "WAIT; exit 9")
    fill(job)
    let_on(job)
    assert job.holder
    assert job.holder.end().code == 9
    assert "exit" not in job.files()
    job.acknowledge()  # committed elsewhere: that is enough
    assert "exit" not in job.files()


def test_without_room_and_without_a_holder_it_waits_for_either(small: Host) -> None:
    job = waiting(small, "WAIT; echo said; exit 9")
    ballast = fill(job)
    assert job.holder
    job.holder.close()
    let_on(job)
    eventually(lambda: job.processes() == [job.pid], "the command's end")
    ballast.unlink()
    job.wait_gone()
    assert (job.record().code, job.record().rest) == (9, {"out": 5, "err": 0})
