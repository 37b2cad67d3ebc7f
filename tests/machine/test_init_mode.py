# SPDX-License-Identifier: MIT
"""Init mode with a real systemd, as a server that was taken over would use it: from inside the
machine, as user joblet, over the socket. What it hands out and takes back, and that nothing stays.

test_init_direct.py has the list of single requests that it refuses.
"""

import base64
import contextlib
import itertools
import json
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from joblet import link
from joblet.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from joblet.launch import protocol
from joblet.launch.protocol import ExitRecord
from tests.machine.client import Rnx, wait_served
from tests.machine.rig import Machine, Nspawn, Process, eventually

CLIENT = Path(__file__).with_name("init_client.py")
WHERE = "/opt/joblet-tests/init_client.py"
JOBS = "/var/lib/joblet/jobs"
UID_BASES = itertools.count(
    0x7FFD0000, -65536
)  # from the range's end: the server begins at its start
ANSWER_S = 20.0


class Client:
    """A process in the machine that talks to init mode."""

    def __init__(self, machine: Machine, words: list[str], *, user: str) -> None:
        self._process: Process = machine.spawn(
            [*words, "python3", "-I", WHERE], stdin=True, user=user
        )
        self._answers = 0

    def do(self, name: str, **fields: Any) -> Any:
        """Raises OSError, as it happened there."""
        self._process.write(json.dumps({"do": name, **fields}).encode() + b"\n")
        self._answers += 1

        def lines() -> list[bytes]:
            whole = self._process.stdout.split(b"\n")[:-1]
            return whole if len(whole) >= self._answers else []

        def answered() -> list[bytes]:
            found = lines()
            assert found or self._process.running, self._process.stderr.decode()
            return found

        line = eventually(answered, timeout=60, what=name, pause=0.002)[self._answers - 1]
        answer = json.loads(line)
        if "error" in answer:
            raise OSError(answer["error"], f"{name} in the machine")
        return answer["ok"]

    def close(self) -> None:
        with self._process:
            self._process.close_stdin()
            self._process.wait()


class Talk:
    """One connection to init mode, or to a job's `ctl`."""

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self.number = number
        self._ids = itertools.count(1)

    def send(self, message: Any, *, plans: tuple[bytes, ...] = (), extra_fds: int = 0) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        encoded = [base64.b64encode(plan).decode() for plan in plans]
        self.client.do(
            "send", number=self.number, data=base64.b64encode(data).decode(), plans=encoded,
            sealed=True, extra_fds=extra_fds,
        )  # fmt: skip

    def receive(self, seconds: float = ANSWER_S) -> tuple[dict[str, Any], list[int]] | None:
        """None at the end."""
        received = self.client.do("receive", number=self.number, seconds=seconds)
        assert received is not None, "no message in time"
        data = base64.b64decode(received["data"])
        return (json.loads(data), received["fds"]) if data else None

    def silent(self, seconds: float = 0.3) -> bool:
        return self.client.do("receive", number=self.number, seconds=seconds) is None

    def hung_up(self) -> bool:
        try:
            return self.receive() is None
        except ConnectionError:
            return True

    def close(self) -> None:
        self.client.do("close", number=self.number)

    # -- to init mode

    def post(self, verb: str, *, plans: tuple[bytes, ...] = (), **fields: Any) -> int:
        number = next(self._ids)
        self.send({"id": number, "verb": verb, **fields}, plans=plans)
        return number

    def ask(
        self, verb: str, *, plans: tuple[bytes, ...] = (), **fields: Any
    ) -> tuple[dict[str, Any], list[int]]:
        number = self.post(verb, plans=plans, **fields)
        received = self.receive()
        assert received is not None, "init mode has hung up"
        answer, fds = received
        assert answer["id"] == number
        if "error" in answer:
            assert not fds
            raise link.error_from(answer["error"])
        return answer["ok"], fds

    def launch(self, plan: dict[str, Any]) -> dict[str, Any]:
        ok, fds = self.ask("launch", plans=(json.dumps(plan).encode(),), job=plan["job"])
        assert not fds
        return ok

    def go(self, plan: dict[str, Any]) -> "Talk":
        """`ctl`."""
        ok, fds = self.ask("go", job=plan["job"])
        assert ok == {}
        [number] = fds
        return Talk(self.client, number)

    # -- to PID 1

    def hello(self) -> dict[str, int]:
        """The read ends of the streams."""
        received = self.receive()
        assert received is not None
        message, fds = received
        assert message["t"] == protocol.HELLO
        return dict(zip(message["streams"], fds, strict=True))

    def say(self, kind: str, **fields: Any) -> None:
        self.send(protocol.encode(kind, **fields))

    def end(self) -> ExitRecord:
        while (received := self.receive()) is not None:
            if received[0]["t"] == protocol.EXIT:
                return ExitRecord.from_json(received[0]["record"])
        raise AssertionError("hung up without an exit record")

    def output(self, stream: int) -> bytes:
        parts: list[bytes] = []
        while True:
            data = self.client.do("read", number=stream, size=65536, seconds=ANSWER_S)
            assert data is not None, "the stream has no end"
            if not data:
                return b"".join(parts)
            parts.append(base64.b64decode(data))


