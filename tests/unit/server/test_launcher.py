# SPDX-License-Identifier: MIT
"""The link to init mode when init mode is away: what waits, what does not, and what is said."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from joblet import link
from joblet.config import UID_FIRST, UIDS_PER_JOB, InitPolicy
from joblet.errors import Unavailable
from joblet.init import policy as permits
from joblet.link import Link
from joblet.server import launcher as module
from joblet.server.admission import Permits
from joblet.server.launcher import HINT, Launcher
from tests.unit.server.support import job_id, run, until

A = job_id(1)


class InitMode:
    """Answers every request with an empty ok; can go away and come back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.verbs: list[str] = []
        self.more: dict[str, object] = {}  # of its hello
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.path))
        listener.listen()
        listener.settimeout(0)
        self._serving = asyncio.create_task(self._serve(listener))

    async def stop(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])
            self._serving = None

    async def _serve(self, listener: socket.socket) -> None:
        peers: list[Link] = []
        try:
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                peers.append(Link(sock))
                await peers[-1].send(link.hello(**self.more))
                await peers[-1].recv()
                with contextlib.suppress(Unavailable):
                    while (received := await peers[-1].recv()) is not None:
                        message, _ = received
                        self.verbs.append(str(message["verb"]))
                        await peers[-1].send({"id": message["id"], "ok": {}})
        finally:
            for peer in peers:
                peer.close()
            listener.close()
            self.path.unlink()


@contextlib.asynccontextmanager
async def linked(path: Path) -> AsyncIterator[tuple[Launcher, InitMode]]:
    init = InitMode(path)
    await init.start()
    made = Launcher(str(path))
    running = asyncio.create_task(made.run())
    try:
        await made.wait_up()
        yield made, init
    finally:
        running.cancel()
        await asyncio.wait([running])
        await init.stop()


def test_a_restart_is_waited_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with linked(tmp_path / "init.sock") as (launcher, init):
            await init.stop()
            asked = asyncio.create_task(launcher.kill(A, 9))
            await until(lambda: not launcher._up.is_set())
            await init.start()
            await asked
            assert init.verbs == ["kill"]

    run(main)


def test_one_that_stays_away_is_told_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time runs from the loss, not from the request; a withdrawal never waits."""
    monkeypatch.setattr(module, "LOST_S", 0.3)

    async def main() -> None:
        path = tmp_path / "init.sock"
        async with linked(path) as (launcher, init):
            await init.stop()
            await until(lambda: not launcher._up.is_set())
            with pytest.raises(Unavailable):
                await launcher.cancel(A)
            with pytest.raises(Unavailable) as caught:
                await launcher.kill(A, 9)
            assert str(caught.value) == (
                f"cannot ask init mode: init mode is not there ({path}: No such file or directory)"
            )
            assert caught.value.hint == HINT
            # whatever asks now is answered at once
            monkeypatch.setattr(module, "BACKOFF_S", (30.0,))
            with pytest.raises(Unavailable, match="is not there"):
                await asyncio.wait_for(launcher.clean_up(A), 0.2)
            # and once it is back, the next request finds it, however long the pause between tries
            await init.start()
            await asyncio.wait_for(launcher.kill(A, 9), 5)
            assert init.verbs == ["kill"]

    run(main)


def test_one_that_hangs_up_under_a_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with linked(tmp_path / "init.sock") as (launcher, init):
            asked = asyncio.create_task(launcher.kill(A, 9))
            await init.stop()
            with contextlib.suppress(Unavailable):
                await asked
            await until(lambda: not launcher._up.is_set())
            await init.start()
            await launcher.kill(A, 9)

    run(main)


def test_what_init_mode_permits(tmp_path: Path) -> None:
    async def main() -> None:
        async with linked(tmp_path / "s") as (launcher, init):
            assert launcher.permits == Permits()  # one of before, which says nothing
            await init.stop()
            await until(lambda: not launcher.linked)
            first = UID_FIRST + 2 * UIDS_PER_JOB
            policy = InitPolicy(uid_first=first, profiles=("default", "trusted"))
            init.more = {"permits": permits.of_jobs(policy)}
            await init.start()
            await launcher.list_jobs()
            assert launcher.permits.uid_bases == policy.uid_bases()
            assert launcher.permits.profiles == {"default", "trusted"}

    run(main)
