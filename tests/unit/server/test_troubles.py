# SPDX-License-Identifier: MIT
"""A disk that refuses output is told of: once for all jobs, and not in a flood."""

import logging

import pytest

from joblet.errors import ResourceExhausted
from joblet.server.troubles import PAUSE_S, Troubles

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
