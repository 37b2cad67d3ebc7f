# SPDX-License-Identifier: MIT
"""One version everywhere: the server's, the client's and the package's."""

import subprocess
import sys

import joblet
import rnx
from tools import deb


def test_there_is_one_version() -> None:
    assert joblet.__version__ == rnx.__version__ == deb.version_of()


def test_both_commands_say_it() -> None:
    for module in ("joblet", "rnx"):
        command = [sys.executable, "-m", module, "--version"]
        done = subprocess.run(command, cwd=deb.TREE, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == deb.version_of()
