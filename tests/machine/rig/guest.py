# SPDX-License-Identifier: MIT
"""The rig's agent inside a VM: starts commands and carries their bytes over a virtio port.

Installed in the guest's image and run there as a service, standard library alone; agent.py is the
other end. qemu-guest-agent would do for single commands, but it cannot stream, keeps 16 MiB of an
output, and writes a line to the journal for every look at a running command.

Both directions carry frames: type (1 byte), command id, payload length (4 bytes each, big endian),
payload. To the guest:
    S  start: JSON {argv, env, cwd, user}; I  bytes for stdin; C  close stdin
    K  signal: JSON {signal, group}; P  ping
From the guest:
    O, E  bytes of stdout, stderr; X  ended: JSON {code}; P  pong
X comes once the command has ended and both streams have; what the command left in its process group
is killed then. A command that cannot be started ends with 127 or 126 and a line on stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import signal
import struct
import subprocess
from pathlib import Path
from typing import NoReturn

PORT = "joblet.rig.0"
HEADER = struct.Struct(">cII")
CHUNK = 1 << 16
NOT_FOUND = 127
NOT_EXECUTABLE = 126


def open_port() -> int:
    """The port by its name; the kernel numbers them as it likes."""
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == PORT:
            return os.open(f"/dev/{name.parent.name}", os.O_RDWR | os.O_CLOEXEC)
    raise SystemExit(f"there is no virtio port {PORT}")


class Command:
    """A started command: its process, its pipes, what waits to be written to it."""

    def __init__(self, number: int, request: dict[str, object]) -> None:
        self.number = number
        self.input = bytearray()
        self.closing = False
        user = request["user"]
        account = pwd.getpwnam(str(user)) if user else pwd.getpwuid(0)
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": account.pw_dir,
            "USER": account.pw_name,
            "LOGNAME": account.pw_name,
            "SHELL": account.pw_shell,
        }
        environment.update(request["env"])  # type: ignore[call-overload]
        other = {}
        if user:
            groups = os.getgrouplist(account.pw_name, account.pw_gid)
            other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
        self.process = subprocess.Popen(
            request["argv"],  # type: ignore[call-overload]
            stdin=subprocess.PIPE if request["stdin"] else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=request["cwd"] or "/",
            start_new_session=True,
            bufsize=0,
            **other,
        )
        self.ended = os.pidfd_open(self.process.pid)
        assert self.process.stdout
        assert self.process.stderr
        self.outputs = {self.process.stdout.fileno(): b"O", self.process.stderr.fileno(): b"E"}
        if self.process.stdin:
            os.set_blocking(self.process.stdin.fileno(), False)

    def signal(self, number: int, *, group: bool) -> None:
        if self.ended >= 0:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.process.pid, number)

    def feed(self) -> None:
        """Writes what the pipe takes; the rest waits."""
        stdin = self.process.stdin
        if stdin is None or stdin.closed:
            return
        try:
            while self.input:
                del self.input[: os.write(stdin.fileno(), self.input[:CHUNK])]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.input.clear()
            self.closing = True
        if self.closing:
            stdin.close()


class Agent:
    def __init__(self, port: int) -> None:
        self.port = port
        self.pending = bytearray()
        self.commands: dict[int, Command] = {}

    def send(self, kind: bytes, number: int, payload: bytes = b"") -> None:
        frame = memoryview(HEADER.pack(kind, number, len(payload)) + payload)
        while frame:
            frame = frame[os.write(self.port, frame) :]

    def end(self, number: int, code: int) -> None:
        self.send(b"X", number, json.dumps({"code": code}).encode())

    def start(self, number: int, payload: bytes) -> None:
        request = json.loads(payload)
        try:
            self.commands[number] = Command(number, request)
        except (OSError, KeyError, ValueError) as error:
            self.send(b"E", number, f"{request['argv'][0]}: {error}\n".encode())
            missing = isinstance(error, FileNotFoundError)
            self.end(number, NOT_FOUND if missing else NOT_EXECUTABLE)

    def receive(self) -> None:
        self.pending += os.read(self.port, CHUNK)
        while len(self.pending) >= HEADER.size:
            kind, number, length = HEADER.unpack_from(self.pending)
            if len(self.pending) < HEADER.size + length:
                return
            payload = bytes(self.pending[HEADER.size : HEADER.size + length])
            del self.pending[: HEADER.size + length]
            command = self.commands.get(number)
            if kind == b"P":
                self.send(b"P", number)
            elif kind == b"S":
                self.start(number, payload)
            elif command is None:
                continue  # it has ended meanwhile
            elif kind == b"K":
                request = json.loads(payload)
                command.signal(request["signal"], group=request["group"])
            elif kind in (b"I", b"C"):
                command.input += payload
                command.closing |= kind == b"C"
                command.feed()

    def read(self, command: Command, descriptor: int) -> None:
        data = os.read(descriptor, CHUNK)
        if data:
            self.send(command.outputs[descriptor], command.number, data)
            return
        del command.outputs[descriptor]

    def reap(self, command: Command) -> None:
        """The command has ended: what is left of its group goes, so that its streams end too."""
        command.signal(signal.SIGKILL, group=True)
        command.process.wait()
        os.close(command.ended)
        command.ended = -1

    def finish(self, command: Command) -> None:
        code = command.process.returncode
        self.end(command.number, code if code >= 0 else 128 - code)
        for pipe in (command.process.stdin, command.process.stdout, command.process.stderr):
            if pipe:
                pipe.close()
        del self.commands[command.number]

    def serve(self) -> NoReturn:
        while True:
            poll = select.poll()
            poll.register(self.port, select.POLLIN)
            sources: dict[int, Command] = {}
            for command in self.commands.values():
                for descriptor in command.outputs:
                    sources[descriptor] = command
                    poll.register(descriptor, select.POLLIN)
                if command.ended >= 0:
                    sources[command.ended] = command
                    poll.register(command.ended, select.POLLIN)
                if command.input and command.process.stdin:
                    sources[command.process.stdin.fileno()] = command
                    poll.register(command.process.stdin.fileno(), select.POLLOUT)
            for descriptor, _ in poll.poll():
                if descriptor == self.port:
                    self.receive()
                    continue
                command = sources[descriptor]
                if descriptor == command.ended:
                    self.reap(command)
                elif descriptor in command.outputs:
                    self.read(command, descriptor)
                else:
                    command.feed()
            for command in list(self.commands.values()):
                if command.ended < 0 and not command.outputs:
                    self.finish(command)


if __name__ == "__main__":
    Agent(open_port()).serve()
