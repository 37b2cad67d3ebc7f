# SPDX-License-Identifier: MIT
"""Limits: what is asked for, what systemd is told, what a kernel says that it enforces."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.config import MAX_TASKS, MIN_CPU_PERCENT, MIN_MEMORY_MIB, MIN_TASKS, PROPERTIES
from joblet.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from joblet.model import Limits
from joblet.server import limits
from joblet.server.limits import CONTROLLERS, MIB, Asked, Enforcement, ask, properties, validate

ALL = Limits(
    max_cpu=150, cpu_cores="0-1", max_memory=64 * MIB, max_iobps=1_000_000, max_tasks=100,
    cpu_weight=20, memory_high=48 * MIB, max_swap=0, max_read_bps=500_000, max_write_bps=2_000_000,
    io_weight=300,
)  # fmt: skip
NAMES = frozenset(CONTROLLERS)
SCOPE = "/joblet.slice/joblet-x.scope"
FILES = {
    "cpu.max": "150000 100000\n",
    "cpuset.cpus": "0-1\n",
    "cpu.weight": "20\n",
    "memory.max": f"{64 * MIB}\n",
    "memory.high": f"{48 * MIB}\n",
    "memory.swap.max": "0\n",
    "io.max": "8:0 rbps=500000 wbps=2000000 riops=max wiops=max\n",
    "io.bfq.weight": "default 300\n8:0 20\n",
    "pids.max": "100\n",
}
# what is read back of ALL: of both ways the larger
READ_BACK = dataclasses.replace(ALL, max_iobps=2_000_000)


def host(base: Path, controllers: str = "cpuset cpu io memory pids", **files: str) -> Path:
    """A cgroup hierarchy with one scope; files by their names, with _ for the dot."""
    scope = base / SCOPE.lstrip("/")
    scope.mkdir(parents=True, exist_ok=True)
    (base / "cgroup.controllers").write_text(controllers + "\n")
    queue = base / "sys/block/vda/queue"
    queue.mkdir(parents=True, exist_ok=True)
    (queue / "scheduler").write_text("mq-deadline [bfq] none\n")
    for name, text in files.items():
        (scope / name.replace("_", ".")).write_text(text)
    return base


def enforcing(base: Path, *, refuse: bool = True) -> Enforcement:
    return Enforcement(base, refuse=refuse, sysfs=base / "sys")


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
        Limits(cpu_weight=1, io_weight=10_000, max_read_bps=1, max_write_bps=1),
        Limits(memory_high=64 * MIB, max_memory=64 * MIB, max_swap=0),
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
        (Limits(cpu_weight=-1), "cpu_weight is negative"),
        (Limits(max_swap=-1), "max_swap is negative"),
        (Limits(max_write_bps=-1), "max_write_bps is negative"),
        (Limits(cpu_weight=10_001), "cpu_weight is not between 1 and 10000"),
        (Limits(io_weight=10_001), "io_weight is not between 1 and 10000"),
        (Limits(memory_high=MIB), f"memory_high is below {MIN_MEMORY_MIB} MiB"),
        (Limits(memory_high=65 * MIB, max_memory=64 * MIB), "above max_memory"),
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


def test_the_smallest_memory_limit_is_configured() -> None:
    validate(Limits(max_memory=32 * MIB), min_memory=32 * MIB)
    with pytest.raises(InvalidArgument, match="below 32 MiB, the smallest that limits"):
        validate(Limits(max_memory=31 * MIB), min_memory=32 * MIB)
    validate(Limits(), min_memory=32 * MIB)


def test_defaults_fill_what_the_client_left_out() -> None:
    defaults = Limits(max_cpu=100, max_memory=1 << 30, max_tasks=500)
    client = Limits(max_cpu=20, cpu_cores="1")
    assert ask(client, defaults) == Asked(
        # a memory limit that leaks into swap is none
        Limits(max_cpu=20, cpu_cores="1", max_memory=1 << 30, max_tasks=500, max_swap=0),
        frozenset({"max_cpu", "cpu_cores"}),
    )
    assert ask(Limits(), Limits()) == Asked(Limits(), frozenset())
    assert ask(Limits(memory_high=MIB), Limits()).limits.max_swap == 0
    for swap in (0, 5 * MIB):  # asked for
        client = Limits(max_memory=64 * MIB, max_swap=swap)
        assert ask(client, Limits()) == Asked(client, frozenset({"max_memory", "max_swap"}))


CEILINGS = {
    "CPUQuotaPerSecUSec": 2_000_000,
    "CPUWeight": 1000,
    "MemoryMax": 1 << 30,
    "MemorySwapMax": 1 << 20,
    "IOReadBandwidthMax": 5000,
    "IOWeight": 50,
    "TasksMax": 300,
}


def test_what_nobody_asked_for_is_set_to_its_ceiling() -> None:
    assert ask(Limits(), Limits(max_tasks=2048), CEILINGS).limits == Limits(
        max_cpu=200,
        cpu_weight=100,  # what it has anyway
        max_memory=1 << 30,
        max_swap=0,
        max_read_bps=5000,
        io_weight=50,
        max_tasks=300,
    )
    within = Limits(max_cpu=200, cpu_weight=1000, max_memory=1 << 30, max_iobps=5000, io_weight=1,
                    max_swap=1 << 20, max_tasks=8)  # fmt: skip
    assert ask(within, Limits(), CEILINGS).limits == within


@pytest.mark.parametrize(
    ("client", "why"),
    [
        (Limits(max_cpu=201), "max_cpu is 201, and this host allows 200 at most"),
        (Limits(cpu_weight=1001), "cpu_weight is 1001, and this host allows 1000"),
        (Limits(max_memory=(1 << 30) + 1), "max_memory is 1073741825"),
        (Limits(max_iobps=5001), "max_iobps is 5001, and this host allows 5000"),
        (Limits(max_iobps=1, max_read_bps=5001), "max_read_bps is 5001"),
        (Limits(max_swap=(1 << 20) + 1), "max_swap is 1048577"),
        (Limits(max_tasks=301), "max_tasks is 301"),
    ],
)
def test_above_a_ceiling_is_refused(client: Limits, why: str) -> None:
    with pytest.raises(PermissionDenied, match=why) as caught:
        ask(client, Limits(), CEILINGS)
    assert "init.yml" in caught.value.hint


def test_ceilings_pass_init_mode() -> None:
    made = properties(ask(Limits(), Limits(), CEILINGS).limits)
    assert all(made[name] <= ceiling for name, ceiling in CEILINGS.items())


def test_every_limit_knows_its_properties() -> None:
    assert set(limits.PROPERTIES) == NAMES
    for name, made in limits.PROPERTIES.items():
        alone = dataclasses.replace(Limits(), **{name: getattr(ALL, name)})
        assert set(properties(alone)) == set(made)


NUMBERS = st.just(0) | st.integers(1, 2**31)
LIMITS = st.builds(
    Limits, NUMBERS, st.sampled_from(["", "0", "0-3"]), *[NUMBERS] * 5, st.none() | NUMBERS,
    *[NUMBERS] * 3,
)  # fmt: skip


def said(wanted: Limits, name: str) -> bool:
    value = getattr(wanted, name)
    return value is not None if name == "max_swap" else bool(value)


@given(LIMITS, LIMITS)
def test_ask_is_the_client_first(client: Limits, defaults: Limits) -> None:
    asked = ask(client, defaults)
    for field in dataclasses.fields(Limits):
        wanted, default = getattr(client, field.name), getattr(defaults, field.name)
        named = said(client, field.name)
        assert (field.name in asked.by_client) == named
        expected = wanted if named else default
        if field.name == "max_swap" and expected is None:
            expected = 0 if asked.limits.max_memory or asked.limits.memory_high else None
        assert getattr(asked.limits, field.name) == expected


# -- what systemd is told --------------------------------------------------------------------------


def test_properties() -> None:
    assert properties(ALL) == {
        "CPUQuotaPerSecUSec": 1_500_000,
        "CPUWeight": 20,
        "AllowedCPUs": "0-1",
        "MemoryMax": 64 * MIB,
        "MemoryHigh": 48 * MIB,
        "MemorySwapMax": 0,
        "IOReadBandwidthMax": 500_000,
        "IOWriteBandwidthMax": 2_000_000,
        "IOWeight": 300,
        "TasksMax": 100,
    }
    assert properties(Limits(max_iobps=7, max_write_bps=9)) == {
        "IOReadBandwidthMax": 7,
        "IOWriteBandwidthMax": 9,
    }
    assert properties(Limits()) == {}


@given(LIMITS)
def test_properties_are_those_that_init_mode_knows(wanted: Limits) -> None:
    made = properties(wanted)
    assert set(made) <= set(PROPERTIES)
    # what is not limited is not named
    for field in dataclasses.fields(Limits):
        alone = properties(
            dataclasses.replace(Limits(), **{field.name: getattr(wanted, field.name)})
        )
        assert bool(alone) == said(wanted, field.name)


# -- before the launch -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CONTROLLERS))
def test_a_missing_controller_refuses_a_client(tmp_path: Path, name: str) -> None:
    there = " ".join(c for c in CONTROLLERS.values() if c != CONTROLLERS[name])
    alone = Asked(dataclasses.replace(Limits(), **{name: getattr(ALL, name)}), NAMES)
    enforcement = enforcing(host(tmp_path, there))
    with pytest.raises(FailedPrecondition) as caught:
        enforcement.before(alone)
    assert limits.flag(name) in str(caught.value)
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
    enforcement = enforcing(host(tmp_path, there), refuse=refuse)
    wanted, left_out = enforcement.before(Asked(ALL, by_client))
    gone = [n for n, controller in CONTROLLERS.items() if controller == CONTROLLERS[name]]
    assert name in gone
    # swap comes with a memory limit, and is not named unless somebody asked for it
    assert left_out == tuple(n for n in gone if n != "max_swap" or n in by_client)
    nothing: dict[str, Any] = {"cpu_cores": "", "max_swap": None}
    assert wanted == dataclasses.replace(ALL, **{n: nothing.get(n, 0) for n in gone})


def test_a_weight_that_no_disk_heeds_is_refused(tmp_path: Path) -> None:
    base = host(tmp_path)
    asked = Asked(Limits(io_weight=300), frozenset({"io_weight"}))
    assert enforcing(base).before(asked) == (asked.limits, ())
    (base / "sys/block/vda/queue/scheduler").write_text("[mq-deadline] bfq none\n")
    with pytest.raises(FailedPrecondition, match=r"--io-weight: .*scheduler BFQ") as caught:
        enforcing(base).before(asked)
    assert "io.cost" in str(caught.value)
    assert enforcing(base, refuse=False).before(asked) == (Limits(), ("io_weight",))
    (base / "io.cost.qos").write_text("8:0 enable=0 ctrl=auto\n254:0 enable=1 ctrl=user\n")
    assert enforcing(base).before(asked) == (asked.limits, ())


def test_nothing_missing(tmp_path: Path) -> None:
    enforcement = enforcing(host(tmp_path))
    assert enforcement.before(Asked(ALL, NAMES)) == (ALL, ())
    assert enforcement.controllers() == {"cpuset", "cpu", "io", "memory", "pids"}


def test_nothing_asked_for_needs_no_controllers(tmp_path: Path) -> None:
    enforcement = enforcing(host(tmp_path, ""))
    assert enforcement.before(Asked(Limits(), frozenset())) == (Limits(), ())


def test_a_host_without_the_unified_hierarchy(tmp_path: Path) -> None:
    enforcement = enforcing(tmp_path / "nothing")
    with pytest.raises(FailedPrecondition, match="not a cgroup v2 hierarchy") as caught:
        enforcement.before(Asked(ALL, frozenset()))
    assert "unified_cgroup_hierarchy" in caught.value.hint


# -- behind it -------------------------------------------------------------------------------------


def test_the_kernel_took_everything(tmp_path: Path) -> None:
    enforcement = enforcing(complete(tmp_path))
    assert enforcement.after(SCOPE, Asked(ALL, NAMES), ALL) == (READ_BACK, ())


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
        ("cpu_weight", "100\n", "cpu_weight", 100),
        ("memory_high", "max\n", "memory_high", 0),
        ("memory_high", f"{49 * MIB}\n", "memory_high", 49 * MIB),
        ("memory_swap_max", "max\n", "max_swap", None),
        ("memory_swap_max", "4096\n", "max_swap", 4096),
        ("io_bfq_weight", "default 100\n", "io_weight", 100),
        ("io_max", "8:0 rbps=max wbps=2000000 riops=max\n", "max_read_bps", 0),
        ("io_max", "8:0 rbps=600000 wbps=2000000\n", "max_read_bps", 600_000),
        ("io_max", "8:0 rbps=500000 wbps=max\n", "max_write_bps", 0),
        ("io_max", "8:0 rbps=500000 wbps=2000000\n8:1 rbps=1\n", "max_write_bps", 0),
        ("pids_max", "max\n", "max_tasks", 0),
        ("pids_max", "101\n", "max_tasks", 101),
    ],
)
def test_the_kernel_took_less(
    tmp_path: Path, file: str, text: str, name: str, effective: int | str
) -> None:
    base = complete(tmp_path, **{file: text})
    refusing = enforcing(base)
    with pytest.raises(FailedPrecondition, match="the kernel did not take it") as caught:
        refusing.after(SCOPE, Asked(ALL, NAMES), ALL)
    assert limits.flag(name) in str(caught.value)
    # a default of ours, or a host that only warns: shown as what it is
    for enforcement, by_client in (
        (refusing, NAMES - {name}),
        (enforcing(base, refuse=False), NAMES),
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
        ("io_max", "8:0 rbps=500000 wbps=1999999 riops=100 wiops=max\n253:0 wbps=5 rbps=5\n"),
    ],
)
def test_the_same_in_other_words(tmp_path: Path, file: str, text: str) -> None:
    enforcement = enforcing(complete(tmp_path, **{file: text}))
    _, untaken = enforcement.after(SCOPE, Asked(ALL, NAMES), ALL)
    assert untaken == ()


BOTH_WAYS = Limits(max_iobps=1000)


@pytest.mark.parametrize(
    ("wanted", "io_max", "untaken"),
    [
        (BOTH_WAYS, "8:0 rbps=1000 wbps=1000\n", ()),
        (BOTH_WAYS, "", ("max_iobps",)),
        (BOTH_WAYS, "8:0 rbps=1000 wbps=max\n", ("max_iobps",)),
        (BOTH_WAYS, "8:0 rbps=1000 wbps=2000\n", ("max_iobps",)),
        (BOTH_WAYS, "8:0 rbps=1000 wbps=1000\n259:0 rbps=max wbps=10\n", ("max_iobps",)),
        # of each way the limit of its own, if it has one
        (Limits(max_iobps=1000, max_read_bps=9000), "8:0 rbps=9000 wbps=1000\n", ()),
        (Limits(max_iobps=1000, max_read_bps=9000), "8:0 rbps=9000 wbps=9000\n", ("max_iobps",)),
        (Limits(max_read_bps=9000), "8:0 rbps=9000 wbps=max\n", ()),
    ],
)
def test_bandwidth_both_ways(
    tmp_path: Path, wanted: Limits, io_max: str, untaken: tuple[str, ...]
) -> None:
    enforcement = enforcing(host(tmp_path, io_max=io_max), refuse=False)
    assert enforcement.after(SCOPE, Asked(wanted, NAMES), wanted)[1] == untaken
    if untaken:
        with pytest.raises(FailedPrecondition, match="no disk behind the jobs' directory"):
            enforcing(tmp_path).after(SCOPE, Asked(wanted, NAMES), wanted)


def test_what_was_left_out_before_is_not_missed_behind(tmp_path: Path) -> None:
    enforcement = enforcing(host(tmp_path, "pids", pids_max="100\n"), refuse=False)
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
        ({"io_max": "8:0 rbps=5 wbps=max\n"}, Limits(max_read_bps=5)),
        ({"cpu_weight": "100\n"}, Limits(cpu_weight=100)),
        ({"cpu_weight": "idle\n"}, Limits()),
        ({"io_weight": "default 100\n8:0 7\n"}, Limits(io_weight=100)),
        ({"io_bfq_weight": "20\n"}, Limits(io_weight=20)),
        ({"memory_high": "4096\n"}, Limits(memory_high=4096)),
        ({"memory_swap_max": "0\n"}, Limits(max_swap=0)),
        ({"memory_swap_max": "max\n"}, Limits()),
        (
            {"io_max": "8:16 rbps=2 wbps=3 riops=max wiops=max\n"},
            Limits(max_iobps=3, max_read_bps=2, max_write_bps=3),
        ),
        (
            {"io_max": "8:16 rbps=2 wbps=3\n8:0 rbps=7 wbps=1\n"},
            Limits(max_iobps=7, max_read_bps=7, max_write_bps=3),
        ),
        ({"io_max": "8:16 rbps=max wbps=max riops=9 wiops=9\n"}, Limits()),
        ({"io_max": "8:16\n"}, Limits()),
    ],
)
def test_read(tmp_path: Path, files: dict[str, str], found: Limits) -> None:
    assert enforcing(host(tmp_path, **files)).read(SCOPE) == found


def test_read_of_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    assert enforcing(tmp_path).read("/gone") == Limits()
    assert enforcing(tmp_path).read("") == Limits()
