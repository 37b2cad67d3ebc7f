# SPDX-License-Identifier: MIT
"""The command rnx: its commands, and the one place where anything that went wrong becomes a line on
stderr and an exit code. Nothing here or below shows a traceback.

Commands are modules of rnx.commands, loaded when they are used; none imports grpc before a call is
about to be made.
"""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from rnx import complete, exits
from rnx.errors import RnxError, UsageError
from rnx.exits import Exit
from rnx.options import LazyGroup, global_options
from rnx.output import Environment
from rnx.session import Session

JOB_COMMANDS = {
    "run": "run",
    "list": "list",
    "status": "status",
    "log": "log",
    "update": "update",
    "stop": "stop",
    "delete": "delete",
    "delete-all": "delete_all",
}

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

EXIT_CODES = "\n".join(
    ["\b", "Exit codes:", *(f"  {code:<4} {code.meaning}" for code in (Exit.OK, Exit.FAILED))]
)


@click.group(
    "job",
    cls=LazyGroup,
    modules={**JOB_COMMANDS, "help": "help"},
    context_settings=CONTEXT,
)
@global_options
def job() -> None:
    """Run jobs and look at them."""


class Root(LazyGroup):
    """`job` is here already; its commands have short forms beside it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["job", *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return job if cmd_name == "job" else super().get_command(ctx, cmd_name)


@click.group(
    "rnx",
    cls=Root,
    modules={
        **JOB_COMMANDS,
        "monitor": "monitor",
        "nodes": "nodes",
        "runtime": "runtime",
        "version": "version",
        "help": "help",
    },
    context_settings=CONTEXT,
    epilog=EXIT_CODES + "\n  …    with --follow or --wait see rnx job run --help",
)
@click.option("-v", "--version", is_flag=True, help="Show versions and exit.")
@global_options
@click.pass_context
def root(context: click.Context, *, version: bool) -> None:
    """Run jobs on Joblet servers.

    The server is a node of rnx-config.yml, which is looked for in RNX_CONFIG, the working
    directory, ~/.rnx and /etc/joblet.
    """
    if version:
        from rnx.commands.version import show

        show(context.obj)
        context.exit(Exit.OK)


def main(words: Sequence[str] | None = None, env: Environment | None = None) -> int:
    """Runs rnx with these words, of the process if None. Returns the exit code; raises nothing."""
    if env is None:
        env = Environment.of_process()
        if complete.VARIABLE in env.environ:
            return complete.answer(root, env)
    session = Session(env)
    try:
        return _run(session, sys.argv[1:] if words is None else list(words))
    except KeyboardInterrupt:
        env.note("rnx: interrupted")
        return Exit.INTERRUPTED
    except OSError as error:
        if isinstance(error, BrokenPipeError) or _is_windows_pipe(error):
            env.abandon_out()
            return Exit.BROKEN_PIPE
        env.abandon_out()
        env.note(f"Error: cannot write the output: {error.strerror or error}")
        return exits.own_fault(following=session.following)
    except Exception as error:  # the last resort: a line instead of a traceback
        env.note(f"Error: cannot go on, this is a bug in rnx: {_place(error)}")
        return exits.own_fault(following=session.following)


def _run(session: Session, words: list[str]) -> int:
    env = session.env
    try:
        with root.make_context("rnx", words, obj=session) as context:
            return int(root.invoke(context) or Exit.OK)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        env.note(f"Error: {error.format_message()}")
        where = getattr(error, "ctx", None)
        usage = f"{where.get_usage()}\nTry `{where.command_path} --help`." if where else ""
        env.note(usage or "Try `rnx --help`.")
        return exits.own_fault(following=session.following)
    except RnxError as error:
        env.note(f"Error: {error.text}")
        if isinstance(error, UsageError):
            session.following |= error.following
            if error.command:
                env.note(f"Try `{error.command} --help`.")
        return exits.own_fault(following=session.following)


def _is_windows_pipe(error: OSError) -> bool:
    """Windows says EINVAL when the reader of a pipe has gone."""
    return os.name == "nt" and error.errno == errno.EINVAL


def _place(error: Exception) -> str:
    """What happened and where, in a line."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
