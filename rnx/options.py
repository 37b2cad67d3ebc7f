# SPDX-License-Identifier: MIT
"""Options that commands share, and the group that loads a command when it is called.

--config, --node and --json may stand before or after the subcommand, as in the published rnx.
"""

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rnx import complete
from rnx.errors import UsageError
from rnx.output import is_text, shown

if TYPE_CHECKING:
    from rnx.session import Session

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

# Commands of the published rnx that no server of ours serves yet.
NOT_SERVED = frozenset(
    {
        "admin",
        "cancel",
        "config-help",
        "metrics",
        "network",
        "volume",
        "workflow",
    }
)


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Stores an option that was given; one that was not leaves what an outer command got."""
    if value is None or value is False:
        return
    session: Session = context.obj
    setattr(session, str(parameter.name), value)


def global_options(command: Decorated) -> Decorated:
    """--config, --node and --json, stored in the Session."""
    for option in reversed(
        (
            _global(
                "--config",
                "config_file",
                metavar="FILE",
                help="Configuration file.",
                shell_complete=complete.files,
            ),
            _global(
                "--node",
                metavar="NAME",
                help="Node of the configuration [default].",
                shell_complete=complete.nodes,
            ),
            _global("--json", is_flag=True, help="Machine-readable output."),
        )
    ):
        command = option(command)
    return command


def job_argument(*wanted: str) -> Callable[[Decorated], Decorated]:
    """The job's id; the server resolves a prefix that only one job has. A shell offers the jobs
    whose status is `wanted`, all if none is named."""
    return click.argument("uuid", metavar="JOB", callback=_id, shell_complete=complete.jobs(wanted))


def _id(context: click.Context, parameter: click.Parameter, text: str) -> str:
    """Refuses what cannot be sent, and the empty word that an unset variable leaves."""
    if not text.strip():
        raise click.BadParameter("it is empty, where a job's id should be.")
    if not is_text(text):
        raise click.BadParameter(f"{shown(text)} is not UTF-8 text.")
    return text


def _global(*names: str, **kwargs: Any) -> Callable[[Decorated], Decorated]:
    return click.option(*names, expose_value=False, callback=_set, **kwargs)


class Group(click.Group):
    """A group that shows its help when no command is given, and says of a word that it does not
    know what may have been meant. `not_served`: commands that the published rnx has there."""

    def __init__(self, *args: Any, not_served: Collection[str] = NOT_SERVED, **kwargs: Any) -> None:
        super().__init__(*args, invoke_without_command=True, **kwargs)
        self.not_served = not_served

    def invoke(self, ctx: click.Context) -> Any:
        result = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            session: Session = ctx.obj
            session.env.print(ctx.get_help())
        return result

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise unknown_command(ctx, self, name)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group whose commands are modules of rnx.commands, each with its `command`, imported when
    they are used: `rnx job list` does not pay for `rnx job run`."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = self._modules.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(f"rnx.commands.{module}").command
        return command


def unknown_command(context: click.Context, group: Group, name: str) -> UsageError:
    """For a word that is no command of the group."""
    tried = f"cannot use {context.command_path} {shown(name) if not is_text(name) else name:.80}"
    if name in group.not_served:
        return UsageError(f"{tried}: it is part of the published rnx, and not served yet")
    from difflib import get_close_matches

    near = get_close_matches(name[:80].lower(), group.list_commands(context), 1)
    hint = f"did you mean `{context.command_path} {near[0]}`?" if near else ""
    error = UsageError(f"{tried}: there is no such command{'; ' if hint else ''}{hint}")
    error.command = context.command_path
    return error