@pytest.fixture
def clients(machine: Nspawn) -> Iterator[Callable[..., Client]]:
    wait_served(machine)
    machine.write(WHERE, CLIENT.read_bytes(), mode=0o755)
    with contextlib.ExitStack() as stack:

        def make(*words: str, user: str = "joblet") -> Client:
            made = Client(machine, list(words), user=user)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def client(clients: Callable[..., Client]) -> Client:
    return clients()


@pytest.fixture
def init(client: Client, machine: Nspawn) -> Iterator[Talk]:
    talk = connected(client)
    yield talk
    # what a test that failed has left must not fail the next one
    with contextlib.suppress(OSError):
        talk.close()
    machine.run("systemctl kill -s KILL 'joblet-*.scope'")
    eventually(Traces(machine).none, what="an empty machine")
    talk = connected(client)
    for entry in talk.ask("list")[0]["jobs"]:
        talk.ask("clean-up", job=entry["job"])
    talk.close()


def connected(client: Client) -> Talk:
    """A connection, its hellos said."""
    talk = Talk(client, client.do("connect"))
    received = talk.receive()
    assert received is not None
    assert link.agree(received[0]) == link.VERSION
    talk.send(link.hello())
    return talk


def plan(*argv: str, **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "job": str(uuid.uuid4()),
        "path": f"/usr/bin/{argv[0]}",
        "argv": argv,
        "env": {"PATH": "/usr/bin:/bin"},
        "uid_base": next(UID_BASES),
        **changes,
    }


class Traces:
    """What of jobs there is in a machine."""

    def __init__(self, machine: Nspawn) -> None:
        self._run = machine.run
        [main] = self._run(
            ["systemctl", "show", "-P", "MainPID", "joblet-init.service"]
        ).text.split()
        self.main = int(main)

    def units(self) -> list[str]:
        words = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "joblet-*.scope"]
        return [line.split()[0] for line in self._run(words).check().text.splitlines()]

    def pid1s(self) -> list[str]:
        lines = self._run(["ps", "-eo", "pid=,comm="]).check().text.splitlines()
        return [line for line in lines if line.split()[1] == "joblet-pid1"]

    def of_init(self) -> list[str]:
        """The processes of its service."""
        cgroup = "/sys/fs/cgroup/system.slice/joblet-init.service/cgroup.procs"
        return self._run(["cat", cgroup]).check().text.split()

    def zygote(self) -> str:
        [pid] = self._run(["pgrep", "-x", "joblet-zygote"]).check().text.split()
        return pid

    def descriptors(self, pid: int | str) -> list[str]:
        text = self._run(f"for f in /proc/{pid}/fd/*; do readlink $f; done").text
        return [line for line in text.splitlines() if line]

    def mounts(self) -> int:
        return len(self._run(["cat", "/proc/self/mountinfo"]).check().text.splitlines())

    def directories(self) -> list[str]:
        return self._run(["ls", JOBS]).check().text.split()

    def none(self) -> bool:
        # itself, the zygote, the journal's process; who copies for the server stays with it
        copying = self._run(["pgrep", "-x", "joblet-copy"]).text.split()
        own = set(self.of_init()) - set(copying)
        return not self.units() and not self.pid1s() and len(own) == 3


# --- who may talk to it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "words"),
    [("root", []), ("root", ["setpriv", "--reuid=nobody", "--regid=joblet", "--clear-groups"])],
    ids=["root", "nobody in group joblet"],
)
def test_strangers_are_dropped_without_an_answer(
    clients: Callable[..., Client], machine: Nspawn, user: str, words: list[str]
) -> None:
    stranger = clients(*words, user=user)
    talk = Talk(stranger, stranger.do("connect"))
    assert talk.hung_up()
    assert "refused a connection of pid" in machine.journal("-u", "joblet-init.service", "-n", "20")


