# SPDX-License-Identifier: MIT
"""Limits: what is asked for, what systemd is told, what a kernel says that it enforces."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.config import MAX_TASKS, MIN_CPU_PERCENT, MIN_MEMORY_MIB, MIN_TASKS, PROPERTIES
from joblet.errors import FailedPrecondition, InvalidArgument
from joblet.model import Limits
from joblet.server import limits
from joblet.server.limits import CONTROLLERS, MIB, Asked, Enforcement, ask, properties, validate

ALL = Limits(
    max_cpu=150, cpu_cores="0-1", max_memory=64 * MIB, max_iobps=1_000_000, max_tasks=100
)  # fmt: skip
NAMES = frozenset(CONTROLLERS)
SCOPE = "/joblet.slice/joblet-x.scope"
FILES = {
    "cpu.max": "150000 100000\n",
    "cpuset.cpus": "0-1\n",
    "memory.max": f"{64 * MIB}\n",
    "io.max": "8:0 rbps=1000000 wbps=1000000 riops=max wiops=max\n",
    "pids.max": "100\n",
}


def host(base: Path, controllers: str = "cpuset cpu io memory pids", **files: str) -> Path:
    """A cgroup hierarchy with one scope; files by their names, with _ for the dot."""
    scope = base / SCOPE.lstrip("/")
    scope.mkdir(parents=True, exist_ok=True)
    (base / "cgroup.controllers").write_text(controllers + "\n")
    for name, text in files.items():
        (scope / name.replace("_", ".")).write_text(text)
    return base


def complete(base: Path, **changed: str) -> Path:
    made = {name.replace(".", "_"): text for name, text in FILES.items()}
    return host(base, **{**made, **changed})


# -- what is asked for -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "good",
    [
        Limits(),
        ALL,
        Limits(max_cpu=MIN_CPU_PERCENT),
        Limits(max_memory=MIN_MEMORY_MIB * MIB),
        Limits(max_tasks=MIN_TASKS),
        Limits(max_tasks=MAX_TASKS),
        Limits(cpu_cores="0,2-3"),
        Limits(max_iobps=1),
    ],
)
def test_sound(good: Limits) -> None:
    validate(good)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Limits(max_cpu=-1), "max_cpu is negative"),
        (Limits(max_memory=-MIB), "max_memory is negative"),
        (Limits(max_iobps=-1), "max_iobps is negative"),
        (Limits(max_tasks=-1), "max_tasks is negative"),
        (Limits(max_cpu=MIN_CPU_PERCENT - 1), f"{MIN_CPU_PERCENT} %"),
        (Limits(max_memory=MIN_MEMORY_MIB * MIB - 1), f"below {MIN_MEMORY_MIB} MiB"),
        (Limits(max_tasks=MIN_TASKS - 1), f"between {MIN_TASKS} and {MAX_TASKS}"),
        (Limits(max_tasks=MAX_TASKS + 1), f"between {MIN_TASKS} and {MAX_TASKS}"),
        (Limits(cpu_cores="1-"), "neither a number nor a range"),
        (Limits(cpu_cores="3-1"), "ends before it begins"),
        (Limits(cpu_cores="999999"), "no processor"),
        (Limits(cpu_cores=" "), "neither a number nor a range"),
    ],
)
def test_unsound(bad: Limits, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        validate(bad)


def test_defaults_fill_what_the_client_left_out() -> None:
    defaults = Limits(max_cpu=100, max_memory=1 << 30, max_tasks=500)
    client = Limits(max_cpu=20, cpu_cores="1")
    assert ask(client, defaults) == Asked(
        Limits(max_cpu=20, cpu_cores="1", max_memory=1 << 30, max_tasks=500),
        frozenset({"max_cpu", "cpu_cores"}),
    )
    assert ask(Limits(), Limits()) == Asked(Limits(), frozenset())


NUMBERS = st.just(0) | st.integers(1, 2**31)
LIMITS = st.builds(Limits, NUMBERS, st.sampled_from(["", "0", "0-3"]), NUMBERS, NUMBERS, NUMBERS)


@given(LIMITS, LIMITS)
def test_ask_is_the_client_first(client: Limits, defaults: Limits) -> None:
    asked = ask(client, defaults)
    for field in dataclasses.fields(Limits):
        wanted, default = getattr(client, field.name), getattr(defaults, field.name)
        assert getattr(asked.limits, field.name) == (wanted or default)
        assert (field.name in asked.by_client) == bool(wanted)


# -- what systemd is told --------------------------------------------------------------------------


def test_properties() -> None:
    assert properties(ALL) == {
        "CPUQuotaPerSecUSec": 1_500_000,
        "AllowedCPUs": "0-1",
        "MemoryMax": 64 * MIB,
        "MemorySwapMax": 0,
        "IOReadBandwidthMax": 1_000_000,
        "IOWriteBandwidthMax": 1_000_000,
        "TasksMax": 100,
    }
    assert properties(Limits()) == {}


@given(LIMITS)
def test_properties_are_those_that_init_mode_knows(wanted: Limits) -> None:
    made = properties(wanted)
    assert set(made) <= set(PROPERTIES)
    assert ("MemorySwapMax" in made) == ("MemoryMax" in made)
    # what is not limited is not named
    for field in dataclasses.fields(Limits):
        alone = properties(
            dataclasses.replace(Limits(), **{field.name: getattr(wanted, field.name)})
        )
        assert bool(alone) == bool(getattr(wanted, field.name))


# -- before the launch -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CONTROLLERS))
def test_a_missing_controller_refuses_a_client(tmp_path: Path, name: str) -> None:
    there = " ".join(c for c in CONTROLLERS.values() if c != CONTROLLERS[name])
    enforcement = Enforcement(host(tmp_path, there), refuse=True)
    with pytest.raises(FailedPrecondition) as caught:
        enforcement.before(Asked(ALL, NAMES))
    assert limits.FLAGS[name] in str(caught.value)
    assert f"no {CONTROLLERS[name]} controller" in str(caught.value)
    assert "on_missing_controller: warn" in caught.value.hint


@pytest.mark.parametrize("name", sorted(CONTROLLERS))
@pytest.mark.parametrize(
    ("refuse", "by_client"), [(True, NAMES - NAMES), (False, NAMES), (False, NAMES - NAMES)]
)
def test_a_missing_controller_is_left_out_and_shown(
    tmp_path: Path, name: str, refuse: bool, by_client: frozenset[str]
) -> None:
    there = " ".join(c for c in CONTROLLERS.values() if c != CONTROLLERS[name])
    enforcement = Enforcement(host(tmp_path, there), refuse=refuse)
    wanted, left_out = enforcement.before(Asked(ALL, by_client))
    assert left_out == (name,)
    nothing: Any = "" if name == "cpu_cores" else 0
    assert wanted == dataclasses.replace(ALL, **{name: nothing})


def test_nothing_missing(tmp_path: Path) -> None:
    enforcement = Enforcement(host(tmp_path), refuse=True)
    assert enforcement.before(Asked(ALL, NAMES)) == (ALL, ())
    assert enforcement.controllers() == {"cpuset", "cpu", "io", "memory", "pids"}


def test_nothing_asked_for_needs_no_controllers(tmp_path: Path) -> None:
    enforcement = Enforcement(host(tmp_path, ""), refuse=True)
    assert enforcement.before(Asked(Limits(), frozenset())) == (Limits(), ())


def test_a_host_without_the_unified_hierarchy(tmp_path: Path) -> None:
    enforcement = Enforcement(tmp_path / "nothing", refuse=True)
    with pytest.raises(FailedPrecondition, match="not a cgroup v2 hierarchy") as caught:
        enforcement.before(Asked(ALL, frozenset()))
    assert "unified_cgroup_hierarchy" in caught.value.hint


# -- behind it -------------------------------------------------------------------------------------


def test_the_kernel_took_everything(tmp_path: Path) -> None:
    enforcement = Enforcement(complete(tmp_path), refuse=True)
    assert enforcement.after(SCOPE, Asked(ALL, NAMES), ALL) == (ALL, ())


@pytest.mark.parametrize(
    ("file", "text", "name", "effective"),
    [
        ("cpu_max", "max 100000\n", "max_cpu", 0),
        ("cpu_max", "160000 100000\n", "max_cpu", 160),  # weaker
        ("cpuset_cpus", "\n", "cpu_cores", ""),
        ("cpuset_cpus", "0-3\n", "cpu_cores", "0-3"),
        ("cpuset_cpus", "0\n", "cpu_cores", "0"),
        ("memory_max", "max\n", "max_memory", 0),
        ("memory_max", f"{65 * MIB}\n", "max_memory", 65 * MIB),
        ("io_max", "", "max_iobps", 0),
        ("io_max", "8:0 rbps=1000000 wbps=max riops=max wiops=max\n", "max_iobps", 0),
        ("io_max", "8:0 rbps=1000000 wbps=2000000 riops=max wiops=max\n", "max_iobps", 2_000_000),
        (
            "io_max",
            "8:0 rbps=1000000 wbps=1000000\n259:0 rbps=max wbps=1000 riops=max wiops=max\n",
            "max_iobps",
            0,
        ),
        ("pids_max", "max\n", "max_tasks", 0),
        ("pids_max", "101\n", "max_tasks", 101),
    ],
)
def test_the_kernel_took_less(
    tmp_path: Path, file: str, text: str, name: str, effective: int | str
) -> None:
    base = complete(tmp_path, **{file: text})
    refusing = Enforcement(base, refuse=True)
    with pytest.raises(FailedPrecondition, match="the kernel did not take it") as caught:
        refusing.after(SCOPE, Asked(ALL, NAMES), ALL)
    assert limits.FLAGS[name] in str(caught.value)
    # a default of ours, or a host that only warns: shown as what it is
    for enforcement, by_client in (
        (refusing, NAMES - {name}),
        (Enforcement(base, refuse=False), NAMES),
    ):
        found, untaken = enforcement.after(SCOPE, Asked(ALL, by_client), ALL)
        assert untaken == (name,)
        assert getattr(found, name) == effective


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("memory_max", f"{64 * MIB - 4096}\n"),  # whole pages, rounded down
        ("cpuset_cpus", "0,1\n"),  # the same, spelt otherwise
        ("cpu_max", "15000 10000\n"),  # another period
        ("cpu_max", "149999 100000\n"),
        ("io_max", "8:0 rbps=1000000 wbps=999999 riops=100 wiops=max\n253:0 wbps=5 rbps=5\n"),
    ],
)
def test_the_same_in_other_words(tmp_path: Path, file: str, text: str) -> None:
    enforcement = Enforcement(complete(tmp_path, **{file: text}), refuse=True)
    _, untaken = enforcement.after(SCOPE, Asked(ALL, NAMES), ALL)
    assert untaken == ()


def test_what_was_left_out_before_is_not_missed_behind(tmp_path: Path) -> None:
    enforcement = Enforcement(host(tmp_path, "pids", pids_max="100\n"), refuse=False)
    wanted, left_out = enforcement.before(Asked(ALL, NAMES))
    assert set(left_out) == NAMES - {"max_tasks"}
    assert enforcement.after(SCOPE, Asked(ALL, NAMES), wanted) == (Limits(max_tasks=100), ())


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, Limits()),
        ({"cpu_max": "max 100000\n"}, Limits()),
        ({"cpu_max": "max\n"}, Limits()),
        ({"cpu_max": "5000 100000\n"}, Limits(max_cpu=5)),
        ({"cpu_max": "400000 100000\n"}, Limits(max_cpu=400)),
        ({"cpu_max": ""}, Limits()),
        ({"cpu_max": "nonsense\n"}, Limits()),
        ({"cpuset_cpus": "0-3,8\n"}, Limits(cpu_cores="0-3,8")),
        ({"cpuset_cpus": "\n"}, Limits()),
        ({"memory_max": "max\n"}, Limits()),
        ({"memory_max": "0\n"}, Limits()),
        ({"memory_max": "67108864\n"}, Limits(max_memory=64 * MIB)),
        ({"pids_max": "17\n"}, Limits(max_tasks=17)),
        ({"pids_max": "max\n"}, Limits()),
        ({"io_max": "\n"}, Limits()),
        ({"io_max": "8:16 rbps=2 wbps=3 riops=max wiops=max\n"}, Limits(max_iobps=3)),
        ({"io_max": "8:16 rbps=2 wbps=3\n8:0 rbps=7 wbps=1\n"}, Limits(max_iobps=7)),
        ({"io_max": "8:16 rbps=max wbps=max riops=9 wiops=9\n"}, Limits()),
        ({"io_max": "8:16\n"}, Limits()),
    ],
)
def test_read(tmp_path: Path, files: dict[str, str], found: Limits) -> None:
    assert Enforcement(host(tmp_path, **files), refuse=True).read(SCOPE) == found


def test_read_of_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    assert Enforcement(tmp_path, refuse=True).read("/gone") == Limits()
    assert Enforcement(tmp_path, refuse=True).read("") == Limits()
