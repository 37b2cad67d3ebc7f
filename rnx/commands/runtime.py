# SPDX-License-Identifier: MIT
"""rnx runtime list: the runtimes that the server has."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from rnx.formats import size
from rnx.options import Group, global_options
from rnx.output import one_line
from rnx.session import Session

if TYPE_CHECKING:
    from joblet_pb import joblet_pb2 as pb


@click.group("runtime", cls=Group)
@global_options
def command() -> None:
    """Look at what a server offers to jobs."""


@command.command("list")
@global_options
@click.pass_obj
def list_(session: Session) -> None:
    """List the runtimes of the server."""
    with session.client() as client:
        runtimes = client.list_runtimes().runtimes
    if session.json:
        session.env.print_json([_json(runtime) for runtime in runtimes])
    elif runtimes:
        session.env.print(_table(runtimes))
    else:
        session.env.print("No runtimes available.")
        session.env.print("A job uses what the server's host has: rnx job run python3 --version")


def _json(runtime: "pb.RuntimeInfo") -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": runtime.name,
        "language": runtime.language,
        "version": runtime.version,
        "name": runtime.name,
        "description": runtime.description,
        "size_bytes": runtime.size_bytes,
        "size": size(runtime.size_bytes),
        "available": runtime.available,
    }
    if runtime.packages:
        shown["packages"] = list(runtime.packages)
    return shown


def _table(runtimes: Iterable["pb.RuntimeInfo"]) -> str:
    head = ("NAME", "LANGUAGE", "VERSION", "SIZE", "DESCRIPTION")
    rows = [
        (
            one_line(runtime.name),
            one_line(runtime.language) or "-",
            one_line(runtime.version) or "-",
            size(runtime.size_bytes),
            one_line(runtime.description),
        )
        for runtime in runtimes
    ]
    widths = [max(map(len, column)) + 2 for column in zip(head, *rows, strict=True)]
    lines = (
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )
    return "\n".join(lines)
