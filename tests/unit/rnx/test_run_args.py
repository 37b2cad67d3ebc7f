# SPDX-License-Identifier: MIT
"""The command line of rnx run: which words are rnx's, which the job's."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnx.errors import UsageError
from rnx.run_args import FLAGS, NOT_SERVED, RunArgs, parse

VALUES = {
    "--env": "A=1",
    "--secret-env": "A=1",
    "--max-cpu": "5",
    "--max-memory": "5",
    "--max-iobps": "5",
    "--cpu-cores": "5",
    "--max-tasks": "5",
    "--cpu-weight": "5",
    "--io-weight": "5",
    "--memory-high": "5",
    "--max-swap": "5",
    "--max-read-bps": "5",
    "--max-write-bps": "5",
    "--timeout": "5s",
    "--nofile": "50",
    "--core": "5K",
    "--fsize": "5M",
    "--memlock": "5G",
    "--stack": "5MB",
}


def refused(*words: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse(words)
    return caught.value


def test_everything_behind_the_command_is_the_jobs() -> None:
    run = parse(["--max-cpu=5", "ls", "--max-cpu=6", "-f", "--", "--help", "--node", "x"])
    assert (run.command, run.max_cpu, run.follow, run.help) == ("ls", 5, False, False)
    assert run.args == ["--max-cpu=6", "-f", "--", "--help", "--node", "x"]


def test_limits_of_each_process() -> None:
    run = parse(["--nofile=4096", "--core", "0", "--stack=16M", "x"])
    assert run.rlimits == {"nofile": 4096, "core": 0, "stack": 16 << 20}
    assert "as in 4096" in str(refused("--nofile=4k", "x"))
    assert "too large" in str(refused("--core=9999999T", "x"))


def test_limits_in_their_units() -> None:
    run = parse(["--max-memory=64", "--memory-high=48", "--max-swap=0", "--max-read-bps=4G", "x"])
    assert (run.max_memory, run.memory_high, run.max_swap) == (64, 48 << 20, 0)
    assert (run.max_read_bps, run.max_write_bps) == (4 << 30, 0)
    assert parse(["x"]).max_swap is None  # the server's
    assert "1 to 10000" in str(refused("--cpu-weight=0", "x"))
    assert "1 to 10000" in str(refused("--io-weight=10001", "x"))


def test_two_dashes_end_the_flags() -> None:
    run = parse(["--json", "--", "--strange", "--", "x"])
    assert (run.json, run.command, run.args) == (True, "--strange", ["--", "x"])


def test_one_dash_begins_a_command_as_in_the_published_rnx() -> None:
    assert parse(["-x", "y"]).command == "-x"


@pytest.mark.parametrize("flag", [f for f in FLAGS if f.metavar], ids=lambda f: f.name)
def test_values_follow_in_either_way(flag: object) -> None:
    name = getattr(flag, "name", "")
    short = getattr(flag, "short", "") or name
    value = VALUES.get(name, "v")
    one, two, three = (
        parse([f"{name}={value}", "x"]),
        parse([name, value, "x"]),
        parse([f"{short}={value}", "x"]),
    )
    assert one == two == three != RunArgs("x")


@pytest.mark.parametrize("flag", [f for f in FLAGS if not f.metavar], ids=lambda f: f.name)
def test_switches_take_no_value(flag: object) -> None:
    name = getattr(flag, "name", "")
    assert parse([name, "x"]) != RunArgs("x")
    if name != "--help":
        assert "takes no value" in refused(f"{name}=yes", "x").text


def test_values_may_hold_what_ends_a_flag_elsewhere() -> None:
    run = parse(["-e", "A=b=c", "--env=B=", "-s=C=--x", "x"])
    assert (run.env, run.secret_env) == ({"A": "b=c", "B": ""}, {"C": "--x"})


def test_the_last_value_counts() -> None:
    run = parse(["--node=a", "--node", "b", "-e", "A=1", "-e", "A=2", "x"])
    assert (run.node, run.env) == ("b", {"A": "2"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command"),
        (["--json"], "no command"),
        (["--"], "no command"),
        (["--folow", "x"], "unknown flag: --folow; did you mean --follow? A flag of the job's"),
        (["--frobnicate", "x"], "unknown flag: --frobnicate"),
        (["--frobnicate=1", "x"], "unknown flag: --frobnicate;"),
        (["--name"], "--name: it needs a value"),
        (["--name", "--json", "x"], "--name: it needs a value"),
        (["--max-cpu=lots", "x"], "cannot use --max-cpu 'lots': write percent"),
        (["--max-memory", "12Q", "x"], "cannot use --max-memory '12Q': 'Q' is no unit"),
        (["--env", "A", "x"], "'A' is not NAME=VALUE"),
        (["--env", "1A=x", "x"], "cannot use --env '1A'"),
        (["--env", "A-B=x", "x"], "cannot use --env 'A-B'"),
        (["--env", "A=" + "x" * 32769, "x"], "longer than 32768"),
        (["\udcff"], "is not UTF-8 text"),
        (["ls", "\udcff"], "is not UTF-8 text"),
        (["--env=A=\udcff", "x"], "is not UTF-8 text"),
    ],
)
def test_mistakes_are_named(words: list[str], said: str) -> None:
    assert said in refused(*words).text


@pytest.mark.parametrize(
    "words", [["-s", "hunter2", "x"], ["-s", "P=hunter2\udcff", "x"], ["-s", "P!=hunter2", "x"]]
)
def test_a_secret_is_in_no_error(words: list[str]) -> None:
    assert "hunter2" not in refused(*words).text


@pytest.mark.parametrize("name", sorted(NOT_SERVED))
def test_published_flags_that_are_not_served_say_so(name: str) -> None:
    assert refused(f"{name}=1", "x").text.endswith(
        "it is part of the published rnx, and not served yet"
    )


@pytest.mark.parametrize(
    ("words", "following"),
    [
        (["--max-cpu=x", "ls"], False),
        (["--max-cpu=x", "ls", "-f"], False),
        (["--follow", "--max-cpu=x", "ls"], True),
        (["--max-cpu=x", "-f", "ls"], True),
        (["--bad", "--wait", "ls"], True),
        (["-f"], True),
    ],
)
def test_a_mistake_does_not_hide_that_the_exit_code_is_the_jobs(
    words: list[str], following: bool
) -> None:
    assert refused(*words).following is following


def test_help_needs_no_command_and_forgives() -> None:
    assert parse(["--bad", "-h"]).help


def test_reserved_names_are_warned_of() -> None:
    run = parse(["-e", "PATH=/x", "-e", "MY=1", "-s", "JOBLET_X=1", "x"])
    assert [warning.split()[1] for warning in run.warnings()] == ["PATH", "JOBLET_X"]


@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    with contextlib.suppress(UsageError):
        run = parse(words)
        assert run.help or [run.command, *run.args] == words[len(words) - 1 - len(run.args) :]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_behind_two_dashes_nothing_is_read(words: list[str]) -> None:
    run = parse(["--", *words])
    assert run == RunArgs(command=words[0], args=words[1:])
