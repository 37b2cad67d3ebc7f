# SPDX-License-Identifier: MIT
"""The rig itself: if these fail, no other machine test means anything."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.machine.rig import (
    Cache,
    CommandFailed,
    CommandTimeout,
    Machine,
    Nspawn,
    RigError,
    Vm,
    build_layer,
    eventually,
)
from tests.machine.rig.rundir import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AWKWARD = "$HOME ${PATH} $$ %n %% 'q' \"d\" \\ `id` *\ttab\nline ü"
TREE = Path(__file__).resolve().parents[2]


def check_commands(machine: Machine) -> None:
    """Codes, streams, arguments and environment of commands, the same for both kinds."""
    assert machine.run(["true"]).code == 0
    assert machine.run("exit 7").code == 7
    assert machine.run("exit 203").code == 203
    assert machine.run(["no-such-command"]).code == 127
    assert machine.run(["/etc/passwd"]).code == 126
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP):
        done = machine.run(f"kill -{number.value} $$")
        assert (done.code, done.stderr) == (128 + number, b"")
    done = machine.run("echo out; echo err >&2; exit 3")
    assert (done.code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert machine.run(["printf", "%s", AWKWARD]).stdout == AWKWARD.encode()
    assert machine.run('printf %s "$WORD"', env={"WORD": AWKWARD}).stdout == AWKWARD.encode()
    assert machine.run(["cat"]).stdout == b""
    done = machine.run("cat; id -un; pwd; echo $HOME", stdin="in\n", user="daemon", cwd="/tmp")
    assert done.text.splitlines() == ["in", "daemon", "/tmp", "/usr/sbin"]
    with pytest.raises(CommandFailed, match=r"(?s)exit code 5.*stderr: oops"):
        machine.run("echo oops >&2; exit 5", check=True)


def check_files(machine: Machine) -> None:
    content = bytes(range(256)) * 40
    machine.write("/var/lib/rig/deep/file", content, mode=0o640, owner="daemon:adm")
    assert machine.read("/var/lib/rig/deep/file") == content
    assert machine.run("stat -c '%a %U %G' /var/lib/rig/deep/file").text == "640 daemon adm"
    assert machine.exists("/var/lib/rig/deep")
    assert not machine.exists("/var/lib/rig/other")
    with pytest.raises(RigError, match="No such file"):
        machine.read("/var/lib/rig/other")


def check_spawn(machine: Machine) -> None:
    with machine.spawn('echo ready; read x; echo "got $x" >&2; cat; exit 4', stdin=True) as talk:
        talk.wait_for(b"ready")
        talk.write(b"this\n")
        talk.wait_for(b"got this", stream="stderr")
        assert talk.running
        talk.write(b"rest")
        talk.close_stdin()
        done = talk.wait()
    assert (done.code, done.stdout, done.stderr) == (4, b"ready\nrest", b"got this\n")
    with machine.spawn("echo up; exec sleep 1000") as sleeper:
        sleeper.wait_for(b"up")
        with pytest.raises(RigError, match="not there in"):
            sleeper.wait_for(b"down", timeout=0.2)
        sleeper.kill("TERM")
        assert sleeper.wait().code == 128 + signal.SIGTERM
        with pytest.raises(RigError, match="ended without it"):
            sleeper.wait_for(b"down")


def check_timeout(machine: Machine) -> None:
    with pytest.raises(CommandTimeout, match=r"(?s)after 1 s.*stdout: before.*journal of"):
        machine.run("echo before; sleep 4711 & sleep 4711", timeout=1)
    machine.wait_for(lambda: machine.run("pgrep -fx 'sleep 4711'").code == 1)


def check_journal(machine: Machine) -> None:
    machine.run("systemd-cat -t rig-test echo a line of ours", check=True)
    assert "a line of ours" in machine.journal("-t", "rig-test")
    with pytest.raises(RigError, match=r"(?s)wait for false.*journal of .*a line of ours"):
        machine.wait_for("false", timeout=0.1)


def check_reboot(machine: Machine, *ways_down: Callable[[], None]) -> None:
    """Goes down in each way and comes up again with the same disk."""
    boots = [machine.read("/proc/sys/kernel/random/boot_id")]
    ids = [machine.read("/etc/machine-id")]
    for go_down in ways_down:
        machine.run("echo kept >> /root/kept; echo gone > /run/gone; sync", check=True)
        go_down()
        if not machine.up:
            with pytest.raises(RigError, match="is not up"):
                machine.run("true")
            machine.again()
        assert machine.run("systemctl is-system-running").text == "running"
        assert not machine.exists("/run/gone")
        boots.append(machine.read("/proc/sys/kernel/random/boot_id"))
        ids.append(machine.read("/etc/machine-id"))
    assert machine.read("/root/kept") == b"kept\n" * len(ways_down)
    assert len(set(ids)) == 1
    if isinstance(machine, Vm):  # a container shows its kernel's
        assert len(set(boots)) == len(boots)


# --- containers


def test_boots_clean(bare_machine: Nspawn) -> None:
    assert bare_machine.run("systemctl is-system-running").text == "running"
    release = bare_machine.read("/etc/os-release").decode()
    assert f"VERSION_CODENAME={bare_machine.suite}" in release
    assert bare_machine.run(["hostname"]).text == bare_machine.suite
    assert bare_machine.run(["stat", "-f", "-c", "%T", "/sys/fs/cgroup"]).text == "cgroup2fs"


def test_commands(bare_machine: Nspawn) -> None:
    check_commands(bare_machine)
    check_files(bare_machine)
    check_spawn(bare_machine)
    check_timeout(bare_machine)
    check_journal(bare_machine)


def test_many_bytes_and_many_commands(bare_machine: Nspawn) -> None:
    data = os.urandom(20_000_000)
    assert bare_machine.run(["cat"], stdin=data).stdout == data
    digest = hashlib.sha256(data).hexdigest()
    assert bare_machine.run(["sha256sum"], stdin=data).text.split()[0] == digest
    with ThreadPoolExecutor(10) as pool:
        codes = [done.code for done in pool.map(lambda n: bare_machine.run(f"exit {n}"), range(40))]
    assert codes == list(range(40))


def test_leftovers_of_a_command_end_with_it(bare_machine: Nspawn) -> None:
    assert bare_machine.run("sleep 4712 & echo done").text == "done"
    bare_machine.wait_for(lambda: bare_machine.run("pgrep -fx 'sleep 4712'").code == 1)


def test_reboot_crash_and_poweroff_keep_the_disk(bare_machine: Nspawn) -> None:
    check_reboot(bare_machine, bare_machine.reboot, bare_machine.crash, bare_machine.poweroff)


def test_a_reboot_from_inside_comes_up_again(bare_machine: Nspawn) -> None:
    first = bare_machine.leader
    bare_machine.spawn(["systemctl", "reboot"])
    eventually(lambda: bare_machine.up and bare_machine.leader != first, timeout=60)
    assert bare_machine.run("exit 3").code == 3


def test_the_journal_of_a_dead_machine(bare_machine: Nspawn) -> None:
    bare_machine.run("logger -t rig-test last words; journalctl --sync", check=True)
    bare_machine.crash()
    assert "last words" in bare_machine.journal("-t", "rig-test")
    assert "last words" in bare_machine.trouble()


def test_a_crash_during_a_command_is_not_its_exit_code(bare_machine: Nspawn) -> None:
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(bare_machine.run, "touch /run/started; sleep 1000")
        eventually(lambda: bare_machine.exists("/run/started"))
        bare_machine.crash()
        with pytest.raises(RigError, match=r"went down meanwhile|not up"):
            command.result()


def test_network_is_its_own(bare_machine: Nspawn) -> None:
    assert bare_machine.run("ls /sys/class/net; ip -o link | wc -l").text.splitlines()[-1] == "1"
    serve = [sys.executable and "python3", "-m", "http.server", "--bind", "127.0.0.1"]
    with bare_machine.spawn([*serve, "--directory", "/etc", "5000"]):
        bare_machine.wait_for("ss -ltn | grep -q 127.0.0.1:5000")
        with bare_machine.connect(5000) as connection:
            connection.sendall(b"GET /hostname HTTP/1.0\r\n\r\n")
            assert connection.makefile("rb").read().endswith(bare_machine.suite.encode() + b"\n")
        with bare_machine.forward(5000) as port:
            url = f"http://127.0.0.1:{port}/hostname"
            with ThreadPoolExecutor(8) as pool:
                bodies = list(pool.map(_get, [url] * 16))
        assert set(bodies) == {bare_machine.suite.encode() + b"\n"}
        with pytest.raises(OSError, match="refused"):
            _get(url)
        listing = subprocess.run(
            bare_machine.netns(["cat", "/proc/net/tcp"]), stdout=subprocess.PIPE, check=True
        )
        assert b":1388 " in listing.stdout  # 5000
    with bare_machine.forward(5001) as port, pytest.raises(OSError):  # noqa: PT011, reset or empty
        _get(f"http://127.0.0.1:{port}/")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return bytes(answer.read())


def test_layers_and_binds(suite: str, cache: Cache, tmp_path: Path) -> None:
    key = ["test_layers_and_binds", "1"]
    commands = ["echo one > /etc/rig-one; rm /etc/issue; useradd -m rig", "echo two > /etc/rig-two"]
    lower = build_layer(suite, [], commands, key, cache=cache)
    upper = build_layer(suite, [lower], lambda m: m.run("rm /etc/rig-one", check=True), key)
    assert build_layer(suite, [], ["exit 1"], key, cache=cache) == lower
    (tmp_path / "a:b").write_text("seen")
    with Nspawn(suite, layers=[lower, upper], binds_ro={tmp_path: "/mnt"}) as machine:
        assert machine.read("/etc/rig-two") == b"two\n"
        assert not machine.exists("/etc/rig-one")
        assert not machine.exists("/etc/issue")
        assert machine.run(["id", "-un"], user="rig").text == "rig"
        assert machine.read("/mnt/a:b") == b"seen"
        assert machine.run("touch /mnt/x").code == 1
    with pytest.raises(CommandFailed):
        build_layer(suite, [], ["exit 1"], [*key, "fails"], cache=cache)


OWNER = """
import sys, time
from tests.machine.rig import Nspawn
machine = Nspawn(sys.argv[1])
print(machine.name, machine.leader, machine._supervision._process.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("supervisor", [False, True], ids=["owner", "owner-and-supervisor"])
def test_nothing_outlives_a_killed_owner(suite: str, cache: Cache, supervisor: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, suite], stdout=subprocess.PIPE, cwd=TREE
    ) as owner:
        assert owner.stdout is not None
        name, leader, helper = owner.stdout.readline().decode().split()
        if supervisor:
            os.kill(int(helper), signal.SIGKILL)
        owner.kill()
    if supervisor:
        eventually(lambda: name in sweep(cache) or not (cache.run / name).exists())
    eventually(lambda: not (cache.run / name).exists())
    eventually(lambda: not _alive(int(leader)))


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return re.search(r"^State:\s+[ZX]", status, re.M) is None


