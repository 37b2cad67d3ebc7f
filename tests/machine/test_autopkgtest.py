# SPDX-License-Identifier: MIT
"""The package's own tests, as Debian's infrastructure runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.machine import autopkgtest
from tests.machine.rig import Nspawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.machine.rig import Cache

# those that a machine on this kernel can tell something with
TESTS = ("smoke", "unit")
TESTS_S = 600


@pytest.fixture
def testbed(suite: str, cache: Cache, installed: Callable[[str], list[Path]]) -> Iterator[Nspawn]:
    layers = [*installed(suite), autopkgtest.testbed(suite, cache)]
    with Nspawn(suite, layers=layers, cache=cache) as machine:
        autopkgtest.install(machine)
        yield machine


@pytest.mark.timeout(900)
def test_the_tests_of_the_package_pass(testbed: Nspawn) -> None:
    assert autopkgtest.run(testbed, TESTS, timeout=TESTS_S) == dict.fromkeys(TESTS, "PASS")
