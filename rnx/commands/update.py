# SPDX-License-Identifier: MIT
"""rnx job update: other limits, another time-out, while the job runs."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import click

from rnx import quantities
from rnx.errors import UsageError
from rnx.options import global_options, job_argument
from rnx.output import harmless
from rnx.quantities import MIB
from rnx.session import Session
from rnx.show_limits import limits_json, limits_lines


class Change(NamedTuple):
    """An option: the field of UpdateJobRequest, how its text is read, what it says of itself."""

    field: str
    read: Callable[[str], Any]
    metavar: str
    help: str


def _memory(text: str) -> int:
    return quantities.mebibytes(text) * MIB


def _weight(text: str) -> int:
    return 0 if text == "0" else quantities.weight(text)


def _cores(text: str) -> str:
    return "" if text == "all" else quantities.cores(text)


CHANGES: Final = {
    "--max-cpu": Change("max_cpu", quantities.percent, "PERCENT", "CPU, percent of one core."),
    "--cpu-weight": Change("cpu_weight", _weight, "N", "Share of the CPU beside other jobs."),
    "--cpu-cores": Change("cpu_cores", _cores, "LIST", "CPUs to run on, or: all."),
    "--max-memory": Change("max_memory_bytes", _memory, "SIZE", "Memory."),
    "--memory-high": Change(
        "memory_high_bytes", quantities.mebibytes_or_less, "SIZE", "Above it the job is slow."
    ),
    "--max-swap": Change(
        "max_swap_bytes", quantities.mebibytes_or_less, "SIZE", "Swap; 0 is none."
    ),
    "--max-iobps": Change("max_io_bps", quantities.rate, "RATE", "Bytes/s read, and written."),
    "--max-read-bps": Change("max_read_bps", quantities.rate, "RATE", "Bytes/s read."),
    "--max-write-bps": Change("max_write_bps", quantities.rate, "RATE", "Bytes/s written."),
    "--io-weight": Change("io_weight", _weight, "N", "Share of the disks beside other jobs."),
    "--max-tasks": Change("max_tasks", quantities.tasks, "N", "Processes and threads."),
    "--timeout": Change(
        "timeout",
        quantities.longer,
        "TIME",
        "End the job so long after its start (2h), or so much later than now said (+30m).",
    ),
}


def _read(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    if text is None:
        return None
    name = parameter.opts[0]
    try:
        return CHANGES[name].read(text)
    except ValueError as error:
        raise UsageError(f"cannot use {name} {text!r}: {error}") from None


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, change in reversed(CHANGES.items()):
        option = click.option(
            name, change.field, metavar=change.metavar, help=change.help, callback=_read
        )
        command = option(command)
    return command


@click.command("update")
@job_argument("RUNNING")
@_options
@global_options
@click.pass_obj
def command(session: Session, uuid: str, **fields: Any) -> None:
    """Change limits and time-out of a running job.

    What is not named stays as it is. 0 is what a job has that asks for nothing. Returns when the
    kernel has taken it; what it does not take is refused, and the job is as before.
    """
    given = {field: value for field, value in fields.items() if value is not None}
    if not given:
        raise UsageError("cannot update the job: say what to change, as in --max-memory 2G")
    with session.client() as client:
        answer = client.update_job(uuid, **given)
    job, env = answer.uuid or uuid, session.env
    if session.json:
        limits = limits_json(answer.effective)
        env.print_json({"uuid": job, "effectiveLimits": limits, "timeout": answer.timeout})
        return
    env.print("Job updated successfully:")
    env.print(f"ID: {harmless(job)}")
    lines = limits_lines(answer.effective)
    if answer.timeout:
        lines.append(f"Timeout: {harmless(answer.timeout)}")
    env.print("\n".join(["Effective Limits:", *(f"  {line}" for line in lines)]))
