# SPDX-License-Identifier: MIT
"""How a job's end becomes an exit code, whether the server says the reason or not."""

import pytest

from joblet_pb.joblet_pb2 import GetJobStatusResponse
from rnx.exits import MEANINGS, Exit, of_job


def test_every_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Exit)


@pytest.mark.parametrize(
    ("status", "exit_code", "code"),
    [
        ("COMPLETED", 0, 0),
        ("FAILED", 7, 7),
        ("FAILED", -1, 125),
        ("STOPPED", 0, 143),
        ("STOPPED", -1, 143),
        ("CANCELED", 0, 143),
        ("TIMEOUT", 124, 124),
        ("STRANGE", 0, 125),
    ],
)
def test_a_published_server_gives_no_reason(status: str, exit_code: int, code: int) -> None:
    assert of_job(GetJobStatusResponse(status=status, exit_code=exit_code)) == code


def test_a_signal_without_a_reason() -> None:
    assert of_job(GetJobStatusResponse(status="FAILED", exit_code=-1, signal=11)) == 139


def test_a_reason_of_a_newer_server_is_not_taken_for_success() -> None:
    assert of_job(GetJobStatusResponse(status="COMPLETED", reason="evicted")) == 125
