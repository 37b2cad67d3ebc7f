# SPDX-License-Identifier: MIT
"""A writer in state D waits for its disk; one that runs, would, or waits for a lock does not."""

import threading
import time
from pathlib import Path

import pytest

from joblet.server.logs.slowness import Slowness

MS = 1_000_000


def _say(path: Path, *states: str) -> None:
    for number, state in enumerate(states):
        (path / f"{number}").write_text(f"{number} (log) D (writer)) {state} 1 2 3\n")


def test_what_the_writers_wait_for(tmp_path: Path) -> None:
    now = [0]
    slowness = Slowness(lambda: [0, 1], lambda: now[0], str(tmp_path / "{}"))

    def look(*states: str, after_ms: int = 10) -> bool:
        _say(tmp_path, *states)
        now[0] += after_ms * MS
        return slowness.of_disk()

    assert look("D", "S")
    assert not look("R", "S")
    assert not look("D", "D", after_ms=9)  # too early to look again
    assert look("D", "D", after_ms=1)
    assert [look("R", "R") for _ in range(2)] == [False, False]
    assert [look("D", "D") for _ in range(8)][-3:] == [True, True, True]
    assert [look("S", "R") for _ in range(8)] == [True] * 4 + [False] * 4
    # what was long ago does not count
    assert look("D", "R", after_ms=1000)


@pytest.mark.parametrize("text", ["", "7 (log-writer)", None])
def test_a_kernel_that_does_not_tell(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "7").write_text(text)
    assert Slowness(lambda: [7], time.monotonic_ns, str(tmp_path / "{}")).of_disk()


def test_a_real_thread_that_waits_for_another() -> None:
    stop = threading.Event()
    sleeper = threading.Thread(target=stop.wait)
    sleeper.start()
    try:
        assert not Slowness(lambda: [sleeper.native_id or 0], time.monotonic_ns).of_disk()
    finally:
        stop.set()
        sleeper.join()
