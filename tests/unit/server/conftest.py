# SPDX-License-Identifier: MIT
"""What the tests of the server share: no pauses between tries, and no descriptor left open."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.server.support import impatient


def _open_descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue  # the one that listed the directory
    return found


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Every descriptor that a test took is given back. Not for grpc, which keeps its own."""
    before = _open_descriptors()
    yield
    gc.collect()
    assert _open_descriptors() - before == set()


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Retries at once; for more to be changed."""
    with impatient() as patch:
        yield patch
