# SPDX-License-Identifier: MIT
"""rnx help, rnx job help: what --help shows, for people who ask in that order."""

import click

from rnx.options import Group, unknown_command


@click.command("help", add_help_option=True)
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of rnx or of a command."""
    assert context.parent is not None  # noqa: S101 - it is always in a group
    where = context.parent
    for word in words:
        group = where.command
        if not isinstance(group, Group):
            break  # `rnx help run true`: what follows is the job's
        found = group.get_command(where, word)
        if found is None:
            raise unknown_command(where, group, word)
        where = click.Context(found, parent=where, info_name=word)
    context.obj.env.print(where.get_help())