def test_a_stranger_outside_the_group_does_not_get_that_far(
    clients: Callable[..., Client],
) -> None:
    stranger = clients(user="nobody")
    with pytest.raises(PermissionError):
        stranger.do("connect")


def test_connections_are_bounded_and_given_back(client: Client, init: Talk) -> None:
    others = []
    for _ in range(20):
        talk = Talk(client, client.do("connect"))
        others.append(talk)
        if talk.hung_up():
            break
    assert len(others) <= 8
    for talk in others:
        talk.close()
    # and there is room again: for this one, and for the server whenever it comes
    eventually(lambda: not refused_at_once(client), what="room for a connection")
    assert init.ask("list")


def refused_at_once(client: Client) -> bool:
    talk = Talk(client, client.do("connect"))
    try:
        return talk.hung_up()
    finally:
        talk.close()


@pytest.mark.parametrize(
    "data",
    [b"?", b"[]", b"[" * 100_000, b'{"id":1', b"\xff\xfe", b"x" * (link.MAX_MESSAGE + 1)],
    ids=lambda data: repr(data[:6]),
)
def test_garbage_ends_the_connection_and_nothing_else(
    client: Client, init: Talk, machine: Nspawn, data: bytes
) -> None:
    traces = Traces(machine)
    bad = connected(client)
    waiting = plan("true")
    bad.launch(waiting)
    bad.send(data, extra_fds=2)
    assert bad.hung_up()
    bad.close()
    eventually(traces.none, what="the withdrawal of its launch")
    assert init.ask("clean-up", job=waiting["job"]) == ({}, [])
    assert Traces(machine).main == traces.main
    assert "Traceback" not in machine.journal("-u", "joblet-init.service", "-n", "50")


def test_more_descriptors_than_it_takes(client: Client, machine: Nspawn) -> None:
    before = len(Traces(machine).descriptors(Traces(machine).main))
    for count in (link.MAX_FDS + 1, 100):
        talk = connected(client)
        talk.send({"id": 1, "verb": "list"}, extra_fds=count)
        assert talk.hung_up()
        talk.close()
    eventually(lambda: len(Traces(machine).descriptors(Traces(machine).main)) <= before)


# --- what it refuses, where systemd could say something else --------------------------------------


@pytest.mark.parametrize(
    "properties",
    [
        {"Slice": "system.slice"},
        {"ExecStart": "/bin/sh"},
        {"Delegate": 1},
        {"PIDs": 1},
        {"DeviceAllow": "char-*"},
        {"TasksMax": 2**40},
        {"CPUWeight": 10_001},
    ],
    ids=str,
)
def test_properties(init: Talk, machine: Nspawn, properties: dict[str, Any]) -> None:
    with pytest.raises(PermissionDenied):
        init.launch(plan("true", properties=properties))
    assert Traces(machine).none()


def test_a_property_that_only_systemd_refuses(init: Talk, machine: Nspawn) -> None:
    """Within the policy, and still nonsense: the launch fails with systemd's words, and leaves
    nothing."""
    refused = plan("true", properties={"IOWeight": 0})
    with pytest.raises(Exception, match="cannot start") as info:
        init.launch(refused)
    assert refused["job"] in str(info.value)
    traces = Traces(machine)
    eventually(traces.none, what="the end of the refused launch")
    assert refused["job"] not in traces.directories()
    # its ids are free again
    again = plan("true", uid_base=refused["uid_base"])
    init.launch(again)
    init.ask("cancel", job=again["job"])
    clean_up(init, again)


def clean_up(init: Talk, launched: dict[str, Any]) -> None:
    def cleaned() -> bool:
        try:
            init.ask("clean-up", job=launched["job"])
        except FailedPrecondition:  # its PID 1 is on its way out
            return False
        return True

    eventually(cleaned, what="the clean-up")


def test_ids_and_names_of_a_running_job_are_taken(init: Talk, machine: Nspawn) -> None:
    rnx = Rnx(machine)
    job = rnx.start("sleep", "300")
    uid = int(machine.run(["stat", "-c", "%u", f"{JOBS}/{job}/work"]).text)
    with pytest.raises(AlreadyExists, match="another job's"):
        init.launch(plan("true", uid_base=uid))
    with pytest.raises(AlreadyExists):
        init.launch(plan("true", job=job))
    # a server's own jobs are not another connection's to let go or to withdraw
    for verb in ("go", "cancel"):
        with pytest.raises(InvalidArgument, match="did not launch"):
            init.ask(verb, job=job)
    with pytest.raises(FailedPrecondition):
        init.ask("clean-up", job=job)
    with pytest.raises(FailedPrecondition):
        init.ask("results", job=job)
    assert rnx.status(job)["status"] == "RUNNING"
    rnx("stop", job).check()


