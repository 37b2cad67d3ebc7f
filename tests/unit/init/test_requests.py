# SPDX-License-Identifier: MIT
"""What init mode answers, and what it leaves behind when the server talks nonsense, changes its
mind or goes away. Real PID 1s; systemd is played (the real one: tests/machine/test_init_mode.py).
"""

import asyncio
import json
import logging
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from joblet import link
from joblet.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    JobletError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
)
from joblet.init.requests import JOBS_PER_MESSAGE
from joblet.launch import protocol
from joblet.launch.protocol import ExitRecord
from joblet.systemd import messages
from tests.unit.init.support import Init, Peer, eventually, run, sealed
from tests.unit.launch.support import Host, descriptors

NOBODYS = "ffffffff-ffff-ffff-ffff-ffffffffffff"
Serve = Callable[..., Any]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """Where journald would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        yield sock


@pytest.fixture
def serve(host: Host, journal: socket.socket, tmp_path: Path) -> Serve:
    """An init mode and one connection to it, at whose end nothing may be left over."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[tuple[Init, Peer]]:
        before = len(descriptors(os.getpid()))
        async with Init(host, tmp_path / "journal") as init:
            # the threads of to_thread and the selector's own descriptors come with the first use
            await asyncio.to_thread(int)
            base = len(descriptors(os.getpid()))
            async with init.connect() as server:
                yield init, server
            await eventually(lambda: len(descriptors(os.getpid())) <= base)
            assert init.launches._launches == {}
            assert init.launches._under_way == set()
        assert len(descriptors(os.getpid())) >= before - 1

    return serving


def record_of(init: Init, job: str) -> ExitRecord:
    return ExitRecord.from_bytes((init.host.directories.base / job / "exit").read_bytes())


def directories(init: Init) -> set[str]:
    return {path.name for path in init.host.directories.base.iterdir()}


# --- the way of a launch --------------------------------------------------------------------------


def test_a_scope_that_cannot_have_failed_is_not_reset(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["true"])
            await server.launch(plan)
            holder = await server.go(plan)
            assert holder.hello() == ["out", "err"]
            assert holder.end().code == 0
            holder.say(protocol.ACKNOWLEDGE)
            assert holder.receive() is None
            holder.close()
            await eventually(lambda: init.host.directories.state(plan.job) == link.GONE)
            await server.ask("clean-up", job=plan.job, failed=False)
            assert init.scopes.asked == []
            assert plan.job not in directories(init)

    run(work())


def test_a_job_from_its_launch_to_its_clean_up(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["sh", "-c", "echo hi; exit 3"])
            ok = await server.launch(plan)
            assert ok["pid"] == init.scopes.started[0]
            assert ok["cgroup"].endswith(f"/{plan.unit}")
            holder = await server.go(plan)
            assert holder.hello() == ["out", "err"]
            assert holder.end().code == 3
            assert holder.output() == b"hi\n"
            with pytest.raises(FailedPrecondition, match="still there"):
                await server.ask("clean-up", job=plan.job)
            with pytest.raises(FailedPrecondition, match="still there"):
                await server.ask("results", job=plan.job)
            holder.say(protocol.ACKNOWLEDGE)
            assert holder.receive() is None
            holder.close()
            await eventually(lambda: init.host.directories.state(plan.job) == link.GONE)
            ok, fds = await server.ask("results", job=plan.job)
            assert ok["names"] == ["exit"]
            assert ExitRecord.from_bytes(os.read(fds[0], 4096)).code == 3
            link.close_all(fds)
            assert await server.ask("connect", job=plan.job) == ({"state": link.GONE}, [])
            await server.ask("clean-up", job=plan.job)
            assert init.scopes.asked[-1] == ("forget", plan.unit)
            assert plan.job not in directories(init) | init.host.directories.uids.keys()
            with pytest.raises(NotFound):
                await server.ask("connect", job=plan.job)

    run(work())


