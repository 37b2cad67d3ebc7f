# SPDX-License-Identifier: MIT
"""The Debian packages as an administrator meets them: install, upgrade, downgrade, remove, purge.

In machines that have nothing Joblet needs; apt takes that from a warm package cache, and there is
no network.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.machine.client import FINAL, Rnx, wait_served
from tests.machine.rig import Cache, Nspawn, Result, build_layer, eventually, roots
from tests.machine.rig.archive import archive
from tests.machine.rig.chroot import run
from tools import deb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHERE = "/srv"
APT_S = 240
LINTIAN_S = 240
JOBS = 20
# Jobs print until they are told to end: however long dpkg takes, and no longer. The signal goes to
# the shells, which have the word among their arguments; so has not who looks for it.
PRINTER = """
go=1 n=0; trap 'go=' USR1; : last-words
while [ $go ]; do
    for _ in 1 2 3 4 5; do n=$((n + 1)); echo $n; done
    sleep 0.2
done
echo "end $n"; exit $0"""
END_THEM = "pkill -USR1 -f '[l]ast-words'"
NEXT = "9.0.0"

# The next version also changes the records' schema.
NEXT_VARIANT = deb.Variant(
    quick=True,
    version=NEXT,
    edits=(
        (
            "joblet/server/records_file.py",
            "\n# How long a writer waits",
            '\nMIGRATIONS += (("CREATE TABLE later (key TEXT PRIMARY KEY) STRICT",),)\n'
            "\n# How long a writer waits",
        ),
    ),
)

OTHERS = roots.depends(roots.CONTROL.read_text())
"""The archive's packages that ours depend on."""

# A person types no DEBIAN_FRONTEND and answers no question.
APT = "env -u DEBIAN_FRONTEND apt-get --quiet --yes --no-install-recommends"

# Everything on the disk: kind, mode, owner, link, and for plain files the content.
SNAPSHOT = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run/systemd -o -path /tmp \
    -o -path /srv \) -prune -o -printf '%y %m %u:%g %p %l\n' | sort -k4
find /run -xdev -path /run/systemd -prune -o -printf '%y %m %u:%g %p %l\n' | grep -i joblet
true
"""

# What may be there after a purge that was not before the installation, and why.
STAYS = (
    # what apt and dpkg know and did
    r"/var/(lib|cache|log)/(apt|dpkg)(/.*)?",
    r"/var/cache/debconf(/.*)?",
    # the user and the groups: files elsewhere may be theirs (Debian's usual practice)
    r"/etc/(passwd|group|g?shadow|subuid|subgid)-?",
    r"/etc/\.pwd\.lock",
    # made by the machine's own life, not by Joblet
    r"/var/log/(journal|wtmp|btmp|lastlog)(/.*)?",
    r"/var/lib/systemd/(timers|random-seed|catalog|deb-systemd-helper-enabled)(/.*)?",
    r"/var/tmp(/.*)?",
    r"/etc/ld\.so\.cache",
    r"/var/cache/ldconfig(/.*)?",
    r"/run/(log|dbus|utmp|user|lock|udev|credentials|host|systemd)?(/.*)?",
)


QUICK = deb.Variant(quick=True)


def packages(suite: str, cache: Cache, variant: deb.Variant = QUICK) -> list[Path]:
    return deb.debs(deb.build(suite, cache, variant))


def needed(suite: str, cache: Cache) -> Path:
    """The layer with the archive's packages that ours depend on."""
    return archive(cache, suite, OTHERS, roots.MINIMAL)


@pytest.fixture
def minimal(suite: str, cache: Cache) -> Iterator[Nspawn]:
    """A machine without Python, with a warm package cache."""
    yield from started(suite, cache, [needed(suite, cache)])


@pytest.fixture
def prepared(suite: str, cache: Cache) -> Iterator[Nspawn]:
    """The same after the archive's packages were installed: ours are what is still missing."""
    command = f"{APT} install {' '.join(OTHERS)} </dev/null"
    warm = needed(suite, cache)
    layer = build_layer(
        suite,
        [warm],
        [command],
        command,
        what="what the packages need",
        cache=cache,
        recipe=roots.MINIMAL,
    )
    yield from started(suite, cache, [warm, layer])


def started(suite: str, cache: Cache, layers: list[Path]) -> Iterator[Nspawn]:
    binds = {path: f"{WHERE}/{path.name}" for path in packages(suite, cache)}
    binds |= {path: f"{WHERE}/next/{path.name}" for path in packages(suite, cache, NEXT_VARIANT)}
    with Nspawn(suite, recipe=roots.MINIMAL, layers=layers, binds_ro=binds, cache=cache) as machine:
        yield machine


