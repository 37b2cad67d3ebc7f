# SPDX-License-Identifier: MIT
from collections.abc import Iterator
from pathlib import Path

import pytest

import joblet.systemd.bus  # noqa: F401  first, because it keeps dbus_next from loading GLib
from tests.unit.systemd_bus.daemon import Daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path)
    one.start()
    yield one
    one.kill()
