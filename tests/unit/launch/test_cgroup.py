# SPDX-License-Identifier: MIT
"""What a PID 1 reads of its cgroup, and what it leaves out."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from joblet.launch.cgroup import Cgroup

SCOPE = "/joblet.slice/joblet-x.scope"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A cgroup's directory, and a descriptor of the tree's root."""
    directory = tmp_path / SCOPE.lstrip("/")
    directory.mkdir(parents=True)
    fd = os.open(tmp_path, os.O_PATH)
    yield directory, fd
    os.close(fd)


def test_usage(root: tuple[Path, int]) -> None:
    directory, fd = root
    (directory / "cpu.stat").write_text("usage_usec 1234\nuser_usec 1000\n")
    (directory / "memory.peak").write_text("5000\n")
    (directory / "memory.max").write_text("8192\n")
    (directory / "io.stat").write_text("8:0 rbytes=5 wbytes=7 rios=1\n254:0 rbytes=1 wbytes=2\n")
    cgroup = Cgroup(fd, SCOPE)
    assert cgroup.usage() == {
        "cpu_usec": 1234, "memory_peak": 5000, "memory_limit": 8192, "io_read": 6, "io_write": 9,
    }  # fmt: skip
    (directory / "memory.max").write_text("max\n")  # it was lifted
    assert "memory_limit" not in cgroup.usage()


def test_what_the_host_does_not_have_is_left_out(root: tuple[Path, int]) -> None:
    assert Cgroup(root[1], SCOPE).usage() == {}
    assert Cgroup(root[1], SCOPE).oom() == (False, False)


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ("oom 0\noom_kill 0\nmax 3\n", (False, True)),
        ("oom 1\noom_kill 1\nmax 9\n", (True, True)),
        ("oom 0\noom_kill 1\nmax 0\n", (True, False)),  # the host's own killer
    ],
)
def test_oom(root: tuple[Path, int], events: str, found: tuple[bool, bool]) -> None:
    (root[0] / "memory.events").write_text(events)
    assert Cgroup(root[1], SCOPE).oom() == found
