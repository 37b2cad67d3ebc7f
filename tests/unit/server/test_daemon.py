# SPDX-License-Identifier: MIT
"""The composition root's own parts: tasks that must not end, steps that must not hang."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from joblet import __main__, config
from joblet.config import ConfigurationError, ServerConfig
from joblet.config.server import Cgroup, Joblet
from joblet.errors import Internal, NewerRelease, Unavailable
from joblet.metrics import Registry
from joblet.model import Limits
from joblet.server import access, daemon
from joblet.server.journal import Channel
from joblet.server.launcher import Launcher
from joblet.server.limits import MIB
from joblet.server.logs import Bounds, GapKind, LogMetrics, LogStore
from joblet.server.logs.overflow import Overflow
from joblet.server.logs.stage import Room
from joblet.server.units import JobUnits
from joblet.systemd.notify import Notifier
from tests.unit.server.support import run, world


def test_a_task_that_ends_by_itself_ends_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("a bug")

    async def main() -> None:
        async with daemon._background(broken()):
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        run(main)
    assert "a task of the server ended: ZeroDivisionError('a bug')" in caplog.text


def test_a_task_ends_with_its_owner() -> None:
    ended: list[str] = []

    async def serving() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("serving")

    async def main() -> None:
        async with daemon._background(serving()):
            await asyncio.sleep(0)
        assert ended == ["serving"]

    run(main)


def test_a_stop_step_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "STOP_S", 0.01)

    async def hang() -> None:
        await asyncio.Event().wait()

    async def broken() -> None:
        raise Unavailable("close it", "it is stuck")

    async def main() -> None:
        await daemon._bounded("close the first", hang)
        await daemon._bounded("close the second", broken)

    run(main)
    assert "could not close the first within 0.01 s" in caplog.text
    assert "could not close the second" in caplog.text


class Told:
    """What systemd is told."""

    def __init__(self, interval_us: int) -> None:
        self.interval_us = interval_us
        self.said: list[str] = []
        self.enough = asyncio.Event()

    def watchdog(self) -> None:
        self.said.append("alive")
        if self.said.count("alive") == 3:
            self.enough.set()


def test_signs_of_life_come_often_enough() -> None:
    async def main() -> None:
        told = Told(interval_us=1000)
        async with daemon._background(daemon._watchdog(cast(Notifier, told))):
            await told.enough.wait()

    run(main)


def test_without_a_watchdog_nothing_is_said() -> None:
    async def main() -> None:
        told = Told(interval_us=0)
        watching = asyncio.create_task(daemon._watchdog(cast(Notifier, told)))
        await asyncio.sleep(0)
        assert not watching.done()
        watching.cancel()
        assert told.said == []

    run(main)


def test_the_configuration_reaches_the_supervisor(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "w") as w:
            settings = dataclasses.replace(
                ServerConfig(),
                joblet=Joblet(
                    default_cpu_limit=150,
                    default_memory_limit=256,
                    default_io_limit=7,
                    max_concurrent_jobs=9,
                    job_timeout_us=5,
                ),
                cgroup=Cgroup(grace_us=3),
            )
            launcher = cast(Launcher, w.init)
            made = daemon._supervisor(
                settings,
                w.records,
                w.logs,
                launcher,
                JobUnits(cast(Any, None)),
                Channel(launcher),
                w.tools.counts,
            )
            given = made._settings
            assert given.defaults == Limits(
                max_cpu=150,
                max_memory=256 * MIB,
                max_iobps=7,
                max_tasks=ServerConfig().limits.default_max_tasks,
            )
            assert (given.max_jobs, given.timeout_us, made._tools.grace_us) == (9, 5, 3)
            ids = {made._new_id() for _ in range(3)}
            assert len(ids) == 3
            assert all(len(one) == 36 for one in ids)
            await made.close()

    run(main)


def test_without_certificates_there_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "joblet-config.yml"
    file.write_text("server:\n  nodeId: test\n")
    monkeypatch.setattr(daemon, "setup", lambda *arguments, **named: None)
    with pytest.raises(ConfigurationError, match=r"security\.serverCert"):
        daemon.main({"JOBLET_CONFIG_PATH": str(file)})


def test_a_server_whose_task_ended_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence and an exit code, no traceback."""
    monkeypatch.setattr(daemon, "setup", lambda *arguments, **named: None)
    monkeypatch.setattr(config, "require_certificates", lambda loaded: None)
    monkeypatch.setattr(access, "check_server", lambda *arguments, **named: ())

    async def ended(loaded: object, notifier: object) -> int:
        raise asyncio.CancelledError

    monkeypatch.setattr(daemon, "_run", ended)
    file = tmp_path / "joblet-config.yml"
    file.write_text("server:\n  nodeId: test\n")
    with pytest.raises(Internal, match="a task of the server ended"):
        daemon.main({"JOBLET_CONFIG_PATH": str(file)})


def test_records_of_a_newer_release_are_no_reason_to_start_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(environ: object) -> int:
        raise NewerRelease("open the records", "they are newer", hint="install it again")

    monkeypatch.setattr(daemon, "main", start)
    assert __main__.main([], {"JOBLET_MODE": "server"}) == 78
    assert "cannot open the records: they are newer; install it again" in capsys.readouterr().err


def test_what_overflow_does_is_counted(tmp_path: Path) -> None:
    room = Room(Bounds())
    overflow = Overflow(room, spare=lambda: 0)
    logs = LogStore(tmp_path / "logs", tmp_path / "stage", clock_us=lambda: 0)
    logs._overflow = overflow
    metrics = LogMetrics.of(Registry(lambda: 0.0))
    daemon._feed(metrics, logs, Bounds())
    for name in LogMetrics.STRATEGIES:
        overflow.count(name, 3)
    overflow.left_out(GapKind.DROPPED, 7)
    assert metrics.overflow.read() == dict.fromkeys(LogMetrics.STRATEGIES, 3)
    assert metrics.gaps.read() == {"dropped": 1}
    assert metrics.gap_bytes.read() == {"dropped": 7}
