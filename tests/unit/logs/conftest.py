# SPDX-License-Identifier: MIT
"""Every test here gives back every descriptor it took."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


def _open_descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue  # the one that listed the directory
    return found


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = _open_descriptors()
    yield
    gc.collect()
    assert _open_descriptors() - before == set()