def install(machine: Nspawn, where: str = WHERE, *options: str) -> Result:
    """`apt-get install ./joblet_*.deb ./rnx_*.deb`; nobody is there to answer anything."""
    words = " ".join(options)
    script = f"cd {where} && {APT} install {words} ./joblet_*.deb ./rnx_*.deb </dev/null"
    return machine.run(script, timeout=APT_S).check()


def installed_version(machine: Nspawn) -> str:
    return machine.run("dpkg-query -W -f '${Version}' joblet").text


def complaints(result: Result) -> list[str]:
    """Lines of apt that are not plain progress."""
    text = f"{result.text}\n{result.errors}"
    return [
        line
        for line in text.splitlines()
        # says that apt-utils is not there, which a small system has not
        if re.search(r"warn|error|fail|cannot|question|\?|^W:|^E:", line, re.IGNORECASE)
        and "apt-utils" not in line
        # names of packages that are installed
        and not re.match(r"(Get|Selecting|Preparing|Unpacking|Setting up|  )", line)
    ]


def test_from_install_to_the_first_jobs_output(minimal: Nspawn) -> None:
    done = install(minimal)
    first = minimal.run(["rnx", "job", "run", "--follow", "echo", "hello"])
    assert (first.code, first.text) == (0, "hello")
    assert re.fullmatch(r"rnx: job \S+", first.errors)
    assert complaints(done) == []
    assert "/etc/joblet/rnx-config.yml has an admin key" in done.text
    # no bar, which a busy host would fail: -rP shows it
    print(f"installed in {done.seconds:.1f} s, first output {first.seconds:.1f} s later")
    stat = (
        "stat -c '%U:%G %a' /etc/joblet/joblet-config.yml /etc/joblet/rnx-config.yml /etc/joblet/ca"
    )
    assert minimal.run(stat).text.splitlines() == [
        "root:joblet 640", "root:rnx 640", "root:root 700",
    ]  # fmt: skip
    for unit in ("joblet.service", "joblet-init.service", "joblet-init.socket"):
        assert minimal.run(["systemctl", "is-enabled", unit]).text == "enabled"

    minimal.run("useradd -m -G rnx member && useradd -m stranger").check()
    member = minimal.run(["rnx", "job", "run", "--follow", "echo", "hello"], user="member")
    assert (member.code, member.text) == (0, "hello")
    stranger = minimal.run(["rnx", "job", "run", "--follow", "echo", "hello"], user="stranger")
    assert stranger.code != 0
    assert stranger.text == ""
    assert "permission denied" in stranger.errors
    assert "group rnx" in stranger.errors
    assert "Traceback" not in stranger.errors


CONFIGURATION = "cd /etc/joblet && find . -type f -exec sha256sum {} + | sort -k2"


def test_installing_again_touches_nothing_of_the_administrators(prepared: Nspawn) -> None:
    install(prepared)
    prepared.run("echo '# mine' >> /etc/joblet/joblet-config.yml").check()
    before = prepared.run(CONFIGURATION).check().text
    assert "joblet-config.yml" in before
    install(prepared, WHERE, "--reinstall")
    assert prepared.run(CONFIGURATION).text == before
    # also when it was removed meanwhile, or a file is missing
    prepared.run(f"{APT} remove joblet", timeout=APT_S).check()
    install(prepared)
    assert prepared.run(CONFIGURATION).text == before
    prepared.run("rm /etc/joblet/rnx-config.yml").check()
    install(prepared, WHERE, "--reinstall")
    assert "rnx-config.yml" not in prepared.run(CONFIGURATION).text
    wait_served(prepared)


