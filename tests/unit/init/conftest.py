# SPDX-License-Identifier: MIT
from collections.abc import Iterator

import pytest

from tests.unit.launch.support import Host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Host(tmp_path_factory.mktemp("host")) as made:
        yield made
