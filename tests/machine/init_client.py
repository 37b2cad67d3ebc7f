# SPDX-License-Identifier: MIT
"""A server that was taken over: runs in a machine, as any user, and says to init mode what it is
told.

    python3 -I init_client.py

One JSON object a line on stdin, {"do": NAME, …}; one line for each on stdout, {"ok": …} or
{"error": ERRNO}. Sockets and files are numbers, those of the descriptors. `storm` is a loop that
has to be near: its moments are microseconds. test_init_mode.py is the other end.
"""

import base64
import errno
import fcntl
import json
import os
import random
import select
import socket
import sys
import time
import uuid
from typing import Any

sys.path.insert(0, "/usr/share/joblet")

from joblet import link

PATH = "/run/joblet-init.sock"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
SOCKETS: dict[int, socket.socket] = {}


def connect() -> int:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(PATH)
    except OSError:
        sock.close()
        raise
    return keep(sock)


def keep(sock: socket.socket) -> int:
    SOCKETS[sock.fileno()] = sock
    return sock.fileno()


def send(number: int, data: str, plans: list[str], *, sealed: bool, extra_fds: int) -> int:
    """plans: contents of the memfds that go along. extra_fds: how many other descriptors do."""
    fds = [memfd(base64.b64decode(plan), sealed=sealed) for plan in plans]
    try:
        content = base64.b64decode(data)
        return socket.send_fds(SOCKETS[number], [content], [*fds, *[0] * extra_fds])
    finally:
        link.close_all(fds)


def memfd(content: bytes, *, sealed: bool) -> int:
    fd = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def receive(number: int, seconds: float) -> dict[str, Any] | None:
    """The next message and its descriptors' numbers; None when none comes in time, "" the end."""
    if not select.select([number], [], [], seconds)[0]:
        return None
    data, fds, _, _ = socket.recv_fds(SOCKETS[number], link.MAX_MESSAGE, 253)
    return {"data": base64.b64encode(data).decode(), "fds": [adopted(fd) for fd in fds]}


def adopted(fd: int) -> int:
    try:
        return keep(socket.socket(fileno=fd))
    except OSError as error:
        if error.errno != errno.ENOTSOCK:
            raise
        return fd


def close(number: int) -> None:
    if number in SOCKETS:
        SOCKETS.pop(number).close()
    else:
        os.close(number)


def read(number: int, size: int, seconds: float) -> str | None:
    """From a pipe or a file; None when there is nothing in time."""
    if not select.select([number], [], [], seconds)[0]:
        return None
    return base64.b64encode(os.read(number, size)).decode()


def describe(number: int) -> dict[str, Any]:
    sock = SOCKETS.get(number)
    access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    peer = ""
    if sock is not None:
        peer = str(sock.getpeername())
    return {
        "socket": sock is not None and sock.type == socket.SOCK_SEQPACKET,
        "peer": peer,
        "read_only": access == os.O_RDONLY,
    }


def storm(plan: dict[str, Any], count: int, seed: int) -> dict[str, Any]:
    """Launches that are withdrawn at any moment: cancelled, or hung up on. The jobs, and how they
    ended. The first one is cancelled when it is answered, and says how long that takes here."""
    dice = random.Random(seed)
    jobs = []
    answers: dict[str, int] = {}
    launch_s = 0.0
    for index in range(count):
        job = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        jobs.append(job)
        number = connect()
        sock = SOCKETS[number]
        sock.settimeout(30)
        sock.send(json.dumps(link.hello()).encode())
        sock.recv(link.MAX_MESSAGE)
        # a directory that is left keeps its ids
        own = {**plan, "job": job, "uid_base": plan["uid_base"] - 65536 * index}
        fd = memfd(json.dumps(own).encode(), sealed=True)
        request = {"id": 1, "verb": "launch", "job": job}
        socket.send_fds(sock, [json.dumps(request).encode()], [fd])
        os.close(fd)
        if index == 0:
            begun = time.monotonic()
            select.select([sock], [], [], 30)
            launch_s = time.monotonic() - begun
        else:
            time.sleep(dice.choice((0, dice.uniform(0, 2 * launch_s))))
        if index == 0 or dice.random() < 0.5:
            sock.send(json.dumps({"id": 2, "verb": "cancel", "job": job}).encode())
            for _ in range(2):
                answer = json.loads(sock.recv(link.MAX_MESSAGE))
                end = "ok" if "ok" in answer else answer["error"]["code"]
                name = f"{'launch' if answer['id'] == 1 else 'cancel'} {end}"
                answers[name] = answers.get(name, 0) + 1
        else:
            answers["hung up"] = answers.get("hung up", 0) + 1
        close(number)
    return {"jobs": jobs, "answers": answers}


DO = {
    "connect": connect,
    "send": send,
    "receive": receive,
    "close": close,
    "read": read,
    "describe": describe,
    "storm": storm,
}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        action: Any = DO[request.pop("do")]
        try:
            answer = {"ok": action(**request)}
        except OSError as error:
            answer = {"error": error.errno}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