def test_two_machines_at_once(suite: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        machines = list(pool.map(Nspawn, [suite, suite]))
    try:
        for machine in machines:
            machine.write("/root/name", machine.name)
        for machine in machines:
            assert machine.read("/root/name") == machine.name.encode()
            assert machine.run("systemctl is-system-running").text == "running"
    finally:
        for machine in machines:
            machine.close()


# --- VMs


@pytest.fixture
def bare_vm(vm_suite: str, cache: Cache) -> Iterator[Vm]:
    with Vm(vm_suite, cache=cache) as made:
        yield made


HOG = "blocks = [bytearray(4 << 20) for _ in range(30)]"


def test_vm_commands(bare_vm: Vm) -> None:
    assert bare_vm.run("systemctl is-system-running").text == "running"
    assert f"VERSION_CODENAME={bare_vm.suite}" in bare_vm.read("/etc/os-release").decode()
    check_commands(bare_vm)
    check_files(bare_vm)
    check_spawn(bare_vm)
    check_timeout(bare_vm)
    check_journal(bare_vm)


def test_vm_limits_are_real(bare_vm: Vm) -> None:
    controllers = bare_vm.read("/sys/fs/cgroup/cgroup.controllers").decode().split()
    assert {"cpuset", "cpu", "io", "memory", "pids"} <= set(controllers)
    scope = "systemd-run --scope --quiet --collect --unit=hog -p MemoryMax=64M -p MemorySwapMax=0"
    done = bare_vm.run([*scope.split(), "python3", "-c", HOG], timeout=120)
    # the kernel counts the kill before it sends it, and systemd can be quicker with its SIGTERM
    assert done.code in (128 + signal.SIGKILL, 128 + signal.SIGTERM)
    assert "Memory cgroup out of memory" in bare_vm.journal("-k")
    busy = "systemd-run --scope --quiet --collect -p TasksMax=5 /bin/sh -c"
    many = "for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; wait"
    assert "annot fork" in bare_vm.run([*busy.split(), many], timeout=120).errors


def test_vm_reboot_and_crash_keep_the_disk(bare_vm: Vm) -> None:
    check_reboot(bare_vm, bare_vm.reboot, bare_vm.crash)
    bare_vm.poweroff()
    assert not bare_vm.up


def test_vm_clones(
    vm_suite: str, cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = tmp_path / "layer"
    units = layer / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True)
    text = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n"
    (units / "rig-payload.service").write_text(text)
    (units / "multi-user.target.wants/rig-payload.service").symlink_to("../rig-payload.service")
    (layer / "etc/rig-payload").write_text("payload\n")
    os.mknod(layer / "etc/issue", 0o20600, os.makedev(0, 0))  # how a layer deletes a file
    begun = time.monotonic()
    with Vm(vm_suite, cache=cache) as first:
        plain = time.monotonic() - begun
        begun = time.monotonic()
        with Vm(vm_suite, payload=[layer], cache=cache) as second:
            loaded = time.monotonic() - begun
            with capsys.disabled():
                print(f" [{vm_suite} clone {plain:.2f} s, with payload {loaded:.2f} s]", end="")
            first.run("echo mine > /root/mine", check=True)
            assert not second.exists("/root/mine")
            assert abs(float(second.run("date +%s").text) - time.time()) < 10
            assert second.read("/etc/rig-payload") == b"payload\n"
            assert not second.exists("/etc/issue")
            assert first.exists("/etc/issue")
            assert second.run("systemctl is-active rig-payload").text == "active"
            assert second.run("lsblk -bno SIZE /dev/vdc").text == str(512 << 20)
            with second.spawn("python3 -m http.server --directory /etc 5000"):
                second.wait_for("ss -ltn | grep -q :5000", timeout=30)
                with second.forward(5000) as port:
                    assert _get(f"http://127.0.0.1:{port}/rig-payload") == b"payload\n"
