# SPDX-License-Identifier: MIT
"""What init mode permits: every refusal, and that nothing else comes out of a bad plan."""

import dataclasses
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.config import PROPERTIES, UIDS_PER_JOB, InitPolicy
from joblet.errors import InvalidArgument, JobletError, PermissionDenied
from joblet.init import policy as permits
from joblet.launch.plan import Plan

JOB = "01234567-89ab-cdef-0123-456789abcdef"
POLICY = InitPolicy()
BASE = POLICY.uid_bases()[0]
MIB = 1 << 20


def plan(**changes: Any) -> Plan:
    made = Plan(job=JOB, path="/bin/true", argv=("true",), env={}, uid_base=BASE)
    return dataclasses.replace(made, **changes)


def policy(**changes: Any) -> InitPolicy:
    return dataclasses.replace(POLICY, **changes)


def refused(cls: type[JobletError], checked: Plan, by: InitPolicy = POLICY) -> str:
    with pytest.raises(cls) as info:
        permits.check(checked, by)
    assert type(info.value) is cls
    assert len(str(info.value)) < 300  # it goes into an answer and a log
    return str(info.value)


# --- the memfd ------------------------------------------------------------------------------------


def memfd(data: bytes, seals: int = permits.SEALS) -> int:
    fd = os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.fixture
def read() -> Iterator[Callable[..., Plan]]:
    """read_plan of a descriptor that is closed with the test."""
    fds: list[int] = []

    def read_one(fd: int, by: InitPolicy = POLICY) -> Plan:
        fds.append(fd)
        return permits.read_plan(fd, by)

    yield read_one
    for fd in fds:
        os.close(fd)


def why(read: Callable[..., Plan], fd: int, by: InitPolicy = POLICY) -> str:
    with pytest.raises(InvalidArgument, match="cannot read the plan") as info:
        read(fd, by)
    return info.value.why


def test_a_sealed_plan(read: Callable[..., Plan]) -> None:
    sent = plan(env={"A": "ü"}, properties={"MemoryMax": MIB})
    assert read(memfd(sent.to_bytes())) == sent
    assert read(memfd(sent.to_bytes(), permits.SEALS | fcntl.F_SEAL_SEAL)) == sent
    # wherever its offset is
    fd = memfd(sent.to_bytes())
    os.lseek(fd, 7, os.SEEK_SET)
    assert read(fd) == sent


@pytest.mark.parametrize("missing", ["F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE"])
def test_a_seal_that_is_missing(read: Callable[..., Plan], missing: str) -> None:
    seals = permits.SEALS & ~getattr(fcntl, missing)
    assert why(read, memfd(plan().to_bytes(), seals)) == "its memfd is not sealed"


def test_an_unsealed_memfd(read: Callable[..., Plan]) -> None:
    assert why(read, memfd(plan().to_bytes(), 0)) == "its memfd is not sealed"
    fd = os.memfd_create("plan", os.MFD_CLOEXEC)  # it cannot be
    os.write(fd, plan().to_bytes())
    assert why(read, fd) == "its memfd is not sealed"
    # a mapping that is written through would not see F_SEAL_FUTURE_WRITE
    future = 0x10
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | future
    assert why(read, memfd(plan().to_bytes(), seals)) == "its memfd is not sealed"