def test_go_and_launch_in_one_breath(serve: Serve) -> None:
    """The go waits for the scope."""

    async def work() -> None:
        async with serve() as (init, server):
            init.scopes.gate.clear()
            plan = init.plan(["sh", "-c", "exit 4"])
            launch = await server.send_launch(plan)
            go = await server.send("go", job=plan.job)
            await eventually(lambda: init.scopes.started)
            init.scopes.gate.set()
            assert (await server.answer(launch))[0]["pid"]
            _, fds = await server.answer(go)
            with socket.socket(fileno=fds[0]) as sock:
                sock.settimeout(10)
                assert sock.recv(protocol.MAX_MESSAGE)

    run(work())


def test_many_launches_at_once(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plans = [init.plan(["sh", "-c", f"exit {code}"]) for code in range(40)]
            for number in [await server.send_launch(plan) for plan in plans]:
                await server.answer(number)
            for code, plan in enumerate(plans):
                holder = await server.go(plan)
                assert holder.hello() == ["out", "err"]
                assert holder.end().code == code
                holder.say(protocol.ACKNOWLEDGE)
                assert holder.receive() is None
                holder.close()
            assert len(set(init.scopes.started)) == 40

    run(work())


def test_a_scope_that_systemd_refuses(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            init.scopes.error = Internal("start the scope", "systemd says no")
            plan = init.plan(["true"])
            launch = await server.send_launch(plan)
            go = await server.send("go", job=plan.job)
            for number in (launch, go):
                with pytest.raises(Internal, match="systemd says no"):
                    await server.answer(number)
            assert not init.alive()
            assert plan.job not in directories(init) | init.host.directories.uids.keys()
            # its name and its ids are free again
            init.scopes.error = None
            await server.launch(plan)

    run(work())


def test_a_pid1_that_dies_before_its_go(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["true"])
            ok = await server.launch(plan)
            os.kill(ok["pid"], signal.SIGKILL)
            await eventually(lambda: not init.alive())
            with pytest.raises(Internal, match="let job"):
                await server.go(plan)
            await server.ask("clean-up", job=plan.job)

    run(work())


# --- cancel ---------------------------------------------------------------------------------------


def test_cancel_before_the_scope_stands(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            init.scopes.gate.clear()
            plan = init.plan(["true"])
            launch = await server.send_launch(plan)
            await eventually(lambda: init.scopes.started)
            assert await server.ask("cancel", job=plan.job) == ({}, [])
            # its directory and its ids are not to be had while it is being undone
            with pytest.raises(FailedPrecondition, match="being launched"):
                await server.ask("clean-up", job=plan.job)
            init.scopes.gate.set()
            with pytest.raises(Unavailable, match="withdrawn"):
                await server.answer(launch)
            assert not init.alive()
            # what systemd had made by then is not left to it: it could be failed, or stay empty
            assert init.scopes.asked == [("stop", plan.unit), ("forget", plan.unit)]
            assert plan.job not in directories(init) | init.host.directories.uids.keys()
            with pytest.raises(InvalidArgument, match="did not launch"):
                await server.ask("go", job=plan.job)

    run(work())


def test_cancel_behind_it(serve: Serve) -> None:
    """PID 1 records the end; the directory is the server's to clean up."""

    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["touch", "/work/ran"])
            await server.launch(plan)
            await server.ask("cancel", job=plan.job)
            await eventually(lambda: not init.alive())
            record = record_of(init, plan.job)
            assert (record.ended_by, record.step, record.detail) == ("launch", "go", "withdrawn")
            with pytest.raises(InvalidArgument, match="did not launch"):
                await server.ask("go", job=plan.job)
            await server.ask("clean-up", job=plan.job)
            assert plan.job not in directories(init)

    run(work())


def test_cancel_while_the_go_waits_for_pid1(serve: Serve) -> None:
    """Too late, and without harm: PID 1 has not said that it is ready."""

    async def work() -> None:
        async with serve() as (init, server):
            init.scopes.on_start = lambda pid: os.kill(pid, signal.SIGSTOP)
            plan = init.plan(["sh", "-c", "exit 5"])
            ok = await server.launch(plan)
            go = await server.send("go", job=plan.job)
            await asyncio.sleep(0.02)
            # NotFound; or InvalidArgument if PID 1 was faster than its stop, and the go is done
            with pytest.raises((NotFound, InvalidArgument)):
                await server.ask("cancel", job=plan.job)
            os.kill(ok["pid"], signal.SIGCONT)
            _, fds = await server.answer(go)
            assert len(fds) == 1
            link.close_all(fds)

    run(work())


def test_two_that_say_go(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["true"])
            await server.launch(plan)
            first, second = [await server.send("go", job=plan.job) for _ in range(2)]
            ok, fds = await server.answer(first)
            assert (ok, len(fds)) == ({}, 1)
            link.close_all(fds)
            with pytest.raises(JobletError, match=f"cannot let job {plan.job} go"):
                await server.answer(second)

    run(work())


def test_another_connection_has_no_say(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["sh", "-c", "exit 5"])
            await server.launch(plan)
            async with init.connect() as other:
                for verb in ("go", "cancel"):
                    with pytest.raises(InvalidArgument, match="this connection did not launch it"):
                        await other.ask(verb, job=plan.job)
                with pytest.raises(FailedPrecondition, match="being launched"):
                    await other.ask("clean-up", job=plan.job)
                with pytest.raises(AlreadyExists):
                    await other.launch(plan)
            # nor has its end
            holder = await server.go(plan)
            assert holder.end().code == 5
            holder.close()

    run(work())


def test_a_second_launch_of_the_same_job_changes_nothing(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["sh", "-c", "exit 5"])
            await server.launch(plan)
            with pytest.raises(AlreadyExists):
                await server.launch(plan)
            # it is still this connection's: its hang-up withdraws it
        assert not init.alive()

    run(work())


def test_uids_of_another_job(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            first = init.plan(["true"])
            await server.launch(first)
            second = init.plan(["true"], uid_base=first.uid_base)
            with pytest.raises(AlreadyExists, match="is another job's"):
                await server.launch(second)
            await server.ask("cancel", job=first.job)
            await eventually(lambda: not init.alive())
            # not before its directory is gone, with the files that are those uids'
            with pytest.raises(AlreadyExists, match="is another job's"):
                await server.launch(second)
            await server.ask("clean-up", job=first.job)
            await server.launch(second)

    run(work())


# --- hang-up --------------------------------------------------------------------------------------


def test_a_hang_up_withdraws_what_waits(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["touch", "/work/ran"])
            async with init.connect() as other:
                await other.launch(plan)
            await eventually(lambda: not init.alive())
            assert record_of(init, plan.job).detail == "withdrawn"
            assert not (init.host.directories.base / plan.job / "work" / "ran").exists()
            assert await server.ask("connect", job=plan.job) == ({"state": link.GONE}, [])
            await server.ask("clean-up", job=plan.job)

    run(work())


def test_a_hang_up_behind_the_go_changes_nothing(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["sh", "-c", "sleep 0.2; exit 6"])
            async with init.connect() as other:
                await other.launch(plan)
                holder = await other.go(plan)
            assert holder.hello() == ["out", "err"]
            assert holder.end().code == 6
            holder.close()
            await eventually(lambda: not init.alive())
            assert record_of(init, plan.job).rest == {"out": 0, "err": 0}
            await server.ask("clean-up", job=plan.job)

    run(work())


def test_a_hang_up_with_requests_unread(serve: Serve) -> None:
    """They are never begun, and what came with them is not kept."""

    async def work() -> None:
        async with serve() as (init, _):
            for _ in range(10):
                async with init.connect() as other:
                    for _ in range(5):
                        await other.send_launch(init.plan(["true"]))
                        await other.send("list", [0] * link.MAX_FDS)
            await eventually(lambda: not init.alive())

    run(work())


def test_hang_ups_at_any_moment_of_a_launch(serve: Serve) -> None:
    """Nothing lives on; the directories that are left say so, and are cleaned up by name."""
    dice = random.Random(7)  # the moments are tried, not chosen

    async def work() -> None:
        async with serve() as (init, server):
            for _ in range(60):
                plan = init.plan(["touch", "/work/ran"])
                async with init.connect() as other:
                    await other.send_launch(plan)
                    if dice.random() < 0.5:
                        await other.send("go", job=plan.job)
                    for _ in range(dice.randrange(30)):
                        await asyncio.sleep(dice.choice((0, 0, 0.001)))
                # either it got its go, and lives without a holder until its end, or it did not
                await eventually(lambda: not init.alive())
                if plan.job in directories(init):
                    assert record_of(init, plan.job).ended_by in ("", "launch")
                    await server.ask("clean-up", job=plan.job)
                assert plan.job not in directories(init) | init.host.directories.uids.keys()

    run(work())


def test_cancels_at_any_moment_of_a_launch(serve: Serve) -> None:
    dice = random.Random(8)

    async def work() -> None:
        async with serve() as (init, server):
            for _ in range(60):
                plan = init.plan(["touch", "/work/ran"])
                launch = await server.send_launch(plan)
                for _ in range(dice.randrange(30)):
                    await asyncio.sleep(dice.choice((0, 0, 0.001)))
                await server.ask("cancel", job=plan.job)
                with suppress(Unavailable):  # withdrawn, unless the scope stood already
                    await server.answer(launch)
                await eventually(lambda: not init.alive())
                await server.ask("clean-up", job=plan.job)
                assert plan.job not in directories(init) | init.host.directories.uids.keys()

    run(work())


# --- what is refused ------------------------------------------------------------------------------


async def refused(
    server: Peer, cls: type[JobletError], words: str, verb: str, **fields: Any
) -> None:
    with pytest.raises(cls, match=words) as info:
        await server.ask(verb, **fields)
    assert type(info.value) is cls


BAD_IDS = [
    None,
    1,
    "",
    "..",
    "../../etc",
    NOBODYS.upper(),
    f"{NOBODYS}\n",
    f"{NOBODYS}.scope",
    [NOBODYS],
]
VERBS = [
    "launch",
    "go",
    "cancel",
    "connect",
    "results",
    "stop",
    "kill",
    "change",
    "clean-up",
    "read-journal",
]


# what is asked of the journal, and what is not taken
CURSOR = "s=0b5f;i=1a2;b=77;m=1;t=62a;x=9f"
WANTED: dict[str, Any] = {
    "cursor": CURSOR, "stream": 0, "began_us": 0, "since_us": 0, "until_us": 0, "tail": -1,
    "streams": 2, "single": 0,
}  # fmt: skip
TIMES = ("began_us", "since_us", "until_us")
JOURNAL_NONSENSE: list[tuple[str, Any]] = [
    ("cursor", None),
    ("cursor", 1),
    ("cursor", "s"),
    ("cursor", f"{CURSOR};"),
    ("cursor", f"{CURSOR}\n"),
    ("cursor", f"{CURSOR} or 1=1"),
    ("cursor", ";".join(["s=0123456789abcdef"] * 40)),
    *((name, -1) for name in TIMES),
    *((name, 2**60) for name in TIMES),
    *((name, "now") for name in TIMES),
    ("stream", -1),
    ("stream", 3),
    ("stream", "1"),
    ("stream", None),
    ("stream", True),
    ("tail", -2),
    ("tail", 2**40),
    ("tail", 1.5),
    ("streams", -1),
    ("streams", 3),
    ("streams", []),
    ("single", 2),
    ("single", True),
]


def test_bad_job_ids(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            for verb in VERBS:
                for job in BAD_IDS:
                    await refused(
                        server, InvalidArgument, "job is", verb, job=job, signal=9, stream=1
                    )
            assert init.scopes.asked == []

    run(work())


def test_bad_plans(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["true"])
            good = plan.to_bytes()
            unsealed = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
            os.write(unsealed, good)
            reader, writer = os.pipe()
            cases = [
                (unsealed, "not sealed"),
                (reader, "not in a memfd"),
                (sealed(good + b" " * (1 << 20)), "more than"),
                (sealed(b""), "not JSON"),
                (sealed(good[:-1]), "not JSON"),
                (sealed(good.replace(b'"version":1', b'"version":2')), "version 2 is not 1"),
                (sealed(init.plan(["true"]).to_bytes()), "the plan is job"),
            ]
            for fd, words in cases:
                await refused(server, InvalidArgument, words, "launch", fds=[fd], job=plan.job)
            wrong_uid = init.plan(["true"], uid_base=0)
            with pytest.raises(PermissionDenied, match="uid 0"):
                await server.launch(wrong_uid)
            with pytest.raises(PermissionDenied, match="is not permitted"):
                await server.launch(init.plan(["true"], properties={"Delegate": 1}))
            for count in (0, 2, link.MAX_FDS):
                words = "one descriptor"
                await refused(
                    server, InvalidArgument, words, "launch", fds=[0] * count, job=plan.job
                )
            link.close_all([reader, writer, *(fd for fd, _ in cases if fd != reader)])
            assert init.scopes.started == []
            assert directories(init) & {p.job for p in init.plans} == set()
            assert init.launches._under_way == set()

    run(work())


def test_requests_that_make_no_sense(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (_, server):
            for verb in ("", "no-such", "serve", "__init__", "close", None, 1, ["go"], {"go": 1}):
                await refused(server, Unimplemented, "no verb", verb, job=NOBODYS)  # type: ignore[arg-type]
            numbers: list[Any] = [None, "1", -1, 1.5, True, 2**60, [1], {}]
            for number in numbers:
                await server.link.send({"id": number, "verb": "list"})
                received = await server.link.recv()
                assert received is not None
                assert received[0]["id"] == number
                assert received[0]["error"]["code"] == "INVALID_ARGUMENT"
            for signum in (None, 0, -9, 65, "9", True, 9.0):
                await refused(
                    server, InvalidArgument, "signal is", "kill", job=NOBODYS, signal=signum
                )
            for name, bad in JOURNAL_NONSENSE:
                await refused(
                    server, InvalidArgument, f"{name} ", "read-journal",
                    **{**WANTED, "job": NOBODYS, name: bad},
                )  # fmt: skip
            await refused(server, NotFound, "there is none", "connect", job=NOBODYS)
            await refused(server, NotFound, "there is none", "results", job=NOBODYS)
            await refused(server, InvalidArgument, "did not launch", "go", job=NOBODYS)
            await refused(server, InvalidArgument, "did not launch", "cancel", job=NOBODYS)
            await server.ask("clean-up", job=NOBODYS)  # what is not there is cleaned up

    run(work())


@pytest.mark.parametrize(
    "data",
    [b"?", b"[]", b"[" * 50_000, b"x" * (link.MAX_MESSAGE + 1), b"\xff", b"null"],
    ids=lambda data: repr(data[:5]),
)
def test_a_peer_that_talks_nonsense_is_dropped(
    serve: Serve, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """Its launches with it; the others do not notice, and the log has a line and no traceback."""

    async def work() -> None:
        async with serve() as (init, server):
            kept, lost = init.plan(["sh", "-c", "exit 3"]), init.plan(["true"])
            await server.launch(kept)
            async with init.connect() as other:
                await other.launch(lost)
                socket.send_fds(other.link._socket, [data], [0, 1])
                assert await other.hung_up()
                await eventually(lambda: len(init.alive()) == 1)
            await server.ask("clean-up", job=lost.job)
            holder = await server.go(kept)
            assert holder.end().code == 3
            holder.close()

    with caplog.at_level(logging.WARNING):
        run(work())
    lines = [record for record in caplog.records if record.name == "joblet.init.requests"]
    assert [line.levelname for line in lines] == ["WARNING"]
    assert lines[0].exc_info is None
    assert "dropped the server's connection: cannot read a message" in lines[0].getMessage()


@pytest.mark.parametrize(
    "first",
    [
        {"hello": link.VERSION + 5, "oldest": link.VERSION + 1, "program": "newer"},
        {"hello": link.OLDEST - 1, "oldest": 0, "program": "older"},
        {"hello": "1", "oldest": 1},
        {"id": 1, "verb": "list"},
    ],
)
def test_a_peer_of_another_release_is_dropped(
    serve: Serve, caplog: pytest.LogCaptureFixture, first: dict[str, Any]
) -> None:
    async def work() -> None:
        async with serve() as (init, _):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection = asyncio.create_task(serve_one(init, theirs))
            peer = Peer(ours)
            received = await peer.link.recv()  # so that it knows why
            assert received is not None
            assert received[0]["hello"] == link.VERSION
            await peer.link.send(first, [0, 1])
            assert await peer.hung_up()
            await connection
            peer.link.close()

    with caplog.at_level(logging.WARNING):
        run(work())
    assert "dropped the server's connection" in caplog.text
    assert "Traceback" not in caplog.text


async def serve_one(init: Init, sock: socket.socket) -> None:
    from joblet.init.requests import Connection

    await Connection(
        sock,
        policy=init.policy,
        directories=init.host.directories,
        launches=init.launches,
        scopes=init.scopes,
        journal=init.journal,
        sync=init.sync,
    ).serve()


def test_a_peer_that_says_nothing_or_leaves_at_once(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, _):
            for message in (None, b""):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                connection = asyncio.create_task(serve_one(init, theirs))
                if message is not None:
                    socket.send_fds(ours, [message], [0, 1, 2])
                    await asyncio.sleep(0.01)
                ours.close()
                await connection

    run(work())


# --- the other verbs ------------------------------------------------------------------------------


def test_a_second_connection_to_ctl_waits(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            plan = init.plan(["sleep", "60"])
            await server.launch(plan)
            holder = await server.go(plan)
            assert holder.hello() == ["out", "err"]
            ok, fds = await server.ask("connect", job=plan.job)
            assert (ok, len(fds)) == ({"state": link.CONNECTED}, 1)
            from tests.unit.launch.support import Holder

            second = Holder(socket.socket(fileno=fds[0]))
            assert second.silent()
            holder.close()
            assert second.hello() == ["out", "err"]
            second.close()

    run(work())


def test_list(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            live, gone, never = (init.plan(["sleep", "60"]) for _ in range(3))
            for plan in (live, gone):
                await server.launch(plan)
            await server.ask("cancel", job=gone.job)
            await eventually(lambda: init.host.directories.state(gone.job) == link.GONE)
            fd, ends = init.host.directories.create(never.job, never.uid_base, ("out",))
            link.close_all([fd, *ends])
            await eventually(lambda: init.host.directories.state(live.job) == link.LIVE)
            ok, _ = await server.ask("list")
            assert ok["more"] is False
            listed = {entry["job"]: (entry["state"], entry["uid"]) for entry in ok["jobs"]}
            assert listed == {
                live.job: (link.LIVE, live.uid_base),
                gone.job: (link.GONE, gone.uid_base),
                never.job: (link.NEVER, never.uid_base),
            }
            # looks do not take the place of the first holder
            for _ in range(5):
                await server.ask("list")
            holder = await server.go(live)
            assert holder.hello() == ["out", "err"]
            holder.close()

    run(work())


def test_list_in_pages(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            base = init.host.directories.base
            ids = [
                f"{number:08x}-0000-0000-0000-000000000000"
                for number in range(JOBS_PER_MESSAGE + 3)
            ]
            for job in ids:
                (base / job).mkdir()
            ok, _ = await server.ask("list")
            assert [entry["job"] for entry in ok["jobs"]] == ids[:JOBS_PER_MESSAGE]
            assert ok["more"] is True
            ok, _ = await server.ask("list", after=ok["jobs"][-1]["job"])
            assert [entry["job"] for entry in ok["jobs"]] == ids[JOBS_PER_MESSAGE:]
            assert ok["more"] is False
            places: list[Any] = [None, 5, "zzzz", []]
            for after in places:
                ok, _ = await server.ask("list", after=after)
                assert len(ok["jobs"]) <= JOBS_PER_MESSAGE
            for job in ids:
                (base / job).rmdir()

    run(work())


def test_stop_and_kill_name_the_jobs_own_unit(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            await server.ask("stop", job=NOBODYS)
            await server.ask("kill", job=NOBODYS, signal=9)
            unit = f"joblet-{NOBODYS}.scope"
            assert init.scopes.asked == [("stop", unit), ("kill 9", unit)]
            await server.ask("change", job=NOBODYS, properties={"MemoryMax": 5, "CPUWeight": None})
            assert init.scopes.asked[2] == ("change {'MemoryMax': 5, 'CPUWeight': None}", unit)

    run(work())


def test_a_change_that_the_policy_forbids_changes_nothing(serve: Serve) -> None:
    async def work() -> None:
        async with serve() as (init, server):
            nonsense: list[Any] = [None, [], {}, {"MemoryMax": "5"}, {"MemoryMax": -1}]
            for properties in nonsense:
                await refused(
                    server, InvalidArgument, "", "change", job=NOBODYS, properties=properties
                )
            for name in ("Slice", "ExecStart", "KillMode", "OOMPolicy"):
                for value in (1, None):
                    await refused(
                        server, PermissionDenied, "is not permitted", "change",
                        job=NOBODYS, properties={"MemoryMax": 1 << 20, name: value},
                    )  # fmt: skip
            assert init.scopes.asked == []

    run(work())


@asynccontextmanager
async def channel(server: Peer) -> AsyncIterator[socket.socket]:
    """Where copies of lines go."""
    _, fds = await server.ask("copy-journal")
    with socket.socket(fileno=fds[0]) as sock:
        assert not os.get_inheritable(fds[0])
        sock.settimeout(5)
        yield sock


def test_journal_lines(serve: Serve, journal: socket.socket) -> None:
    async def work() -> None:
        async with serve() as (_, server), channel(server) as sock:
            head = json.dumps({"job": NOBODYS, "stream": 2, "missing": 0}).encode()
            sock.send(head + b"\none\ntwo \xff\n\nlast\n")
            assert json.loads(sock.recv(100)) == {"left_out": 0}

    run(work())
    journal.settimeout(5)
    entries = [journal.recv(4096) for _ in range(4)]
    for entry, line in zip(entries, (b"one", b"two \xff", b"", b"last"), strict=True):
        assert entry.endswith(len(line).to_bytes(8, "little") + line + b"\n")
        assert f"OBJECT_SYSTEMD_UNIT=joblet-{NOBODYS}.scope\n".encode() in entry
        assert b"JOBLET_STREAM=stderr\n" in entry
        assert b"MESSAGE_ID" not in entry


def test_a_note_of_what_is_missing_is_a_message_of_ours(
    serve: Serve, journal: socket.socket
) -> None:
    async def work() -> None:
        async with serve() as (_, server), channel(server) as sock:
            head = json.dumps({"job": NOBODYS, "stream": 1, "missing": 7}).encode()
            sock.send(head + b"\njoblet: 7 bytes left out here\n")
            assert json.loads(sock.recv(100)) == {"left_out": 0}

    run(work())
    journal.settimeout(5)
    entry = journal.recv(4096)
    assert f"MESSAGE_ID={messages.LINES_LEFT_OUT}\n".encode() in entry
    assert b"JOBLET_LEFT_OUT=7\n" in entry


@pytest.mark.parametrize(
    "message",
    [
        b"lines",
        b"{}\nlines",
        b"[]\nlines",
        json.dumps({"job": NOBODYS, "stream": 1, "missing": 0}).encode(),
        json.dumps({"job": NOBODYS, "stream": 1, "missing": 0}).encode() + b"\n",
        json.dumps({"job": NOBODYS, "stream": 3, "missing": 0}).encode() + b"\na",
        json.dumps({"job": NOBODYS, "stream": 1, "missing": -1}).encode() + b"\na",
        json.dumps({"job": NOBODYS, "stream": 1}).encode() + b"\na",
        json.dumps({"job": "init", "stream": 1, "missing": 0}).encode() + b"\na",
    ],
)
def test_a_copy_that_makes_no_sense(serve: Serve, journal: socket.socket, message: bytes) -> None:
    async def work() -> None:
        async with serve() as (_, server), channel(server) as sock:
            sock.send(message)
            assert sock.recv(100) == b""

    run(work())
    journal.settimeout(0)
    with pytest.raises(BlockingIOError):
        journal.recv(1)


def test_the_journal_of_a_jobs_unit(serve: Serve) -> None:
    """And of nothing else: the unit's name is made here."""

    async def work() -> None:
        async with serve() as (init, server):
            for more in ({}, {"unit": "ssh.service"}):
                _, fds = await server.ask("read-journal", job=NOBODYS, **WANTED, **more)
                link.close_all(fds)
                assert len(fds) == 1
            expected = {**WANTED, "unit": f"joblet-{NOBODYS}.scope"}
            assert init.journal.asked == [expected, expected]
            init.journal.error = ConnectionResetError(104, "Connection reset by peer")
            for verb in ("read-journal", "copy-journal"):
                await refused(server, Unavailable, "reset by peer", verb, job=NOBODYS, **WANTED)

    run(work())


def test_the_journal_is_synchronised_once_for_many(serve: Serve, tmp_path: Path) -> None:
    calls: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(await reader.readuntil(b"\0"))
        await go.wait()
        writer.write(b'{"parameters":{}}\0')
        writer.close()

    async def work() -> None:
        async with serve() as (_, server):
            await refused(server, Unavailable, "synchronise the journal", "sync-journal")
            path = str(tmp_path / "journal.varlink")
            journald = await asyncio.start_unix_server(answer, path)
            async with journald:
                first = await server.send("sync-journal")
                await eventually(lambda: len(calls) == 1)
                # whoever comes now cannot rely on that call; one more is enough for all of them
                others = [await server.send("sync-journal") for _ in range(5)]
                await server.ask("list")
                go.set()
                for number in (first, *others):
                    await server.answer(number)
            assert len(calls) == 2
            assert all(b"io.systemd.Journal.Synchronize" in call for call in calls)

    go = asyncio.Event()
    run(work())


def test_a_zygote_that_is_gone(tmp_path: Path, journal: socket.socket) -> None:
    """The launch fails and leaves nothing; whoever runs init mode is told, and starts it anew."""

    async def work(host: Host) -> None:
        async with Init(host, tmp_path / "journal") as init, init.connect() as server:
            await server.launch(init.plan(["true"]))
            host.zygote.close()
            host.process.wait(10)
            broken = init.plan(["true"])
            with pytest.raises(Internal, match="fork the job's PID 1"):
                await server.launch(broken)
            assert broken.job not in host.directories.uids
            assert init.launches._under_way == {init.plans[0].job}

    base = tmp_path / "host"
    base.mkdir()
    with suppress(AssertionError), Host(base) as host:
        run(work(host))
