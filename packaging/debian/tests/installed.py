# SPDX-License-Identifier: MIT
"""pytest plugin: a run that tested anything but the installed modules has failed."""

import sys
from pathlib import Path

import pytest

SITE = Path("/usr/lib/python3/dist-packages")
PLACES = {"joblet": Path("/usr/share/joblet"), "rnx": SITE, "joblet_pb": SITE}


def pytest_sessionfinish(session: pytest.Session) -> None:
    for package, place in PLACES.items():
        names = [name for name in sys.modules if name.split(".")[0] == package]
        files = [Path(sys.modules[name].__file__ or "") for name in names]
        odd = [str(file) for file in files if place not in file.parents]
        if odd or not files:
            print(f"\n{package}: not tested as installed in {place}: {odd or 'not imported'}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        else:
            print(f"\n{package}: {len(files)} modules, all below {place}", end="")
