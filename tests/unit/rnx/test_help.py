# SPDX-License-Identifier: MIT
"""Every command and every option is explained, and mistakes on the command line are."""

from collections.abc import Iterator

import click
import pytest

from rnx.cli import JOB_COMMANDS, main, root
from rnx.exits import Exit
from rnx.options import NOT_SERVED
from rnx.run_args import FLAGS
from tests.unit.rnx.conftest import Rnx


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(inner, (*path, name))


COMMANDS = list(walk(root))


def test_both_generations_of_commands_are_there() -> None:
    for name in JOB_COMMANDS:
        assert {(name,), ("job", name)} <= set(COMMANDS)
    assert {("nodes",), ("version",), ("runtime", "list"), ("monitor", "status")} <= set(COMMANDS)


def find(path: tuple[str, ...]) -> click.Command:
    command: click.Command = root
    for name in path:
        assert isinstance(command, click.Group)
        inner = command.get_command(click.Context(command), name)
        assert inner is not None
        command = inner
    return command


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_says_what_it_does(path: tuple[str, ...]) -> None:
    command = find(path)
    assert command.help
    assert not command.get_short_help_str(60).endswith("...")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(
    path: tuple[str, ...], flag: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, flag]) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"Usage: {' '.join(['rnx', *path])} ")
    assert err == ""


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("help",), ()),
        (("help", "help"), ("help",)),
        (("help", "run"), ("run",)),
        (("help", "run", "true"), ("run",)),
        (("help", "job"), ("job",)),
        (("help", "job", "log"), ("job", "log")),
        (("help", "runtime", "list"), ("runtime", "list")),
        (("job", "help"), ("job",)),
        (("job", "help", "stop"), ("job", "stop")),
    ],
)
def test_help_as_a_command(
    words: tuple[str, ...],
    path: tuple[str, ...],
    rnx: Rnx,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main([*path, "--help"]) == 0
    text, _ = capfd.readouterr()
    result = rnx(*words)
    assert (result.code, result.err) == (0, "")
    assert result.text == text


def test_help_of_run_has_every_flag_and_every_exit_code(rnx: Rnx) -> None:
    text = rnx("job", "run", "--help").text
    for flag in FLAGS:
        assert flag.name in text
        assert flag.help.split()[0] in text
    for code in Exit:
        assert code in (Exit.OK, Exit.FAILED, Exit.INCOMPLETE) or f"  {int(code)} " in text


@pytest.mark.parametrize("words", [(), ("job",), ("runtime",), ("monitor",)])
def test_groups_alone_show_their_help(rnx: Rnx, words: tuple[str, ...]) -> None:
    result = rnx(*words)
    assert (result.code, result.err) == (0, "")
    assert "Commands:" in result.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("frob",), "cannot use rnx frob: there is no such command"),
        (("job", "frob"), "cannot use rnx job frob: there is no such command"),
        (("help", "frob"), "cannot use rnx frob: there is no such command"),
        (("job", "help", "frob"), "cannot use rnx job frob: there is no such command"),
        (("runtime", "lst"), "did you mean `rnx runtime list`?"),
        (("Status",), "did you mean `rnx status`?"),
        (("stauts", "--json"), "did you mean `rnx status`?"),
        (("lgo",), "did you mean `rnx log`?"),
        (("ps",), "cannot use rnx ps: there is no such command"),
        (("x" * 100_000,), "cannot use rnx xxx"),
        (("\udcff",), r"cannot use rnx '\xff'"),
        (("list", "\udcff"), r"unexpected extra argument (\xff)"),
        (("--frob", "list"), "--frob"),
        (("list", "--frob"), "--frob"),
        (("status",), "Missing argument 'JOB'"),
        (("stop", "a", "b"), "unexpected extra argument"),
        (("log", "--from-offset", "x", "j"), "--from-offset"),
        (("log", "--from-offset", "-1", "j"), "--from-offset"),
        (("--node",), "--node"),
    ],
)
def test_mistakes_show_the_usage(rnx: Rnx, words: tuple[str, ...], said: str) -> None:
    result = rnx(*words)
    assert (result.code, result.out) == (1, b"")
    assert result.err.startswith("Error: ")
    assert said in result.err
    assert "--help`" in result.err.splitlines()[-1]


def test_a_suggestion_is_made_of_what_is_there(rnx: Rnx) -> None:
    assert "did you mean" not in rnx("zzz").err
    assert len(rnx("x" * 100_000).err) < 300


@pytest.mark.parametrize("name", sorted(NOT_SERVED))
def test_published_commands_that_are_not_served_say_so(rnx: Rnx, name: str) -> None:
    for words in ((name,), ("job", name, "x")):
        result = rnx(*words)
        assert result.code == 1
        assert "part of the published rnx, and not served yet" in result.err


@pytest.mark.parametrize("name", ["top", "watch", "gpu"])
def test_published_commands_of_a_group_are_those_of_the_group_alone(rnx: Rnx, name: str) -> None:
    for words in (("monitor", name), ("help", "monitor", name)):
        result = rnx(*words)
        assert (result.code, result.out) == (1, b"")
        assert f"cannot use rnx monitor {name}: it is part of the published rnx" in result.err
    assert "there is no such command" in rnx(name).err
