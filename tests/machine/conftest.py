# SPDX-License-Identifier: MIT
"""Fixtures that give a test a real machine with the project of this tree installed.

    machine        a shared container, once per suite and worker: leave it as you found it
    fresh_machine  a container of the test's own: crash it, reboot it, fill its disk
    vm             a VM with its own kernel and all controllers, shared by a module
    fresh_vm       a VM of the test's own
    bare_machine   a container of the test's own without the project

Each test runs once per suite: -k bookworm or -k trixie picks one, @pytest.mark.suites("trixie")
limits a test. VMs are of the first suite unless $JOBLET_VM_SUITES names others.
What takes long is collected only with JOBLET_FULL=1 (make test-full).
With pytest-xdist (--dist loadgroup) the tests of one module and suite stay on one worker, so that
they share a machine, and the workers share the rest. A machine that does not come up fails its
tests. When a test fails, the report has the journal of its machines.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.machine.project import project_layer
from tests.machine.rig import SUITES, Cache, Machine, Nspawn, Vm
from tests.machine.rig.roots import vm_suites
from tests.machine.rig.rundir import sweep

collect_ignore = [] if os.environ.get("JOBLET_FULL") == "1" else ["test_package_full.py"]

JOURNAL_LINES = 300
TEST_S = 300
VM_TEST_S = 900
F = TypeVar("F", bound=Callable[..., object])
STARTED = pytest.StashKey[float]()


def _hook(**options: bool) -> Callable[[F], F]:
    """pytest.hookimpl, with the type that it has."""
    return cast("Callable[[F], F]", pytest.hookimpl(**options))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "suites(*names): run on these Debian suites only")


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # once, not in each worker
        sweep(Cache())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("suites")
    wanted = marker.args if marker else SUITES
    for fixture, suites in (("suite", SUITES), ("vm_suite", vm_suites())):
        if fixture in metafunc.fixturenames:
            chosen = [suite for suite in suites if suite in wanted] or list(wanted)
            if fixture == "suite":
                metafunc.parametrize(fixture, chosen, indirect=True, scope="function")
            else:
                metafunc.parametrize(fixture, chosen, indirect=True, scope="module")


@_hook(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        names = getattr(item, "fixturenames", ())
        # Every wait on a machine has a deadline that says more than a timeout of the test could;
        # the first test on a cold cache also builds what it needs.
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(VM_TEST_S if "vm_suite" in names else TEST_S))
        if callspec is None or item.get_closest_marker("xdist_group"):
            continue
        if "machine" in names or "vm" in names:
            group = [item.path.stem, *(callspec.params.get(k, "") for k in ("suite", "vm_suite"))]
            item.add_marker(pytest.mark.xdist_group("-".join(group)))


@_hook(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[STARTED] = time.time()


@_hook(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if not report.failed:
        return
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, Machine):
            text = value.trouble(JOURNAL_LINES, since=item.stash[STARTED] - 1)
            report.sections.append((f"{value.suite}, {value.name}", text))


@pytest.fixture(scope="session")
def cache() -> Cache:
    return Cache()


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def vm_suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def installed(cache: Cache) -> Callable[[str], list[Path]]:
    """The layers of the installed project for a suite: one state of the tree for the whole run."""
    return functools.cache(lambda suite: project_layer(suite, cache))


@pytest.fixture(scope="session")
def shared_machine(
    cache: Cache, installed: Callable[[str], list[Path]]
) -> Iterator[Callable[[str], Nspawn]]:
    """The one shared machine of a suite, booted when it is first asked for."""
    machines: dict[str, Nspawn] = {}

    def get(suite: str) -> Nspawn:
        found = machines.get(suite)
        if found is not None and not found.up:  # a test took it down that should not have
            found.close()
            found = None
        if found is None:
            found = machines[suite] = Nspawn(suite, layers=installed(suite), cache=cache)
        return found

    yield get
    for machine in machines.values():
        machine.close()


@pytest.fixture
def machine(suite: str, shared_machine: Callable[[str], Nspawn]) -> Nspawn:
    return shared_machine(suite)


@pytest.fixture
def fresh_machine(
    suite: str, cache: Cache, installed: Callable[[str], list[Path]]
) -> Iterator[Nspawn]:
    with Nspawn(suite, layers=installed(suite), cache=cache) as made:
        yield made


@pytest.fixture
def bare_machine(suite: str, cache: Cache) -> Iterator[Nspawn]:
    with Nspawn(suite, cache=cache) as made:
        yield made


@pytest.fixture(scope="module")
def vm(vm_suite: str, cache: Cache, installed: Callable[[str], list[Path]]) -> Iterator[Vm]:
    with Vm(vm_suite, payload=installed(vm_suite), cache=cache) as made:
        yield made


@pytest.fixture
def fresh_vm(vm_suite: str, cache: Cache, installed: Callable[[str], list[Path]]) -> Iterator[Vm]:
    with Vm(vm_suite, payload=installed(vm_suite), cache=cache) as made:
        yield made