def test_what_is_no_memfd(read: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(plan().to_bytes())
    assert "not in a memfd" in why(read, os.open(tmp_path / "plan", os.O_RDONLY))
    reader, writer = os.pipe()
    os.write(writer, plan().to_bytes())
    os.close(writer)
    assert "not in a memfd" in why(read, reader)
    assert "not in a memfd" in why(read, os.open(tmp_path, os.O_RDONLY))
    assert "not in a memfd" in why(read, os.open("/dev/null", os.O_RDWR))
    assert "not in a memfd" in why(read, os.open(tmp_path / "plan", os.O_PATH))
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(plan().to_bytes())
        file.flush()
        # a file of a tmpfs is a sealable kind of file, and is not sealed
        assert "sealed" in why(read, os.dup(file.fileno()))


def test_a_memfd_that_cannot_be_read(read: Callable[..., Plan]) -> None:
    fd = memfd(plan().to_bytes())
    try:
        path = os.open(f"/proc/self/fd/{fd}", os.O_PATH)
        assert "not in a memfd" in why(read, path)
        unsealed = os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(unsealed, plan().to_bytes())
        for_writing = os.open(f"/proc/self/fd/{unsealed}", os.O_WRONLY)
        fcntl.fcntl(unsealed, fcntl.F_ADD_SEALS, permits.SEALS)
        os.close(unsealed)
        assert why(read, for_writing)
    finally:
        os.close(fd)


def test_size(read: Callable[..., Plan]) -> None:
    data = plan().to_bytes()
    exact = policy(max_plan_bytes=len(data))
    assert read(memfd(data), exact) == plan()
    assert f"{len(data) + 1} bytes are more than {len(data)}" in why(
        read, memfd(data + b" "), exact
    )
    # of what is far too large nothing is read
    fd = os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 40)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, permits.SEALS)
    assert "more than" in why(read, fd)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    fd = memfd(data)
    try:
        with pytest.raises(InvalidArgument, match="cannot read the plan"):
            permits.read_plan(fd, POLICY)
    finally:
        os.close(fd)


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, plan().to_bytes()[:-1]])
def test_a_malformed_plan(read: Callable[..., Plan], data: bytes) -> None:
    assert why(read, memfd(data))


# --- uids -----------------------------------------------------------------------------------------


def test_uids() -> None:
    for base in (BASE, BASE + UIDS_PER_JOB, POLICY.uid_bases()[-1]):
        permits.check(plan(uid_base=base), POLICY)


@pytest.mark.parametrize(
    "base",
    [
        0,
        1,
        1000,
        65536,
        BASE - UIDS_PER_JOB,
        BASE - 1,
        BASE + 1,
        BASE + UIDS_PER_JOB - 1,
        POLICY.uid_bases()[-1] + 1,
        POLICY.uid_last,
        POLICY.uid_last + 1,
        2**31,
        2**32 - 65536,
        2**32,
        2**53,
    ],
)
def test_uids_outside_the_range_or_off_its_boundaries(base: int) -> None:
    assert f"uid {base} does not begin a range" in refused(PermissionDenied, plan(uid_base=base))


def test_a_narrower_range() -> None:
    narrow = policy(uid_first=BASE + UIDS_PER_JOB, uid_last=BASE + 2 * UIDS_PER_JOB - 1)
    permits.check(plan(uid_base=BASE + UIDS_PER_JOB), narrow)
    for base in (BASE, BASE + 2 * UIDS_PER_JOB):
        refused(PermissionDenied, plan(uid_base=base), narrow)


# --- profile and times ----------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["trusted", "", "Default", "default ", "x" * 1000])
def test_profiles(profile: str) -> None:
    assert "is not permitted" in refused(PermissionDenied, plan(profile=profile))


def test_a_profile_that_the_policy_names() -> None:
    permits.check(plan(profile="trusted"), policy(profiles=("default", "trusted")))
    refused(PermissionDenied, plan(profile="default"), policy(profiles=("trusted",)))


def test_limits_of_a_process() -> None:
    permits.check(plan(rlimits={"nofile": 1_048_576, "core": 0}), policy())
    for name, value in (("nofile", 1_048_577), ("nofile", 15), ("stack", 0), ("core", -1)):
        said = refused(PermissionDenied, plan(rlimits={name: value}))
        assert f"rlimit {name} is not between" in said


def test_stop_time_out() -> None:
    most = POLICY.max_stop_us
    permits.check(plan(grace_us=0, stop_us=0), POLICY)
    permits.check(plan(grace_us=most, stop_us=most), POLICY)
    for grace, stop in ((0, most + 1), (2, 1), (most + 1, most), (most + 1, most + 2)):
        words = refused(PermissionDenied, plan(grace_us=grace, stop_us=stop))
        assert "its stop time-out is not between" in words
    refused(PermissionDenied, plan(stop_us=10_000_000), policy(max_stop_us=9_999_999))


# --- properties -----------------------------------------------------------------------------------

NUMBERS = sorted(name for name, most in PROPERTIES.items() if most is not None)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number(name: str) -> None:
    most = PROPERTIES[name] or permits.MAX_NUMBER - 1
    for value in (0, 1, most):
        permits.check(plan(properties={name: value}), POLICY)
    above = {"properties": {name: most + 1}}
    refused(PermissionDenied if PROPERTIES[name] else InvalidArgument, plan(**above))


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [-1, True, None, 1.0, "1", "infinity", [1], {"a": 1}, [["/dev/sda", 1]], 2**64]
)
def test_no_number(name: str, value: Any) -> None:
    properties = plan(properties={name: value})
    with pytest.raises((InvalidArgument, PermissionDenied), match=f"property {name} is"):
        permits.check(properties, POLICY)


