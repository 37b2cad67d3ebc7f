# SPDX-License-Identifier: MIT
"""Init mode: its composition root. Root, without a network; one socket, one peer, the server.

Start: policy, log, job directories, bus, socket, READY. Stop: the reverse; jobs run on in their own
scopes and need nothing from here. The zygote and the journal's process were forked before this
module was imported.
"""

import asyncio
import contextlib
import logging
import os
import pwd
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from joblet import __version__
from joblet.config import InitPolicy, load_policy
from joblet.errors import FailedPrecondition, Internal, JobletError
from joblet.init import seccomp
from joblet.init.directories import Directories
from joblet.init.journal_process import JournalProcess
from joblet.init.journal_sync import JournalSync
from joblet.init.launches import Launches
from joblet.init.requests import Connection
from joblet.init.scopes import Scopes
from joblet.launch.zygote import Zygote
from joblet.systemd import messages, notify
from joblet.systemd.bus import Bus
from joblet.systemd.journal import setup
from joblet.systemd.statusline import StatusLine, count
from joblet.systemd.units import Manager

log = logging.getLogger(__name__)

LISTEN_FD: Final = 3  # the first that systemd passes (sd_listen_fds(3))
MAX_CONNECTIONS: Final = 8  # one server, and what a restarted one leaves for a moment


def main(zygote: Zygote, journal: JournalProcess, environ: Mapping[str, str]) -> int:
    policy = load_policy()
    setup(policy.log_level, policy.log_format, "joblet-init", environ=environ)
    _check_host()
    listener = _listener(environ)
    os.umask(0o077)
    return asyncio.run(_run(policy, zygote, journal, listener, environ))


def _check_host() -> None:
    """Raises FailedPrecondition, naming what a host must have."""
    what = "run init mode"
    if os.geteuid() != 0:
        raise FailedPrecondition(what, "it is the root half, and this is not root")
    if not Path("/run/systemd/system").is_dir():
        raise FailedPrecondition(
            what,
            "systemd is not running here",
            hint="Joblet runs jobs as units of systemd, which must be PID 1 of this machine",
        )
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        raise FailedPrecondition(
            what,
            "/sys/fs/cgroup is not a cgroup v2 hierarchy",
            hint="boot with systemd.unified_cgroup_hierarchy=1",
        )


def _listener(environ: Mapping[str, str]) -> socket.socket:
    """The socket that joblet-init.socket holds. Raises FailedPrecondition without one."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS") != "1":
        raise FailedPrecondition(
            "take over the socket",
            "systemd has passed none",
            hint="start it with `systemctl start joblet-init.socket joblet-init.service`",
        )
    os.set_inheritable(LISTEN_FD, False)  # noqa: FBT003
    listener = socket.socket(fileno=LISTEN_FD)
    if listener.type != socket.SOCK_SEQPACKET or listener.family != socket.AF_UNIX:
        raise FailedPrecondition("take over the socket", "it is not a unix SEQPACKET socket")
    listener.settimeout(0)
    return listener


async def _run(
    policy: InitPolicy,
    zygote: Zygote,
    journal: JournalProcess,
    listener: socket.socket,
    environ: Mapping[str, str],
) -> int:
    notifier = notify.from_environment(environ)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        directories = Directories(Path(policy.jobs_dir))
        stack.callback(directories.close)
        bus = Bus()
        await bus.connect()
        stack.push_async_callback(bus.close)
        manager = Manager(bus)
        await manager.start()
        stack.push_async_callback(manager.close)
        stack.callback(journal.close)
        stack.callback(zygote.close)
        scopes = Scopes(manager, policy)
        filters = seccomp.make(policy.profiles, logged=policy.log_denied_calls)
        launches = Launches(policy, directories, zygote, scopes, filters)
        server = Server(policy, directories, launches, scopes, journal)
        serving = asyncio.create_task(server.serve(listener))
        broken = asyncio.create_task(launches.zygote_gone.wait())
        stopping = asyncio.create_task(stop.wait())
        line = StatusLine(notifier, lambda: _line(launches))
        launches.on_change = line.touch
        telling = asyncio.create_task(line.run())
        log.info("ready to launch jobs, joblet %s", __version__)
        notifier.ready(_line(launches))
        done, pending = await asyncio.wait(
            {serving, broken, stopping, telling}, return_when=asyncio.FIRST_COMPLETED
        )
        notifier.stopping()
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in (serving, telling):
            if task in done:
                task.result()
        if broken in done:
            # systemd starts us again, with a new one; nothing else helps
            raise Internal("launch jobs", "the zygote is gone")
    return 0


def _line(launches: Launches) -> str:
    failed = f", {launches.failed} failed" if launches.failed else ""
    return f"ready; {count(launches.launched, 'job')} launched{failed} since the start"


class Server:
    """Accepts the server's connections and nobody else's."""

    def __init__(
        self,
        policy: InitPolicy,
        directories: Directories,
        launches: Launches,
        scopes: Scopes,
        journal: JournalProcess,
    ) -> None:
        self._policy = policy
        self._directories = directories
        self._launches = launches
        self._scopes = scopes
        self._journal = journal
        self._sync = JournalSync()
        self._connections: dict[asyncio.Task[None], Connection] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Ends by cancellation; its connections end with it."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    while True:
                        peer, _ = await loop.sock_accept(listener)
                        self._admit(group, peer)
                finally:
                    for task in self._connections:
                        task.cancel()
        finally:
            listener.close()

    def _admit(self, group: asyncio.TaskGroup, peer: socket.socket) -> None:
        pid, uid, _ = struct.unpack(
            "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        try:
            server = pwd.getpwnam(self._policy.server_user).pw_uid
        except KeyError:
            server = -1
        if uid != server:
            log.warning(
                "refused a connection of pid %d, uid %d: it is not %s",
                pid,
                uid,
                self._policy.server_user,
                extra={"fields": {"MESSAGE_ID": messages.STRANGER_REFUSED}},
            )
            peer.close()
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            log.warning("refused a connection: there are %d", len(self._connections))
            peer.close()
            return
        connection = Connection(
            peer,
            policy=self._policy,
            directories=self._directories,
            launches=self._launches,
            scopes=self._scopes,
            journal=self._journal,
            sync=self._sync,
        )
        task = group.create_task(self._serve_one(connection))
        self._connections[task] = connection
        task.add_done_callback(lambda done: self._connections.pop(done, None))

    async def _serve_one(self, connection: Connection) -> None:
        try:
            await connection.serve()
        except JobletError as error:
            log.warning("%s", error)
        except Exception:
            log.exception("a connection failed")
