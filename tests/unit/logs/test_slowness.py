# SPDX-License-Identifier: MIT
"""A writer that sleeps waits for its disk; one that runs, or would, does not."""

import threading
import time
from pathlib import Path

import pytest

from joblet.server.logs.slowness import Slowness

MS = 1_000_000


def _say(path: Path, ran_ms: int, waited_ms: int) -> None:
    (path / "7").write_text(f"{ran_ms * MS} {waited_ms * MS} 3\n")


def test_how_the_time_went(tmp_path: Path) -> None:
    now = [1_000 * MS]
    slowness = Slowness(lambda: [7], lambda: now[0], str(tmp_path / "{}"))
    _say(tmp_path, 500, 100)
    assert slowness.of_disk()  # nothing to compare with yet
    now[0] += 100 * MS
    _say(tmp_path, 540, 130)
    assert not slowness.of_disk()  # 70 of 100 ms it ran or wanted to
    now[0] += 49 * MS
    _say(tmp_path, 540, 130)
    assert not slowness.of_disk()  # too early to look again
    now[0] += 51 * MS
    _say(tmp_path, 545, 130)
    assert slowness.of_disk()


@pytest.mark.parametrize("text", ["", "what\n", "1\n", None])
def test_a_kernel_that_does_not_tell(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "7").write_text(text)
    assert Slowness(lambda: [7], time.monotonic_ns, str(tmp_path / "{}")).of_disk()


def test_a_real_thread_that_sleeps() -> None:
    stop = threading.Event()
    sleeper = threading.Thread(target=stop.wait)
    sleeper.start()
    try:
        slowness = Slowness(lambda: [sleeper.native_id or 0], time.monotonic_ns)
        slowness.of_disk()
        assert not stop.wait(0.06)
        assert slowness.of_disk()
    finally:
        stop.set()
        sleeper.join()
