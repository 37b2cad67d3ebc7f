# SPDX-License-Identifier: MIT
"""rnx job list: all jobs, as a table or as JSON, in the shapes of the published rnx."""

from collections.abc import Iterable
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


@click.command("list")
@global_options
@click.pass_obj
def command(session: Session) -> None:
    """List all jobs, in order of creation.

    START TIME is when a job was accepted, or when it will begin while it is SCHEDULED.
    """
    with session.client() as client:
        jobs = client.list_jobs().jobs
    if session.json:
        session.env.print_json([job_json(job) for job in jobs])
    else:
        session.env.print(job_table(jobs, session.env))


def job_table(jobs: Iterable["pb.Job"], env: Environment) -> str:
    """The table of `rnx job list`; "No jobs found" without any."""
    rows = [
        (
            cut(one_line(job.uuid), ID_WIDTH),
            cut(one_line(job.name), NAME_WIDTH) or "-",
            cut(one_line(job.node_id), ID_WIDTH) or "-",
            job.status,
            list_time(_listed_time(job)),
            command_line(job.command, job.args),
        )
        for job in jobs
    ]
    if not rows:
        return "No jobs found"
    head = ("ID", "NAME", "NODE ID", "STATUS", "START TIME", "COMMAND")
    widths = [
        max(map(len, column)) + 2
        for column in zip(head[:4], *(row[:4] for row in rows), strict=True)
    ]
    widths.append(TIME_WIDTH)

    def line(cells: tuple[str, ...], status: str) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        padded[3] = status + " " * (widths[3] - len(cells[3]))
        return " ".join([*padded, cells[5]])

    dashes = " ".join("-" * width for width in [*widths, len(head[5])])
    lines = [line(row, env.status(row[3])) for row in rows]
    return "\n".join([line(head, head[3]), dashes, *lines])


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