def test_upgrade_and_downgrade_with_running_jobs(prepared: Nspawn) -> None:
    """Every line once, in order, and every exit code, whatever dpkg did meanwhile."""
    install(prepared)
    rnx = Rnx(prepared)
    jobs = {rnx.start("sh", "-c", PRINTER, str(code)): code for code in range(1, JOBS + 1)}
    pids = unit_pids(prepared)
    install(prepared, f"{WHERE}/next")
    assert installed_version(prepared) == NEXT
    wait_served(prepared)
    assert NEXT in rnx("version").text
    assert {rnx.status(job)["status"] for job in jobs} == {"RUNNING"}
    after = unit_pids(prepared)
    assert all(after[unit] != pids[unit] for unit in ("joblet.service", "joblet-init.service"))
    assert after["joblet-init.socket"] == pids["joblet-init.socket"]
    prepared.run(END_THEM).check()
    for job, code in jobs.items():
        assert rnx.ended(job, timeout=60)["exit_code"] == code
        *numbers, last = rnx.log(job).decode().splitlines()
        assert last == f"end {len(numbers)}"
        assert numbers == [str(n) for n in range(1, len(numbers) + 1)]

    # back: the older server says why it does not start, and leaves the newer records alone
    late = rnx.start("sh", "-c", "sleep 5; echo late; exit 7")
    install(prepared, WHERE, "--allow-downgrades")
    assert installed_version(prepared) == deb.version_of()
    eventually(
        lambda: "written by a newer Joblet" in prepared.journal("-u", "joblet.service"),
        timeout=30,
        what="the older server's refusal",
    )
    install(prepared, f"{WHERE}/next")
    wait_served(prepared)
    assert rnx.ended(late)["exit_code"] == 7
    assert rnx.log(late) == b"late\n"
    assert {job["id"] for job in rnx.json("list")} == {*jobs, late}


def unit_pids(machine: Nspawn) -> dict[str, str]:
    """Main process of the services, and when the socket was made."""
    show = "systemctl show --value -p MainPID -p ActiveEnterTimestampMonotonic"
    return {
        unit: machine.run(f"{show} {unit}").check().text
        for unit in ("joblet.service", "joblet-init.service", "joblet-init.socket")
    }


def test_remove_ends_jobs_and_purge_leaves_what_debian_lets_stay(prepared: Nspawn) -> None:
    before = snapshot(prepared)
    install(prepared)
    rnx = Rnx(prepared)
    rnx("run", "--follow", "true").check()
    jobs = [rnx.start("sleep", "300") for _ in range(3)]
    removed = prepared.run(f"{APT} remove joblet </dev/null", timeout=APT_S).check()
    assert complaints(removed) == []
    assert "joblet" not in prepared.run("ps -eo comm=").text
    units = prepared.run("systemctl list-units --plain --no-legend 'joblet*'").text
    assert units == ""

    # the records say how they ended
    install(prepared)
    wait_served(prepared)
    listed = {job["id"]: rnx.status(job["id"]) for job in rnx.json("list")}
    told = {(listed[job]["status"], listed[job]["reason"]) for job in jobs}
    assert told == {("STOPPED", "unit-stopped")}
    assert {job["status"] for job in listed.values()} <= FINAL

    purged = prepared.run(f"{APT} purge joblet rnx </dev/null", timeout=APT_S).check()
    assert complaints(purged) == []
    left = sorted(snapshot(prepared) - before)
    names = [line.split(" ")[3] for line in left]
    odd = [name for name in names if not any(re.fullmatch(stays, name) for stays in STAYS)]
    assert odd == []


def snapshot(machine: Nspawn) -> set[str]:
    return set(machine.run(SNAPSHOT, timeout=60).check().text.splitlines())


def test_built_twice_it_is_the_same(suite: str, cache: Cache) -> None:
    """What the other tests install is, bit by bit, what `make deb` gives, which also ran the unit
    tests."""
    quick, full = packages(suite, cache), packages(suite, cache, deb.Variant())
    assert [path.name for path in quick] == [path.name for path in full]
    for one, other in zip(quick, full, strict=True):
        assert one.parent != other.parent
        assert one.read_bytes() == other.read_bytes(), one.name


# What is not overridden in the package, because only one suite's lintian knows the tag.
ALLOWED = (
    # jobs are systemd's scopes: without systemd as PID 1 there is nothing to serve (Debian 12)
    "package-supports-alternative-init-but-no-init.d-script",
    # Debian 13 has a newer one than Debian 12 knows
    "out-of-date-standards-version",
)


def test_lintian_has_nothing_to_say(suite: str, cache: Cache) -> None:
    built = deb.build(suite, cache)
    argv = ["lintian", "-EvIL", "+pedantic", "--fail-on=none"]
    root = roots.root(cache, suite, roots.BUILD)
    changes = [f"/mnt/{path.name}" for path in built.glob("*.changes")]
    done = run(root, [*argv, *changes], binds={built: "/mnt"}, cwd="/mnt", timeout=LINTIAN_S)
    text = done.stdout.decode()
    assert (len(changes), done.returncode) == (1, 0), text
    found = re.findall(r"^([EWIPX]: [^:]*: (\S+).*)", text, re.MULTILINE)
    assert [line for line, tag in found if tag not in ALLOWED] == []
