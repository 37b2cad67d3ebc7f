# SPDX-License-Identifier: MIT
"""Properties, object paths and masks, as systemd spells them."""

import dbus_next
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.errors import InvalidArgument
from joblet.systemd import properties as p

INFINITY = 18446744073709551615

CASES = [
    (p.description("a job"), "Description", "s", "a job"),
    (p.documentation(("man:rnx(1)",)), "Documentation", "as", ["man:rnx(1)"]),
    (p.slice_("joblet.slice"), "Slice", "s", "joblet.slice"),
    (p.after(["joblet.service"]), "After", "as", ["joblet.service"]),
    (p.default_dependencies(on=False), "DefaultDependencies", "b", False),
    (p.collect_mode("inactive-or-failed"), "CollectMode", "s", "inactive-or-failed"),
    (p.kill_mode("mixed"), "KillMode", "s", "mixed"),
    (p.send_sighup(on=True), "SendSIGHUP", "b", True),
    (p.send_sigkill(on=False), "SendSIGKILL", "b", False),
    (p.timeout_stop(5_000_000), "TimeoutStopUSec", "t", 5_000_000),
    (p.oom_policy("continue"), "OOMPolicy", "s", "continue"),
    (p.cpu_quota(150), "CPUQuotaPerSecUSec", "t", 1_500_000),
    (p.cpu_quota(None), "CPUQuotaPerSecUSec", "t", INFINITY),
    (p.cpu_weight(400), "CPUWeight", "t", 400),
    (p.allowed_cpus([0, 9]), "AllowedCPUs", "ay", b"\x01\x02"),
    (p.allowed_cpus([]), "AllowedCPUs", "ay", b""),
    (p.memory_max(64 << 20), "MemoryMax", "t", 67_108_864),
    (p.memory_max(None), "MemoryMax", "t", INFINITY),
    (p.memory_high(60 << 20), "MemoryHigh", "t", 62_914_560),
    (p.memory_high(None), "MemoryHigh", "t", INFINITY),
    (p.memory_swap_max(0), "MemorySwapMax", "t", 0),
    (p.memory_swap_max(None), "MemorySwapMax", "t", INFINITY),
    (p.tasks_max(20), "TasksMax", "t", 20),
    (p.tasks_max(None), "TasksMax", "t", INFINITY),
    (p.io_weight(100), "IOWeight", "t", 100),
    (p.io_read_bandwidth_max({"/dev/x": 9}), "IOReadBandwidthMax", "a(st)", [("/dev/x", 9)]),
    (p.io_write_bandwidth_max({}), "IOWriteBandwidthMax", "a(st)", []),
    (p.pids([1, 2]), "PIDs", "au", [1, 2]),
]


@pytest.mark.parametrize(("made", "name", "signature", "value"), CASES)
def test_each_property(made: p.Property, name: str, signature: str, value: object) -> None:
    assert made.name == name
    assert made.variant == p.Variant(signature, value)
    # the codec checks that the value is one of this signature
    wire = (
        [list(item) if isinstance(item, tuple) else item for item in value]
        if isinstance(value, list)
        else value
    )
    dbus_next.Variant(signature, wire)


def test_every_known_property_has_a_function() -> None:
    assert {made.name for made, *_ in CASES} == set(p.SIGNATURES)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("joblet-x.scope", "/org/freedesktop/systemd1/unit/joblet_2dx_2escope"),
        ("joblet.slice", "/org/freedesktop/systemd1/unit/joblet_2eslice"),
        ("-.slice", "/org/freedesktop/systemd1/unit/_2d_2eslice"),
        ("0a.scope", "/org/freedesktop/systemd1/unit/_30a_2escope"),
        ("a_b@é.service", "/org/freedesktop/systemd1/unit/a_5fb_40_c3_a9_2eservice"),
        ("", "/org/freedesktop/systemd1/unit/_"),
    ],
)
def test_object_paths(name: str, path: str) -> None:
    assert p.unit_path(name) == path
    assert p.unit_of_path(path) == name


@given(st.text())
def test_object_paths_come_back(name: str) -> None:
    path = p.unit_path(name)
    assert p.unit_of_path(path) == name
    dbus_next.Variant("o", path)


@pytest.mark.parametrize("label", ["", "/a", "a/b", "a_", "a_2", "a_zz", "a__2d", "a_ff"])
def test_paths_that_are_no_units(label: str) -> None:
    assert p.unit_of_path(f"/org/freedesktop/systemd1/unit/{label}") is None
    assert p.unit_of_path("/org/freedesktop/systemd1/job/7") is None


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0", {0}), ("0-3,7", {0, 1, 2, 3, 7}), ("7, 0-1 ,1", {0, 1, 7}), ("8191", {8191})],
)
def test_lists_of_processors(text: str, cpus: set[int]) -> None:
    assert p.cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is neither a number nor a range"),
        ("0,,1", "'' is neither"),
        ("a", "'a' is neither"),
        ("1-", "'1-' is neither"),
        ("-1", "'-1' is neither"),
        ("1_0", "'1_0' is neither"),
        ("+1", "'+1' is neither"),
        ("٣", "is neither"),
        ("0x1", "'0x1' is neither"),
        ("3-0", "the range '3-0' ends before it begins"),
        ("8192", "Linux has no processor 8192"),
        ("0-99999999999999999999", "Linux has no processor"),
        ("0," * 3000 + "0", "longer than"),
    ],
)
def test_lists_that_are_wrong(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        p.cpu_list(text)
    assert why in caught.value.why
    assert len(str(caught.value)) < 300


@given(st.frozensets(st.integers(0, p.CPUS_MAX - 1), min_size=1, max_size=50))
def test_processors_come_back(cpus: frozenset[int]) -> None:
    assert p.cpu_list(p.cpu_list_text(cpus)) == cpus
    assert p.cpus_of_mask(p.cpu_mask(cpus)) == cpus


def test_ranges_are_written_short() -> None:
    assert p.cpu_list_text([3, 7, 0, 1, 2, 9, 8]) == "0-3,7-9"
    assert p.cpu_list_text([]) == ""
