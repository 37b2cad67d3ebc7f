# SPDX-License-Identifier: MIT
"""Pieces that are asked for and freed again and again cost no pages."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from joblet.server import allocator
if sys.argv[1] == "spare":
    assert allocator.keep_spare()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
pieces = [bytes(900_000) for _ in range(3)]
before = faults()
for _ in range(200):
    pieces = [bytes(900_000) for _ in range(3)]
print(faults() - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_what_is_freed_is_used_again() -> None:
    without, kept = faults("as-it-is"), faults("spare")
    assert kept < 2000 < without
