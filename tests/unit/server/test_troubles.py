# SPDX-License-Identifier: MIT
"""A disk that refuses output is told of: once for all jobs, and not in a flood."""

import logging

import pytest

from joblet.errors import ResourceExhausted
from joblet.server.troubles import PAUSE_S, Overflows, Troubles
from joblet.systemd import messages

FULL = ResourceExhausted("keep the output of job 1", "No space left on device", hint="make room")


def test_a_full_disk_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 5.0
    troubles = Troubles(lambda: now)
    for job in ("1", "2", "3", "1"):
        troubles.tell(job, FULL)
    for job in ("1", "2", "3"):
        assert len(caplog.messages) == 1
        troubles.tell(job, None)
    full, again = caplog.messages
    assert full.startswith("cannot keep the output of job 1: No space left on device; make room")
    assert again == "what jobs print is kept again"
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.INFO]
    # a disk on which there is room now and then
    caplog.clear()
    for _ in range(9):
        troubles.tell("1", FULL)
        troubles.tell("1", None)
    assert not caplog.messages
    troubles.tell("1", FULL)
    now += PAUSE_S
    troubles.tell("1", FULL)
    troubles.tell("1", None)
    assert caplog.messages == [full, again]


def test_without_trouble_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Troubles(lambda: 0.0).tell("1", None)
    assert not caplog.messages


def test_a_slow_disk_is_told_of_once_an_episode(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 5.0
    overflows = Overflows(lambda: 950_000_000, lambda: now)
    for _ in range(3):  # a disk that keeps up now and then
        overflows.tell("alert", True)
        overflows.tell("block", True)
        overflows.tell("alert", False)
        overflows.tell("block", False)
    alert, block, *_ = caplog.records
    assert alert.message.startswith(
        "the disk is slower than the jobs, 950 MB of output wait for it"
    )
    assert "more than memory_limit" in alert.message
    assert "nothing is lost" in block.message
    assert [record.levelno for record in caplog.records] == 2 * [logging.WARNING] + 2 * [
        logging.INFO
    ]
    told = [getattr(record, "fields") for record in caplog.records]  # noqa: B009 - put there
    assert [fields["JOBLET_OVERFLOW"] for fields in told] == 2 * ["alert", "block"]
    assert [fields["MESSAGE_ID"] for fields in told] == 2 * [messages.OVERFLOW] + 2 * [
        messages.OVERFLOW_OVER
    ]
    now += PAUSE_S
    overflows.tell("block", True)
    assert len(caplog.records) == 5
