# SPDX-License-Identifier: MIT
"""init.yml: the defaults, what may narrow them, and which files are refused."""

import os
from pathlib import Path

import pytest

from joblet import config

ME = os.geteuid()


def refusal(text: str) -> str:
    with pytest.raises(config.ConfigurationError) as info:
        config.parse_policy(text, "FILE")
    return str(info.value)


def test_defaults() -> None:
    policy = config.InitPolicy()
    assert policy == config.parse_policy("") == config.parse_policy("# nothing\n")
    assert policy.server_user == "joblet"
    assert policy.slice == "joblet.slice"
    assert policy.profiles == ("default", "strict")
    assert policy.properties == tuple(config.PROPERTIES)
    assert policy.ceilings == {}
    assert policy.max_plan_bytes == 1 << 20
    assert policy.jobs_dir == "/var/lib/joblet/jobs"
    assert len(policy.uid_bases()) == config.MAX_JOBS
    assert policy.uid_bases()[0] == 0x70000000
    assert policy.uid_bases()[-1] + config.UIDS_PER_JOB - 1 == 0x7FFDFFFF


def test_a_narrower_policy() -> None:
    policy = config.parse_policy(
        "uid_first: 0x70010000\nuid_last: 0x7002ffff\nslice: joblet-ci.slice\n"
        "properties: [MemoryMax, TasksMax]\nceilings: {MemoryMax: 8GB, TasksMax: 100}\n"
        "profiles: [default, trusted]\nmax_plan_bytes: 256KB\nserver_user: ci\nmax_stop: 30s\n"
    )
    assert list(policy.uid_bases()) == [0x70010000, 0x70020000]
    assert policy.ceilings == {"MemoryMax": 8 << 30, "TasksMax": 100}
    assert policy.profiles == ("default", "trusted")
    assert policy.max_plan_bytes == 256 << 10
    assert policy.max_stop_us == 30_000_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("profile: [trusted]", "profile in FILE is not a known key (is it profiles?)"),
        (
            "slice: system.slice",
            "slice in FILE is 'system.slice', not joblet.slice or one below it",
        ),
        ("slice: joblet-a-.slice", "not joblet.slice"),
        ("slice: ../joblet.slice", "not joblet.slice"),
        ("profiles: [unsafe]", "['unsafe'], not a list of some of default, strict, trusted"),
        ("profiles: trusted", "'trusted', not a list"),
        ("properties: [ExecStart]", "not a list of some of CPUQuotaPerSecUSec"),
        ("properties: [[]]", "not a list of some of"),
        ("uid_first: 0", "uid_first in FILE is 0, not a number from 1879048192"),
        ("uid_last: 0x7fffffff", "uid_last in FILE is 2147483647"),
        ("uid_first: 0x70000001", "do not hold whole ranges of 65536 ids"),
        ("uid_last: 0x70000000", "do not hold whole ranges of 65536 ids"),
        ("{uid_first: 0x70020000, uid_last: 0x7000ffff}", "uid_last in FILE is below uid_first"),
        ("ceilings: {TasksMax: 0}", "not a mapping to numbers above 0"),
        ("ceilings: {TasksMax: 4194305}", "TasksMax (at most 4194304)"),
        ("ceilings: {AllowedCPUs: 1}", "not a mapping to numbers"),
        ("ceilings: {ExecStart: 1}", "not a mapping to numbers"),
        ("ceilings: [1]", "not a mapping to numbers"),
        (
            "{properties: [MemoryMax], ceilings: {TasksMax: 9}}",
            "names TasksMax, but properties does not",
        ),
        ("max_stop: 2h", "not a duration such as"),
        ("server_user: 'root:root'", "not a user's name"),
        ("jobs_dir: jobs", "not an absolute path"),
        ("- a", "FILE is ['a'], not a mapping"),
    ],
)
def test_refusals(text: str, words: str) -> None:
    assert words in refusal(text)


def test_the_file_is_optional(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert config.load_policy(str(tmp_path / "init.yml"), owner=ME) == config.InitPolicy()
    assert config.load_policy(str(tmp_path / "no" / "init.yml"), owner=ME) == config.InitPolicy()


def test_the_environment_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.yml"
    other.write_text("slice: joblet-other.slice")
    for name in ("JOBLET_CONFIG_PATH", "JOBLET_INIT_POLICY"):
        monkeypatch.setenv(name, str(other))
    monkeypatch.setenv("JOBLET_LOG_LEVEL", "DEBUG")
    monkeypatch.chdir(tmp_path)
    assert config.load_policy(str(tmp_path / "init.yml"), owner=ME) == config.InitPolicy()


def test_who_may_have_written_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    file = tmp_path / "init.yml"
    file.write_text("profiles: [trusted]")
    for mode in (0o600, 0o644, 0o444):
        file.chmod(mode)
        assert config.load_policy(str(file), owner=ME).profiles == ("trusted",)
    for mode in (0o620, 0o602, 0o666):
        file.chmod(mode)
        with pytest.raises(
            config.ConfigurationError, match="can be written by others than root"
        ) as info:
            config.load_policy(str(file), owner=ME)
        assert f"chmod 0600 {file}" in info.value.hint
    file.chmod(0o600)
    with pytest.raises(config.ConfigurationError, match="can be written by others"):
        config.load_policy(str(file), owner=ME + 1)
    for mode in (0o777, 0o1777, 0o775):
        tmp_path.chmod(mode)
        with pytest.raises(config.ConfigurationError, match=f"{tmp_path} can be written by others"):
            config.load_policy(str(file), owner=ME)


def test_links_and_other_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    real = tmp_path / "real"
    real.mkdir(mode=0o755)
    file = real / "init.yml"
    file.write_text("")
    (tmp_path / "link.yml").symlink_to(file)
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(config.ConfigurationError, match="symbolic links") as info:
        config.load_policy(str(tmp_path / "link.yml"), owner=ME)
    assert info.value.hint == "it must be a file, not a link"
    with pytest.raises(config.ConfigurationError, match="cannot read the configuration"):
        config.load_policy(str(tmp_path / "link" / "init.yml"), owner=ME)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(config.ConfigurationError, match="is not a regular file"):
        config.load_policy(str(tmp_path / "fifo"), owner=ME)
