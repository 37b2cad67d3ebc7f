# SPDX-License-Identifier: MIT
"""What a shell is offered at TAB: words of click's own, and here job ids and node names.

The scripts of tools/completion call rnx with _RNX_COMPLETE; click then finds out which word is
asked for. Completing is a favour: a server has a second for its answer, and whatever goes wrong,
nothing is offered and nothing is said.
"""

import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

import click

from rnx.output import Environment, one_line
from rnx.session import Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from joblet_pb import joblet_pb2 as pb

VARIABLE: Final = "_RNX_COMPLETE"
DEADLINE_S: Final = 1.0
HELP_WIDTH: Final = 60

# A server's answer goes into somebody's command line: nothing that a shell would make more of.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_@%+=.,/-]+")

Completer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def answer(root: click.Command, env: Environment) -> int:
    """Prints what the shell may offer, as click and the shell's script agreed. Returns the exit
    code; raises nothing."""
    try:
        root.main(prog_name="rnx", obj=Session(env))
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    except (Exception, KeyboardInterrupt):
        return 1


def jobs(wanted: Collection[str] = ()) -> Completer:
    """Completes ids of jobs whose status is one of `wanted` (any, if there are none), newest
    first."""

    def complete(
        context: click.Context, parameter: click.Parameter, begun: str
    ) -> "list[CompletionItem]":
        session: Session = context.obj
        with session.client() as client:
            found = client.list_jobs(deadline_s=DEADLINE_S).jobs
        return [
            _item(job.uuid, _describe(job))
            for job in reversed(found)
            if job.uuid.startswith(begun)
            and _PLAIN.fullmatch(job.uuid)
            and (not wanted or job.status in wanted)
        ]

    return complete


def nodes(context: click.Context, parameter: click.Parameter, begun: str) -> "list[CompletionItem]":
    """Completes names of nodes of the configuration; asks no server."""
    return node_items(context.obj, begun)


def node_items(session: Session, begun: str) -> "list[CompletionItem]":
    names = sorted(session.configuration().nodes)
    return [_item(name) for name in names if name.startswith(begun) and _PLAIN.fullmatch(name)]


def files(context: click.Context, parameter: click.Parameter, begun: str) -> "list[CompletionItem]":
    """Leaves it to the shell, which knows the files."""
    return [file_item(begun)]


def file_item(begun: str) -> "CompletionItem":
    from click.shell_completion import CompletionItem

    return CompletionItem(begun, type="file")


def _describe(job: "pb.Job") -> str:
    """`RUNNING train: python3 train.py`"""
    name = f" {job.name}" if job.name else ""
    return one_line(f"{job.status}{name}: {' '.join([job.command, *job.args])}")[:HELP_WIDTH]


def _item(word: str, text: str | None = None) -> "CompletionItem":
    from click.shell_completion import CompletionItem

    return CompletionItem(word, help=text)