# --- launch, go, cancel ---------------------------------------------------------------------------


def test_a_launch_that_nobody_else_may_touch(client: Client, init: Talk, machine: Nspawn) -> None:
    other = connected(client)
    launched = plan("sh", "-c", "exit 5")
    ok = init.launch(launched)
    unit = f"joblet-{launched['job']}.scope"
    assert ok["cgroup"] == f"/joblet.slice/{unit}"
    assert Traces(machine).units() == [unit]
    for verb in ("go", "cancel"):
        with pytest.raises(InvalidArgument, match="this connection did not launch it"):
            other.ask(verb, job=launched["job"])
    with pytest.raises(FailedPrecondition, match="being launched"):
        other.ask("clean-up", job=launched["job"])
    other.close()  # which withdraws nothing of somebody else's
    ctl = init.go(launched)
    ctl.hello()
    assert ctl.end().code == 5
    ctl.say(protocol.ACKNOWLEDGE)
    assert ctl.hung_up()
    clean_up(init, launched)
    eventually(Traces(machine).none, what="the end of the scope")


def test_what_go_hands_out(client: Client, init: Talk, machine: Nspawn) -> None:
    """Exactly one descriptor, of PID 1's own socket; the second on it waits for the first's end;
    after the job's end there is nothing to connect to."""
    launched = plan("sh", "-c", "echo said; exec sleep 300")
    init.launch(launched)
    first = init.go(launched)
    about = client.do("describe", number=first.number)
    assert about["socket"]
    streams = first.hello()
    assert set(streams) == {"out", "err"}
    for number in streams.values():
        assert client.do("describe", number=number)["read_only"]
    received = first.receive()
    assert received is not None
    assert received[0]["t"] == protocol.STARTED
    ok, fds = init.ask("connect", job=launched["job"])
    assert (ok["state"], len(fds)) == (link.CONNECTED, 1)
    second = Talk(client, fds[0])
    assert second.silent()
    for number in streams.values():
        client.do("close", number=number)
    first.close()
    streams = second.hello()
    second.say(protocol.STOP, grace_us=5_000_000)
    record = second.end()
    assert (record.ended_by, record.signal) == ("ctl", signal.SIGTERM)
    assert second.output(streams["out"]) == b"said\n"
    second.say(protocol.ACKNOWLEDGE)
    assert second.hung_up()
    gone = eventually(
        lambda: (
            (answer := init.ask("connect", job=launched["job"]))[0]["state"] == link.GONE and answer
        ),
        what="its end",
    )
    assert gone[1] == []
    ok, fds = init.ask("results", job=launched["job"])
    assert ok["names"] == ["exit"]
    assert client.do("describe", number=fds[0])["read_only"]
    data = base64.b64decode(client.do("read", number=fds[0], size=4096, seconds=1))
    assert ExitRecord.from_bytes(data) == record
    clean_up(init, launched)
    with pytest.raises(NotFound):
        init.ask("connect", job=launched["job"])
    eventually(Traces(machine).none, what="the end of the scope")


def test_a_job_sees_nothing_of_init_mode(init: Talk, client: Client, machine: Nspawn) -> None:
    """Three descriptors, the plan's environment; and its PID 1 has no socket of init mode's."""
    look = (
        "for n in $(seq 0 300); do [ -e /proc/$$/fd/$n ] && echo fd $n; done; env; exec sleep 300"
    )
    launched = plan("sh", "-c", look, env={"ONLY": "this", "PATH": "/usr/bin"})
    ok = init.launch(launched)
    ctl = init.go(launched)
    streams = ctl.hello()
    traces = Traces(machine)
    listener = machine.run(["readlink", f"/proc/{traces.main}/fd/3"]).check().text
    assert listener.startswith("socket:")
    for pid in (*traces.of_init(), str(ok["pid"])):
        assert (listener in traces.descriptors(pid)) == (int(pid) == traces.main)
    zygote = traces.zygote()
    kinds = sorted(t.split(":")[0] for t in traces.descriptors(int(zygote))[3:])
    assert kinds == ["pid", "socket"]
    ctl.say(protocol.STOP, grace_us=0)
    ctl.end()
    lines = ctl.output(streams["out"]).decode().splitlines()
    assert lines[:3] == ["fd 0", "fd 1", "fd 2"]
    # PWD and the like are the shell's own
    names = {line.split("=")[0] for line in lines[3:]}
    assert {"ONLY", "PATH"} <= names <= {"ONLY", "PATH", "PWD", "OLDPWD", "SHLVL", "_"}
    ctl.say(protocol.ACKNOWLEDGE)
    assert ctl.hung_up()
    clean_up(init, launched)


