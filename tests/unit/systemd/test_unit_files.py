# SPDX-License-Identifier: MIT
"""units/: systemd's own tools accept them, and they say what must not be lost in an edit."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[3] / "units"
STAGE = "run-joblet\\x2dstage.mount"
NAMES = ["joblet.service", "joblet-init.service", "joblet-init.socket", "joblet.slice", STAGE]

# What a process hands on to its children, or makes a mount namespace that they would be in: a job
# must have none of it from init mode.
INHERITED = re.compile(
    r"NoNewPrivileges|SystemCall\w+|Restrict(?!$)\w+|Protect\w+|Private\w+|ReadOnlyPaths|ReadWritePaths"
    r"|InaccessiblePaths|ExecPaths|NoExecPaths|Bind\w*Paths|TemporaryFileSystem|Root\w+|MountFlags"
    r"|Capability\w+|AmbientCapabilities|SecureBits|Lock\w+|MemoryDenyWriteExecute|User|Group"
    r"|SupplementaryGroups|DynamicUser|UMask|Nice|CPUScheduling\w+|IOScheduling\w+|OOMScoreAdjust"
    r"|CPUAffinity|KeyringMode|StateDirectory|RuntimeDirectory|CacheDirectory|PAMName|Personality"
)


def unit(name: str) -> configparser.ConfigParser:
    """A unit file; where a key stands several times, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=["="])
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


def test_systemd_accepts_every_unit(tmp_path: Path) -> None:
    for name in NAMES:
        # Only the program is replaced: it need not be installed where the tests run.
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("=/usr/bin/joblet\n", "=/bin/true\n"))
    units = [str(tmp_path / name) for name in NAMES]
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_server_is_shut_in() -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20"]
    done = subprocess.run(
        [*command, str(UNITS / "joblet.service")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr  # an exposure of at most 2.0 of 10
    service = unit("joblet.service")["Service"]
    assert (service["User"], service["CapabilityBoundingSet"]) == ("joblet", "")
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
    assert "MemoryMax" not in service


def test_nothing_of_init_mode_is_inherited_by_jobs() -> None:
    service = unit("joblet-init.service")["Service"]
    assert [key for key in service if INHERITED.fullmatch(key)] == []
    assert service["Delegate"] == "no"
    assert service["KillMode"] == "control-group"
    assert service["IPAddressDeny"] == "any"
    assert service["Environment"] == "JOBLET_MODE=init"


@pytest.mark.parametrize("name", ["joblet.service", "joblet-init.service"])
def test_both_halves_come_back_and_outlive_the_slice(name: str) -> None:
    parsed = unit(name)
    assert parsed["Unit"]["StartLimitIntervalSec"] == "0"
    service = parsed["Service"]
    assert (service["Restart"], service["Slice"]) == ("always", "system.slice")
    assert (service["Type"], service["ExecStart"]) == ("notify", "/usr/bin/joblet")
    assert "joblet.slice" not in " ".join(parsed["Unit"].values())
    assert name in unit("joblet.slice")["Unit"]["After"].split()


def test_the_stage_is_private_memory_that_the_server_alone_needs() -> None:
    parsed = unit(STAGE)
    mount = parsed["Mount"]
    assert (mount["What"], mount["Where"], mount["Type"]) == ("tmpfs", "/run/joblet-stage", "tmpfs")
    options = set(mount["Options"].split(","))
    assert {"mode=0700", "uid=joblet", "gid=joblet", "size=50%"} <= options
    assert {"nosuid", "nodev", "noexec"} <= options
    assert "Install" not in parsed
    naming = [name for name in NAMES if "joblet-stage" in (UNITS / name).read_text()]
    assert naming == ["joblet.service", STAGE]
    server = unit("joblet.service")
    assert server["Unit"]["RequiresMountsFor"] == mount["Where"]
    assert server["Service"]["ReadWritePaths"] == mount["Where"]


@pytest.mark.parametrize("name", NAMES)
def test_every_unit_says_where_to_read_on(name: str) -> None:
    pages = unit(name)["Unit"]["Documentation"].split()
    assert "man:joblet(8)" in pages
    assert all(re.fullmatch(r"man:[a-z.-]+\([1-8]\)", page) for page in pages)


def test_the_sockets_path_is_in_no_runtime_directory() -> None:
    socket = unit("joblet-init.socket")["Socket"]
    assert socket["ListenSequentialPacket"] == "/run/joblet-init.sock"
    assert [socket[f"Socket{key}"] for key in ("User", "Group", "Mode")] == [
        "root",
        "joblet",
        "0660",
    ]
    for name in NAMES:
        assert "RuntimeDirectory=" not in (UNITS / name).read_text()


def test_the_servers_directories_are_its_own_and_no_others() -> None:
    service = unit("joblet.service")["Service"]
    assert service["StateDirectory"].split() == ["joblet/state", "joblet/logs", "joblet/spill"]
    assert service["StateDirectoryMode"] == "0700"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with the users and groups that ours come beside."""
    for directory in ("etc", "var/lib", "run"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc" / "group").write_text("root:x:0:\n")
    return tmp_path


def test_users_and_groups(root: Path) -> None:
    command = ["systemd-sysusers", f"--root={root}", str(UNITS / "joblet-sysusers.conf")]
    subprocess.run(command, check=True, capture_output=True)
    users = dict(line.split(":", 1) for line in (root / "etc" / "passwd").read_text().splitlines())
    groups = dict(line.split(":", 1) for line in (root / "etc" / "group").read_text().splitlines())
    assert set(users) == {"root", "joblet"}
    assert set(groups) == {"root", "joblet", "rnx"}
    assert users["joblet"].endswith(":/nonexistent:/usr/sbin/nologin")
    assert users["joblet"].split(":")[2] == groups["joblet"].split(":")[1]


def test_directories(root: Path) -> None:
    (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\njoblet:x:0:0::/:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\njoblet:x:0:\n")
    configuration = str(UNITS / "joblet-tmpfiles.conf")
    command = ["systemd-tmpfiles", f"--root={root}", "--create", configuration]
    subprocess.run(command, check=True, capture_output=True)
    modes = {
        str(path.relative_to(root)): f"{path.stat().st_mode & 0o7777:04o}"
        for path in root.rglob("*joblet*/**/")
        if path.is_dir()
    }
    assert modes == {
        "etc/joblet": "0755",
        "var/lib/joblet": "0711",
        "var/lib/joblet/jobs": "0711",
        "var/lib/joblet/volumes": "0711",
        "var/lib/joblet/state": "0700",
        "var/lib/joblet/logs": "0700",
        "var/lib/joblet/spill": "0700",
    }


def test_owners_of_directories() -> None:
    lines = (UNITS / "joblet-tmpfiles.conf").read_text().splitlines()
    owners = {
        words[1]: (words[3], words[4])
        for words in map(str.split, lines)
        if words and not words[0].startswith("#")
    }
    ours = {path for path, owner in owners.items() if owner == ("joblet", "joblet")}
    assert ours == {f"/var/lib/joblet/{name}" for name in ("state", "logs", "spill")}
    assert {owner for path, owner in owners.items() if path not in ours} == {("root", "root")}


def test_every_file_says_its_licence() -> None:
    for path in UNITS.iterdir():
        assert path.read_text().startswith("# SPDX-License-Identifier: MIT\n"), path
