# SPDX-License-Identifier: MIT
"""The last words of a service: one line, with a priority where systemd reads it, and as status."""

import io
import os
import socket
from pathlib import Path

from joblet.systemd import failure

TEXT = "cannot read x.yml: line 3:\n  it is no YAML; mend it"
LINE = "cannot read x.yml: line 3: it is no YAML; mend it"


def test_by_hand_it_is_a_line_on_stderr() -> None:
    stream = io.StringIO()
    failure.tell(TEXT, {}, stream)
    assert stream.getvalue() == f"joblet: {LINE}\n"


def test_as_a_unit_it_is_an_error_of_the_journal_and_the_status(tmp_path: Path) -> None:
    with (
        (tmp_path / "stderr").open("w") as stream,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        status = os.fstat(stream.fileno())
        environ = {
            "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
        }
        failure.tell(TEXT, environ, stream)
        assert manager.recv(4096).decode() == f"STATUS={LINE}"
    assert (tmp_path / "stderr").read_text() == f"<3>{LINE}\n"