def test_a_hang_up_withdraws_what_waits(client: Client, init: Talk, machine: Nspawn) -> None:
    traces = Traces(machine)
    launched = [plan("touch", "/work/ran") for _ in range(5)]
    other = connected(client)
    for each in launched:
        other.launch(each)
    assert len(traces.units()) == len(traces.pid1s()) == 5
    other.close()
    eventually(traces.none, what="the withdrawal")
    for each in launched:
        assert init.ask("connect", job=each["job"]) == ({"state": link.GONE}, [])
        assert not machine.exists(f"{JOBS}/{each['job']}/work/ran")
        clean_up(init, each)
    assert traces.directories() == []


def test_launches_withdrawn_at_any_moment_leave_nothing(
    client: Client, init: Talk, machine: Nspawn
) -> None:
    traces = Traces(machine)
    client.do("storm", plan=plan("touch", "/work/ran"), count=5, seed=1)  # threads start
    eventually(traces.none, timeout=20, what="the end of all launches")
    for job in traces.directories():  # a launch that stood; its ids are the next ones' too
        init.ask("clean-up", job=job)
    descriptors, mounts = len(traces.descriptors(traces.main)), traces.mounts()
    ended = client.do("storm", plan=plan("touch", "/work/ran"), count=100, seed=2)
    eventually(traces.none, timeout=20, what="the end of all launches")
    answers = ended["answers"]
    assert answers["cancel ok"] + answers["hung up"] == 100, answers
    # the scope stood already, or did not
    assert answers["launch ok"], answers
    assert answers["launch UNAVAILABLE"], answers
    assert answers["launch ok"] + answers["launch UNAVAILABLE"] == answers["cancel ok"], answers
    for job in traces.directories():
        assert not machine.exists(f"{JOBS}/{job}/work/ran")
        init.ask("clean-up", job=job)
    assert traces.directories() == []
    assert traces.units() == []
    eventually(
        lambda: len(traces.descriptors(traces.main)) <= descriptors, what="no more descriptors"
    )
    assert traces.mounts() == mounts
    assert Traces(machine).main == traces.main  # it has not been started anew meanwhile
    assert "Traceback" not in machine.journal("-u", "joblet-init.service", "-n", "200")
    # and it serves on
    assert Rnx(machine)("run", "--follow", "sh", "-c", "exit 7").code == 7


# --- its own end ----------------------------------------------------------------------------------


def test_its_end_withdraws_what_waits(client: Client, init: Talk, machine: Nspawn) -> None:
    launched = plan("touch", "/work/ran")
    init.launch(launched)
    running = plan("sh", "-c", "sleep 1; exit 6")
    init.launch(running)
    ctl = init.go(running)
    ctl.hello()
    machine.run(
        ["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "joblet-init.service"]
    ).check()
    assert init.hung_up()
    # what runs needs nothing of it
    assert ctl.end().code == 6
    ctl.say(protocol.ACKNOWLEDGE)
    machine.wait_for("systemctl is-active joblet-init.service", timeout=20)
    again = connected(client)
    eventually(Traces(machine).none, what="the end of both")
    assert again.ask("connect", job=launched["job"]) == ({"state": link.GONE}, [])
    exit_record = ExitRecord.from_bytes(machine.read(f"{JOBS}/{launched['job']}/exit"))
    assert (exit_record.ended_by, exit_record.detail) == ("launch", "init mode gone")
    assert not machine.exists(f"{JOBS}/{launched['job']}/work/ran")
    for each in (launched, running):
        clean_up(again, each)
    again.close()
    wait_served(machine)


def test_without_its_zygote_it_is_started_anew(init: Talk, machine: Nspawn) -> None:
    traces = Traces(machine)
    zygote = traces.zygote()
    machine.run(["kill", "-KILL", zygote]).check()
    lost = plan("true")
    with pytest.raises(Exception, match=r"cannot fork the job's PID 1|init mode has hung up"):
        init.launch(lost)
    machine.wait_for("systemctl is-active joblet-init.service", timeout=20)
    eventually(lambda: Traces(machine).main not in (0, traces.main), what="a new init mode")
    wait_served(machine)
    rnx = Rnx(machine)
    eventually(lambda: rnx("run", "--follow", "sh", "-c", "exit 7").code == 7, timeout=20)
