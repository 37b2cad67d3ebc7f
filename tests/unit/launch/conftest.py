# SPDX-License-Identifier: MIT
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.launch.support import Host


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Host(tmp_path_factory.mktemp("host")) as made:
        yield made


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """A zygote; its jobs end with the test."""
    yield shared_host
    shared_host.end_jobs()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Host]:
    """Job directories on a filesystem of 1 MiB."""
    with Host(tmp_path, size="1m") as made:
        yield made
