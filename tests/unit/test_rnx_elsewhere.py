# SPDX-License-Identifier: MIT
"""All of rnx's unit tests once more, as on macOS and as on Windows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.rnx import elsewhere

TREE = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_rnx_elsewhere(platform: str) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", elsewhere.__name__]
    environ = {**os.environ, elsewhere.VARIABLE: platform}
    for name in [name for name in environ if name.startswith("PYTEST_")]:
        del environ[name]  # of the run around this one
    done = subprocess.run(
        [sys.executable, *words, "tests/unit/rnx"],
        cwd=TREE,
        env=environ,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert f"rnx as on {platform}" in done.stdout
    assert re.search(r"^[1-9][0-9]* passed in ", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_nothing_but_rnx_is_elsewhere(platform: str) -> None:
    imported = elsewhere.importer(platform)
    there, here = {"__package__": "rnx.commands"}, {"__package__": "click"}
    assert imported("sys", there).platform == platform
    assert imported("sys", here).platform == sys.platform
    assert imported("os", there).getpid() == os.getpid()
    for name in ("systemd", "systemd.daemon", "dbus_next"):
        with pytest.raises(ModuleNotFoundError, match="on this system"):
            imported(name, there)
    assert imported("systemd", here).__name__ == "systemd"
    assert imported("os.path", there, None, ("join",), 0) is os.path


def test_what_windows_has_not() -> None:
    imported = elsewhere.importer("win32")
    there = {"__package__": "rnx"}
    for name in ("fcntl", "termios", "pwd", "resource", "syslog", "grp", "tty", "pty"):
        with pytest.raises(ModuleNotFoundError):
            imported(name, there)
    signals, system = imported("signal", there), imported("os", there)
    assert (signals.SIGINT, system.name) == (2, "nt")
    for module, name in [
        (signals, "SIGPIPE"),
        (signals, "SIGHUP"),
        (signals, "SIGWINCH"),
        (system, "getuid"),
        (system, "fork"),
        (system, "set_blocking"),
    ]:
        assert not hasattr(module, name)
