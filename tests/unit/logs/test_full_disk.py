# SPDX-License-Identifier: MIT
"""A full disk: reading rests, the job waits, people are told, and nothing is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("full_disk.py")


@pytest.mark.parametrize("case", ["output", "records", "store", "seal"])
def test_a_full_disk(tmp_path: Path, case: str) -> None:
    command = ["unshare", "--mount", "--propagation", "private"]
    done = subprocess.run(
        [*command, sys.executable, str(PROGRAM), str(tmp_path), case],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
