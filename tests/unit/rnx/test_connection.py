# SPDX-License-Identifier: MIT
"""Real connections: what is said when there is none, and going on when one breaks."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from joblet_pb import joblet_pb2 as pb
from rnx import client
from rnx.config import Node
from rnx.errors import RnxError
from tests.unit.rnx.certs import Authority, Pair
from tests.unit.rnx.conftest import Rnx, node, write_config
from tests.unit.rnx.scripted import JOB, Script, Server, plain


@pytest.fixture
def configure(tmp_path: Path) -> Any:
    """Writes the default node of the home directory's configuration."""

    def write(port: int, pair: Pair, authority: Authority, **more: Any) -> None:
        nodes = {"default": node(port, pair, authority, **more)}
        write_config(tmp_path / "home" / ".rnx" / "rnx-config.yml", nodes)

    return write


def trouble(rnx: Rnx) -> str:
    """What `rnx list` says, which is one line and exit code 1, and what `run --follow` says too."""
    result = rnx("list")
    assert (result.code, result.out, result.err.count("\n")) == (1, b"", 1)
    following = rnx("run", "--follow", "x")
    assert (following.code, following.err) == (125, result.err)
    return result.err


def test_nobody_listens(rnx: Rnx, configure: Any, admin: Pair, authority: Authority) -> None:
    configure(1, admin, authority)
    assert trouble(rnx) == (
        "Error: cannot reach node 'default' at 127.0.0.1:1: connection refused; "
        "check the address, and that joblet.service is running there\n"
    )


def test_unknown_host(rnx: Rnx, configure: Any, admin: Pair, authority: Authority) -> None:
    configure(1, admin, authority, address="no-such-host.invalid:1")
    assert "the host name is not known" in trouble(rnx)


def test_certificate_of_another_authority(
    rnx: Rnx, configure: Any, server: Server, admin: Pair, authority: Authority
) -> None:
    configure(server.port, admin, authority, ca=server_of_others().cert)
    assert "its certificate is not signed by the node's ca" in trouble(rnx)


def test_expired_certificate(
    rnx: Rnx, configure: Any, script: Script, admin: Pair, authority: Authority
) -> None:
    with Server(script, authority, authority.server("127.0.0.1", days=-1)) as server:
        configure(server.port, admin, authority)
        assert "is not valid now" in trouble(rnx)


def test_name_that_the_certificate_has_not(
    rnx: Rnx, configure: Any, script: Script, admin: Pair, authority: Authority
) -> None:
    with Server(script, authority, authority.server("joblet")) as server:
        configure(server.port, admin, authority)
        assert "its certificate is for another name than 127.0.0.1" in trouble(rnx)
        configure(server.port, admin, authority, serverName="joblet")
        assert rnx("list").code == 0


def test_client_that_the_server_does_not_know(
    rnx: Rnx, configure: Any, server: Server, authority: Authority
) -> None:
    configure(server.port, server_of_others().client("admin"), authority)
    said = trouble(rnx)
    assert "client's certificate" in said


def test_key_of_another_certificate(
    rnx: Rnx, configure: Any, server: Server, admin: Pair, authority: Authority
) -> None:
    configure(server.port, Pair(admin.cert, authority.client("x").key), authority)
    assert "the node's cert, key or ca cannot be used" in trouble(rnx)
    garbage = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"
    configure(server.port, admin, authority, ca=garbage)
    assert "the node's cert, key or ca cannot be used" in trouble(rnx)


def test_what_answers_is_no_joblet(
    rnx: Rnx, configure: Any, admin: Pair, authority: Authority
) -> None:
    def answer() -> None:
        for _ in range(2):
            connection, _address = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        configure(listener.getsockname()[1], admin, authority)
        assert "does not speak TLS" in trouble(rnx)
        thread.join()


def test_no_answer_within_the_deadline(
    rnx: Rnx,
    config_file: Path,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()
    script.before = lambda: void(answered.wait(20))
    monkeypatch.setattr(client, "QUICK_S", 0.05)
    result = rnx("list")
    answered.set()
    assert result.code == 1
    assert "did not answer within 0.05 s" in result.err


def void(_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("code", "details", "said"),
    [
        ("PERMISSION_DENIED", "cannot run job: x; y", "cannot run job: x; y"),
        ("UNAVAILABLE", "cannot run job: init mode restarts; wait", "cannot run job: init mode"),
        ("NOT_FOUND", "job not found: 5", "cannot list jobs: job not found: 5"),
        ("INTERNAL", "", "cannot list jobs: INTERNAL"),
        ("UNIMPLEMENTED", "Method not implemented!", "at 127.0.0.1:"),
    ],
)
def test_errors_of_the_server_in_its_own_words(
    rnx: Rnx, config_file: Path, script: Script, code: str, details: str, said: str
) -> None:
    script.refuse = (grpc.StatusCode[code], details)
    result = rnx("list")
    assert result.code == 1
    assert said in result.err
    assert result.err.startswith("Error: cannot ")


def test_a_method_that_an_older_server_does_not_have(
    authority: Authority, admin: Pair, server: Server
) -> None:
    nothing = node(server.port, admin, authority)
    target = Node("n", "127.0.0.1", server.port, nothing["cert"], nothing["key"], nothing["ca"])
    with client.Client(target) as connected, pytest.raises(RnxError, match="does not serve this"):
        connected._call("JobService/Frob", pb.EmptyRequest(), pb.Jobs, 5, "frob")


@pytest.mark.parametrize("words", [("log", JOB), ("run", "--follow", "x")])
def test_a_restart_of_the_server_is_outlived(
    rnx: Rnx, config_file: Path, script: Script, server: Server, words: tuple[str, ...]
) -> None:
    """The connection breaks in the middle of the log; a new server on the port goes on."""
    data = bytes(range(256)) * 40
    restarted = threading.Event()

    def restart() -> None:
        server.stop()
        server.start()
        restarted.set()

    def play(request: pb.GetJobLogsRequest, context: Any) -> Iterator[pb.DataChunk]:
        yield pb.DataChunk(payload=data[:1000], offset_end=1000, stream=1)
        threading.Thread(target=restart).start()
        while context.is_active():  # until the connection is cut
            restarted.wait(0.01)

    script.plays = [play, plain(data, 997)]
    script.statuses = [pb.GetJobStatusResponse(uuid=JOB, status="COMPLETED")]
    result = rnx(*words)
    assert (result.code, result.out) == (0, data)
    assert "the server closed the connection" in result.err
    assert [request.from_offset for request in script.of(pb.GetJobLogsRequest)] == [0, 1000]


def server_of_others() -> Authority:
    import datetime

    return Authority(datetime.datetime.now(datetime.UTC), "Other-CA")
