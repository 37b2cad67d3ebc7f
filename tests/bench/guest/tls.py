# SPDX-License-Identifier: MIT
"""The limit for followers: the same bytes over mutual TLS, with nothing around them.

Python's ssl on both sides, the certificates of this machine's Joblet, as many processes as its
followers are: the sender sends what lies in memory, the receivers count it.
"""

import contextlib
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import yaml

from rnx import config
from tests.bench.guest.errors import Broken
from tests.bench.guest.helper import Helper, say
from tests.bench.guest.load import data
from tests.bench.guest.peers import CONFIGURATION

SERVER: Final = Path("/etc/joblet/joblet-config.yml")
CHUNK_BYTES: Final = 1 << 20
LOCALHOST: Final = "127.0.0.1"
SENDER: Final = "tls-sender"
RECEIVER: Final = "tls-receiver"


def rate(count: int, processes: int, total: int) -> float:
    """GB/s of each of `count` connections, `total` bytes over each. Raises Broken."""
    with contextlib.ExitStack() as stack:
        sender = Helper(SENDER, {"count": count, "total": total})
        stack.callback(sender.close)
        port = sender.result()
        options = {"count": count // processes, "total": total, "port": port}
        receivers = [Helper(RECEIVER, options) for _ in range(processes)]
        for receiver in receivers:
            stack.callback(receiver.close)
        for receiver in receivers:
            receiver.wait_ready()
        begin = int(sender.result())
        end = max(int(receiver.result()) for receiver in receivers)
    return total / (end - begin)


def send(options: dict[str, Any]) -> None:
    """The helper: says its port, waits for all to connect, says when it began."""
    security = yaml.safe_load(SERVER.read_text())["security"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    _load(context, security["serverCert"], security["serverKey"], security["caCert"])
    block = memoryview((data() * 2)[:CHUNK_BYTES])
    with socket.create_server((LOCALHOST, 0), backlog=options["count"]) as server:
        say(str(server.getsockname()[1]))
        connections = [
            context.wrap_socket(server.accept()[0], server_side=True)
            for _ in range(options["count"])
        ]

    def one(connection: ssl.SSLSocket) -> None:
        left = options["total"]
        with connection:
            while left:
                left -= connection.send(block[: min(left, CHUNK_BYTES)])

    say(str(time.monotonic_ns()))
    _together(one, connections)


def receive(options: dict[str, Any]) -> None:
    """The helper: says `ready`, then when it had all."""
    node = config.load(CONFIGURATION).node(config.DEFAULT_NODE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    _load(context, node.cert, node.key, node.ca)
    connections = [
        context.wrap_socket(socket.create_connection((LOCALHOST, options["port"])))
        for _ in range(options["count"])
    ]

    def one(connection: ssl.SSLSocket) -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        left = options["total"]
        with connection:
            while left:
                got = connection.recv_into(buffer)
                if not got:
                    raise Broken(f"{left} bytes did not come")
                left -= got

    say()
    _together(one, connections)
    say(str(time.monotonic_ns()))


def _together(work: Callable[[ssl.SSLSocket], None], connections: Sequence[ssl.SSLSocket]) -> None:
    with ThreadPoolExecutor(len(connections)) as pool:
        list(pool.map(work, connections))


def _load(context: ssl.SSLContext, certificate: str, key: str, authority: str) -> None:
    context.load_verify_locations(cadata=authority)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # for root alone
        file.write(f"{certificate}\n{key}\n")
        file.flush()
        context.load_cert_chain(file.name)
