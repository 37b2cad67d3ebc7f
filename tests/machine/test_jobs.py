# SPDX-License-Identifier: MIT
"""A job's way through everything: rnx, TLS, both processes, a real scope, and back."""

from __future__ import annotations

import hashlib

import pytest

from tests.machine.client import Rnx
from tests.machine.rig import Nspawn, eventually


@pytest.fixture
def rnx(machine: Nspawn) -> Rnx:
    return Rnx(machine)


def test_output_and_exit_code_come_back(rnx: Rnx) -> None:
    result = rnx("job", "run", "--follow", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert result.code == 3
    assert sorted(result.stdout.split()) == [b"err", b"out"]


def test_exit_codes_of_follow(rnx: Rnx) -> None:
    assert rnx("run", "--follow", "true").code == 0
    assert rnx("run", "--follow", "sh", "-c", "kill -TERM $$").code == 128 + 15
    assert rnx("run", "--follow", "--timeout=300ms", "sleep", "60").code == 124


def test_systemd_shows_a_running_job(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start("--name=shown", "sleep", "300")
    slice_status = machine.run(["systemctl", "status", "--no-pager", "joblet.slice"]).text
    assert f"joblet-{job}.scope" in slice_status
    assert "sleep 300" in slice_status
    unit = machine.run(["systemctl", "show", "-p", "Description", f"joblet-{job}.scope"]).text
    assert unit == f"Description=rnx job {job[:8]} (shown): sleep 300"
    stopped = rnx("stop", job)
    assert stopped.code == 0
    assert stopped.seconds < 5
    status = rnx.status(job)
    assert (status["status"], status["reason"]) == ("STOPPED", "stopped")
    eventually(
        lambda: "not-found" in machine.run(["systemctl", "show", f"joblet-{job}.scope"]).text,
        what="the scope's end",
    )


def test_a_viewer_sees_and_does_not_touch(rnx: Rnx) -> None:
    job = rnx.start("sh", "-c", "echo seen; sleep 300")
    eventually(lambda: rnx("--node", "viewer", "log", "--no-follow", job).stdout == b"seen\n")
    assert job in rnx("--node", "viewer", "list").text
    for words in (["run", "true"], ["stop", job]):
        refused = rnx("--node", "viewer", *words)
        assert refused.code == 1
        assert "role viewer is not allowed to perform operation" in refused.errors
    assert rnx.status(job)["status"] == "RUNNING"
    rnx("stop", job).check()


def test_no_certificate_no_connection(machine: Nspawn) -> None:
    script = """
import grpc
from joblet_pb import joblet_pb2, joblet_pb2_grpc
import yaml
ca = yaml.safe_load(open("/etc/joblet/rnx-config.yml"))["nodes"]["default"]["ca"].encode()
for credentials in (grpc.ssl_channel_credentials(ca), None):
    address = "localhost:50051"
    channel = grpc.insecure_channel(address)
    if credentials:
        channel = grpc.secure_channel(address, credentials)
    try:
        joblet_pb2_grpc.JobServiceStub(channel).ListJobs(joblet_pb2.EmptyRequest(), timeout=5)
        print("served")
    except grpc.RpcError as error:
        print(error.code().name)
"""
    answers = machine.run(["python3", "-c", script]).check().text.split()
    assert answers == ["UNAVAILABLE", "UNAVAILABLE"]


def test_an_unknown_command_is_refused_before_anything_starts(rnx: Rnx) -> None:
    before = rnx("list").text
    refused = rnx("run", "no-such-command")
    assert refused.code == 1
    assert "command not found: no-such-command" in refused.errors
    assert "Traceback" not in refused.errors
    assert rnx("list").text == before


def test_every_byte_value_without_a_newline(rnx: Rnx) -> None:
    make = "import sys; sys.stdout.buffer.write(bytes(b for b in range(256) if b != 10) * 41121)"
    sent = bytes(b for b in range(256) if b != 10) * 41121
    assert len(sent) > 10_000_000
    result = rnx("run", "--follow", "python3", "-c", make)
    assert result.code == 0
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(sent).digest()


def test_twenty_jobs_at_once_have_their_own_output(rnx: Rnx, machine: Nspawn) -> None:
    script = 'for i in $(seq 20); do rnx run --follow sh -c "echo job $i; sleep 0.5" & done; wait'
    lines = machine.run(script, timeout=90).check().text.splitlines()
    assert sorted(lines) == sorted(f"job {i}" for i in range(1, 21))
    listed = {job["id"]: job["command"] for job in rnx.json("list")}
    assert len(listed) >= 20


def test_followers_see_the_same_bytes_whenever_they_join(rnx: Rnx, machine: Nspawn) -> None:
    go = "/var/tmp/joblet-test-go"
    machine.run(["rm", "-f", go]).check()
    # the job cannot see the machine's files, so its pace is its own: a first half, a pause, the
    # rest
    job = rnx.start("sh", "-c", "seq 1 3000; sleep 2; seq 3001 6000; sleep 1; exit 7")
    first = machine.spawn(["rnx", "log", job])
    first.wait_for(b"\n3000\n")
    middle = machine.spawn(["rnx", "log", job])
    whole = first.wait(30)
    late = middle.wait(30)
    assert rnx.ended(job)["exit_code"] == 7
    expected = "".join(f"{n}\n" for n in range(1, 6001)).encode()
    assert whole.stdout == expected
    assert late.stdout == expected
    assert rnx.log(job) == expected


def test_parts_of_a_log(rnx: Rnx, machine: Nspawn) -> None:
    script = "echo one; echo oops >&2; echo two; sleep 1; echo three; sleep 300"
    job = rnx.start("sh", "-c", script)
    eventually(lambda: b"three\n" in rnx.log(job, "--no-follow"), what="the third line")
    out, err = b"one\ntwo\nthree\n", b"oops\n"
    assert rnx.log(job, "--no-follow", "--stdout") == out
    assert rnx.log(job, "--no-follow", "--stderr", "--strict") == err
    assert rnx.log(job, "--no-follow", "--tail", "1") == b"three\n"
    assert rnx.log(job, "--no-follow", "--stdout", "-n", "2") == b"two\nthree\n"
    assert sorted(rnx.log(job, "--no-follow", "--since", "1h").split()) == sorted(
        (out + err).split()
    )
    assert rnx.log(job, "--until", "1h") == b""  # complete, though the job goes on
    stamped = rnx.log(job, "--no-follow", "--stdout", "-t").splitlines()
    assert [line.split(b" ")[1] for line in stamped] == out.split()
    first, *_, last = (line.split(b" ")[0].decode() for line in stamped)
    assert first < last
    # the time that a line bears is one to begin at, and to end at
    assert rnx.log(job, "--no-follow", "--since", last) == b"three\n"
    assert rnx.log(job, "--stdout", "--until", last) == b"one\ntwo\n"
    rnx("stop", job).check()
    assert rnx.log(job, "--stderr") == err


def test_a_part_is_followed_over_a_restart_of_the_server(fresh_machine: Nspawn) -> None:
    """Where it begins stays where it was: not one line twice, none missing."""
    rnx = Rnx(fresh_machine)
    count = "i=0; while test $i -lt 300; do i=$((i+1)); echo $i; echo no >&2; sleep 0.02; done"
    job = rnx.start("sh", "-c", f"echo old; {count}")
    words = ["rnx", "log", "--stdout", "-n", "1", "-t", "--strict", job]
    eventually(lambda: b"\n20\n" in rnx.log(job, "--no-follow"), what="some lines")
    follower = fresh_machine.spawn(words)
    follower.wait_for(b" 100\n")
    fresh_machine.run(["systemctl", "restart", "joblet.service"]).check()
    follower.wait_for(b" 200\n")
    fresh_machine.run(["systemctl", "kill", "-s", "KILL", "joblet.service"]).check()
    shown = follower.wait(60)
    assert shown.code == 0
    lines = [line.split(b" ")[1] for line in shown.stdout.splitlines()]
    first = int(lines[0])
    assert 1 <= first <= 100
    assert lines == [b"%d" % number for number in range(first, 301)]
    assert shown.errors.count("trying again") >= 1


def test_a_stranger_with_the_stdout_does_not_keep_a_job(rnx: Rnx, machine: Nspawn) -> None:
    """The job hands its stdout over an abstract socket to a process outside, which keeps it
    open."""
    stranger = """
import array, socket, time
s = socket.socket(socket.AF_UNIX); s.bind("\\0joblet-test-stranger"); s.listen()
print("listening", flush=True)
c, _ = s.accept()
data, fds, _, _ = socket.recv_fds(c, 16, 1)
while True:
    try:
        socket.socket.send
        import os; os.write(fds[0], b"x" * 4096)
    except OSError:
        break
    time.sleep(0.01)
"""
    give = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0joblet-test-stranger');"
        "socket.send_fds(s, [b'x'], [1])"
    )
    with machine.spawn(["python3", "-c", stranger]) as outside:
        outside.wait_for(b"listening")
        job = rnx.start("python3", "-c", give)
        status = rnx.ended(job)
        assert status["status"] == "COMPLETED"
        assert len(rnx.log(job, timeout=20)) < 50_000_000


def test_environment_work_dir_and_uid(rnx: Rnx) -> None:
    show = "id -u; pwd; echo $GREETING; env | cut -d= -f1 | sort | tr '\\n' ' '"
    result = rnx(
        "run", "--follow", "--env", "GREETING=hi there", "--work-dir=sub", "sh", "-c", show
    )
    uid, cwd, greeting, names = result.text.splitlines()
    assert (uid, cwd, greeting) == ("0", "/work/sub", "hi there")
    assert {"PATH", "HOME", "JOB_ID"} <= set(names.split())
    assert not {"JOBLET_MODE", "NOTIFY_SOCKET", "LISTEN_FDS", "INVOCATION_ID"} & set(names.split())


def test_prefixes_and_what_is_not_there(rnx: Rnx) -> None:
    job = rnx.start("true")
    assert rnx.status(job[:13])["uuid"] == job
    missing = rnx("status", "ffffffff-0000")
    assert missing.code == 1
    assert "not found" in missing.errors
    rnx.ended(job)
    late = rnx("stop", job)
    assert late.code == 1
    assert "job is not running" in late.errors