@pytest.mark.parametrize(
    "name",
    [
        "ExecStart",
        "Slice",
        "PIDs",
        "Delegate",
        "Description",
        "DeviceAllow",
        "CollectMode",
        "KillMode",
        "TimeoutStopUSec",
        "OOMPolicy",
        "IPAddressAllow",
        "memorymax",
        "MemoryMax ",
        "",
        "x" * 1000,
    ],
)
def test_properties_that_are_not_permitted(name: str) -> None:
    assert "is not permitted" in refused(PermissionDenied, plan(properties={name: 1}))


def test_properties_that_the_policy_leaves_out() -> None:
    memory_only = policy(properties=("MemoryMax",))
    permits.check(plan(properties={"MemoryMax": 1}), memory_only)
    for name in PROPERTIES:
        if name != "MemoryMax":
            refused(PermissionDenied, plan(properties={name: 1}), memory_only)


@pytest.mark.parametrize("cpus", ["0", "0-3,7", "8191"])
def test_processors(cpus: str) -> None:
    permits.check(plan(properties={"AllowedCPUs": cpus}), POLICY)


@pytest.mark.parametrize("cpus", [0, None, [0], b"".hex(), "a", "3-1", "8192", "0-", "1" * 5000])
def test_no_processors(cpus: Any) -> None:
    refused(InvalidArgument, plan(properties={"AllowedCPUs": cpus}))


def test_ceilings() -> None:
    fenced = policy(ceilings={"MemoryMax": 64 * MIB, "TasksMax": 100})
    good = {"MemoryMax": 64 * MIB, "TasksMax": 1}
    permits.check(plan(properties=good), fenced)
    assert "more than" in refused(
        PermissionDenied, plan(properties={**good, "MemoryMax": 64 * MIB + 1}), fenced
    )
    # who does not set it asks for more than the ceiling
    for name in good:
        rest = {key: value for key, value in good.items() if key != name}
        words = refused(PermissionDenied, plan(properties=rest), fenced)
        assert f"{name} is not set" in words


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(PROPERTIES)) | st.text(max_size=10),
        st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.lists(st.integers()),
        max_size=3,
    )
)
def test_any_properties(properties: dict[str, Any]) -> None:
    """What passes is permitted by name and by kind."""
    try:
        permits.check(plan(properties=properties), POLICY)
    except (InvalidArgument, PermissionDenied):
        return
    for name, value in properties.items():
        assert name in PROPERTIES
        assert type(value) is (str if PROPERTIES[name] is None else int)


# --- description ----------------------------------------------------------------------------------


def test_changes() -> None:
    permits.check_change(JOB, {"MemoryMax": MIB, "AllowedCPUs": "0-1", "TasksMax": None}, POLICY)
    fenced = policy(ceilings={"MemoryMax": 64 * MIB})
    permits.check_change(JOB, {"MemoryMax": 64 * MIB, "TasksMax": None}, fenced)
    for above, why in ((64 * MIB + 1, "more than"), (None, "ceiling is")):
        with pytest.raises(PermissionDenied, match=why):
            permits.check_change(JOB, {"MemoryMax": above}, fenced)
    with pytest.raises(PermissionDenied, match="not permitted"):
        permits.check_change(JOB, {"TasksMax": None}, policy(properties=("MemoryMax",)))


def test_a_description_is_one_line_that_no_terminal_obeys() -> None:
    assert permits.description(plan(description="rnx job: sleep 5")) == "rnx job: sleep 5"
    assert permits.description(plan(description="a\nb\x1b[2J\x07\u202e\x7f")) == "a?b?[2J???"
    assert permits.description(plan(description="")) == JOB
    assert len(permits.description(plan(description="x" * 5000))) == permits.MAX_DESCRIPTION


@settings(deadline=None)
@given(st.text())
def test_any_description(text: str) -> None:
    line = permits.description(plan(description=text))
    assert line.isprintable()
    assert 0 < len(line) <= permits.MAX_DESCRIPTION
