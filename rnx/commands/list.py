# SPDX-License-Identifier: MIT
"""rnx job list: all jobs, as a table or as JSON, in the shapes of the published rnx."""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from rnx.formats import list_time
from rnx.options import global_options
from rnx.output import Environment, one_line
from rnx.session import Session

if TYPE_CHECKING:
    from joblet_pb import joblet_pb2 as pb

COMMAND_WIDTH = 80
TIME_WIDTH = 19  # "2006-01-02 15:04:05"

# Widest columns; a longer value is cut.
ID_WIDTH = 38
NAME_WIDTH = 25
STATUS_WIDTH = len("INITIALIZING")

HEAD = ("ID", "NAME", "NODE ID", "STATUS", "START TIME", "COMMAND")


@click.command("list")
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=2**31 - 1),
    metavar="N",
    help="Only the N jobs that were created last.",
)
@global_options
@click.pass_obj
def command(session: Session, limit: int | None) -> None:
    """List all jobs, in order of creation.

    START TIME is when a job was accepted, or when it will begin while it is SCHEDULED.
    """
    with session.client() as client:
        pages = client.job_pages() if limit is None else iter([client.newest_jobs(limit)])
        if session.json:
            for piece in json_pieces(pages):
                session.env.write(piece.encode())
        else:
            for lines in table_lines(pages, session.env):
                session.env.print(lines)


def json_pieces(pages: Iterable["pb.Jobs"]) -> Iterator[str]:
    """An array of all jobs, page by page; together what json.dumps would make of it at once."""
    before = "[\n  "
    for page in pages:
        if page.jobs:
            jobs = (json.dumps(job_json(job), ensure_ascii=False, indent=2) for job in page.jobs)
            # the only line ends in it are those between its parts
            yield before + ",\n  ".join(text.replace("\n", "\n  ") for text in jobs)
            before = ",\n  "
    yield "[]\n" if before.startswith("[") else "\n]\n"


def table_lines(pages: Iterable["pb.Jobs"], env: Environment) -> Iterator[str]:
    """The table, page by page; "No jobs found" without any. Columns are as wide as the first page
    needs, or, with more to come, as wide as names and states get."""
    widths: list[int] = []
    for page in pages:
        rows = [_cells(job) for job in page.jobs]
        if not rows:
            continue
        lines = []
        if not widths:
            widths = _widths(rows, more=bool(page.next_page_token))
            lines = [_line(HEAD, HEAD[3], widths)]
            lines.append(" ".join("-" * width for width in [*widths, len(HEAD[5])]))
        lines += [_line(row, env.status(row[3]), widths) for row in rows]
        yield "\n".join(lines)
    if not widths:
        yield "No jobs found"


def _cells(job: "pb.Job") -> tuple[str, ...]:
    return (
        cut(one_line(job.uuid), ID_WIDTH),
        cut(one_line(job.name), NAME_WIDTH) or "-",
        cut(one_line(job.node_id), ID_WIDTH) or "-",
        job.status,
        list_time(_listed_time(job)),
        command_line(job.command, job.args),
    )


def _widths(rows: list[tuple[str, ...]], *, more: bool) -> list[int]:
    columns = zip(HEAD[:4], *(row[:4] for row in rows), strict=True)
    widths = [max(map(len, column)) for column in columns]
    if more:
        widths[1], widths[3] = NAME_WIDTH, max(widths[3], STATUS_WIDTH)
    return [*(width + 2 for width in widths), TIME_WIDTH]


def _line(cells: tuple[str, ...], status: str, widths: list[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    padded[3] = status + " " * (widths[3] - len(cells[3]))
    return " ".join([*padded, cells[5]])


def _listed_time(job: "pb.Job") -> str:
    return (job.status == "SCHEDULED" and job.scheduled_time) or job.start_time


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def command_line(command: str, args: Iterable[str]) -> str:
    """The first line of it, at most 80 characters."""
    whole = " ".join([command, *args])
    first, newline, _ = whole.partition("\n")
    text = one_line(first)
    return f"{text[: COMMAND_WIDTH - 3]}..." if newline or len(text) > COMMAND_WIDTH else text


def job_json(job: "pb.Job") -> dict[str, Any]:
    """One job of `rnx job list --json`: what is empty is left out, but for the first few."""
    shown = {"id": job.uuid, "uuid": job.uuid, "status": job.status, "start_time": job.start_time}
    more = {
        "name": job.name,
        "node_id": job.node_id,
        "end_time": job.end_time,
        "args": list(job.args),
        "exit_code": job.exit_code,
        "max_cpu": job.max_cpu,
        "max_memory": job.max_memory,
        "max_iobps": job.max_io_bps,
        "cpu_cores": job.cpu_cores,
        "scheduled_time": job.scheduled_time,
        "timeout": job.timeout,
        "max_tasks": job.max_tasks,
        "reason": job.reason,
        "signal": job.signal,
        "unit": job.unit,
        "pid": job.pid,
        "created_by": job.created_by,
        "stopped_by": job.stopped_by,
    }
    return {**shown, "command": job.command, **{key: value for key, value in more.items() if value}}
