# SPDX-License-Identifier: MIT
"""rnx job status: everything known about one job, in the shapes that published scripts parse.

Those scripts take the second word of the one line that has "Status:" in it, so no other line may.
In JSON the published keys keep their spelling; ours follow in the same manner.
"""

import signal
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from rnx.exits import UNENDED
from rnx.formats import parse_time, plain, reason, size, span, status_time
from rnx.options import global_options, job_argument
from rnx.output import Environment
from rnx.session import Session
from rnx.show_limits import asked, asked_json, effective, effective_json

if TYPE_CHECKING:
    from joblet_pb import joblet_pb2 as pb


@click.command("status")
@job_argument()
@global_options
@click.pass_obj
def command(session: Session, uuid: str) -> None:
    """Show one job: state, end, limits, usage.

    Limits are shown as they were asked for and as the kernel enforces them; Unit, PID and Cgroup
    are where systemctl, ps and the cgroup tree have the job.
    """
    with session.client() as client:
        job = client.job_status(uuid)
    if session.json:
        session.env.print_json(status_json(job))
    else:
        session.env.print(status_text(job, session.env))


def status_text(job: "pb.GetJobStatusResponse", env: Environment) -> str:
    """The sections of `rnx job status`, an empty line between them."""
    uuid = plain(job.uuid)
    sections = [
        _head(job, env),
        _section("Scheduling Information", _schedule(job, env)),
        _section("Timing", _timing(job, env)),
        _section("Resource Limits", _named(asked(job))),
        _section("Effective Limits", effective(job)),
        _section(
            "Output",
            _named(
                {
                    "Overflow": job.overflow_strategy,
                    "When Full": job.on_full,
                    "Trouble": job.output_trouble,
                }
            ),
        ),
        _section("Isolation", _named({"Profile": job.profile})),
        _section("Systemd", _systemd(job)),
        _section("Usage", _usage(job)),
        _section("Runtime Environment", _named({"Runtime": job.runtime})),
        _section("Network Configuration", _named({"Network": job.network})),
        _section("Volumes", [f"- {volume}" for volume in job.volumes]),
        _section("Working Directory", _named({"Work Dir": job.work_dir})),
        _section("Output", _named({"Log Driver": job.log_driver})),
        _section("Uploaded Files", [f"- {upload}" for upload in job.uploads]),
        _section("Environment Variables", _variables(job)),
        _section("Result", _result(job)),
        _section("Available Actions", _actions(job.status, uuid)),
    ]
    return "\n\n".join(section for section in sections if section)


def _section(title: str, lines: Iterable[str]) -> str:
    body = [f"  {plain(line)}" for line in lines]
    return "\n".join([f"{title}:", *body]) if body else ""


def _named(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {value}" for name, value in values.items() if value]


def _head(job: "pb.GetJobStatusResponse", env: Environment) -> str:
    lines = [f"Job ID: {plain(job.uuid)}"]
    if job.name:
        lines.append(f"Job Name: {plain(job.name)}")
    if job.node_id:
        lines.append(f"Node ID: {plain(job.node_id)}")
    lines.append(f"Command: {plain(' '.join([job.command, *job.args]))}")
    lines.append(f"Status: {env.status(job.status)}")
    if job.reason:
        lines.append(f"Reason: {reason(job)}")
    return "\n".join(lines)


def _schedule(job: "pb.GetJobStatusResponse", env: Environment) -> list[str]:
    if not job.scheduled_time:
        return []
    lines = [f"Scheduled Time: {status_time(job.scheduled_time)}"]
    moment = parse_time(job.scheduled_time)
    if job.status == "SCHEDULED" and moment is not None:
        left = moment.timestamp() - env.now()
        due = span(left) if left > 0 else "Due now (waiting for execution)"
        lines.append(f"Time Until Execution: {due}")
    return lines


def _timing(job: "pb.GetJobStatusResponse", env: Environment) -> list[str]:
    lines = [f"Created: {status_time(job.start_time)}"]
    begun, ended = parse_time(job.start_time), parse_time(job.end_time)
    if job.end_time:
        lines.append(f"Ended: {status_time(job.end_time)}")
        if begun and ended:
            lines.append(f"Duration: {span((ended - begun).total_seconds())}")
    elif job.status == "RUNNING" and begun:
        lines.append(f"Running For: {span(max(0.0, env.now() - begun.timestamp()))}")
    if job.created_by:
        lines.append(f"Created By: {job.created_by}")
    return lines


def _systemd(job: "pb.GetJobStatusResponse") -> list[str]:
    return _named({"Unit": job.unit, "PID": job.pid, "Cgroup": job.cgroup})


def _usage(job: "pb.GetJobStatusResponse") -> list[str]:
    if not job.HasField("usage"):
        return []
    usage = job.usage
    return _named(
        {
            "CPU Time": usage.cpu_usec and f"{usage.cpu_usec / 1e6:.3f}s",
            "Peak Memory": usage.memory_peak_bytes and size(usage.memory_peak_bytes),
            "Memory Limit": usage.memory_limit_bytes and size(usage.memory_limit_bytes),
            "Read": usage.io_read_bytes and size(usage.io_read_bytes),
            "Written": usage.io_write_bytes and size(usage.io_write_bytes),
        }
    )


def _variables(job: "pb.GetJobStatusResponse") -> list[str]:
    open_ = [f"{key}={value}" for key, value in sorted(job.environment.items())]
    secret = [f"{key}={value} (secret)" for key, value in sorted(job.secret_environment.items())]
    return open_ + secret


def _result(job: "pb.GetJobStatusResponse") -> list[str]:
    if job.status in UNENDED:
        return []
    lines = [f"Exit Code: {job.exit_code}"]
    if job.signal:
        lines.append(f"Signal: {job.signal}{_signal_name(job.signal)}")
    return lines


def _signal_name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:  # a number that this system has no name for
        return ""


def _actions(status: str, uuid: str) -> list[str]:
    log, stop = f"• rnx job log {uuid}", f"• rnx job stop {uuid}"
    match status:
        case "SCHEDULED":
            return [
                f"{stop}     # Cancel scheduled job",
                f"• rnx job status {uuid}   # Check again",
            ]
        case "RUNNING":
            return [f"{log}      # Stream live logs", f"{stop}     # Stop running job"]
        case "COMPLETED" | "FAILED" | "STOPPED":
            return [
                f"{log}      # View job logs",
                f"• rnx job delete {uuid}   # Delete job and logs",
            ]
        case _:
            return [f"{log}      # View job logs", f"{stop}     # Stop job if running"]


def status_json(job: "pb.GetJobStatusResponse") -> dict[str, Any]:
    """`rnx job status --json`: published keys are always there, empty lists and maps null."""
    shown: dict[str, Any] = {
        "args": list(job.args) or None,
        "command": job.command,
        "dependencies": list(job.legacy_dependencies) or None,
        "endTime": job.end_time,
        "environment": dict(job.environment) or None,
        "exitCode": job.exit_code,
        "name": job.name,
        "network": job.network,
        "nodeId": job.node_id,
        "runtime": job.runtime,
        "scheduledTime": job.scheduled_time,
        "secretEnvironment": dict(job.secret_environment) or None,
        "startTime": job.start_time,
        "status": job.status,
        "uploads": list(job.uploads) or None,
        "uuid": job.uuid,
        "volumes": list(job.volumes) or None,
        "workDir": job.work_dir,
        "workflowUuid": job.legacy_workflow_uuid,
        # Spelled as published documentation has them.
        "exit_code": job.exit_code,
        "id": job.uuid,
        # Ours.
        "reason": job.reason,
        "reasonText": job.reason_text,
        "unit": job.unit,
        "pid": job.pid,
        "cgroup": job.cgroup,
        "signal": job.signal,
        "createdBy": job.created_by,
        "stoppedBy": job.stopped_by,
        "timeout": job.timeout,
        "profile": job.profile,
        "rlimits": dict(job.rlimits) or None,
        "logDriver": job.log_driver,
        "overflow": job.overflow_strategy,
        "onFull": job.on_full,
        "outputTrouble": job.output_trouble,
        "effectiveLimits": effective_json(job),
        "usage": _usage_json(job),
    }
    shown |= asked_json(job)
    return dict(sorted(shown.items()))


def _usage_json(job: "pb.GetJobStatusResponse") -> dict[str, Any] | None:
    if not job.HasField("usage"):
        return None
    usage = job.usage
    return {
        "cpuUsec": usage.cpu_usec,
        "memoryPeakBytes": usage.memory_peak_bytes,
        "memoryLimitBytes": usage.memory_limit_bytes,
        "ioReadBytes": usage.io_read_bytes,
        "ioWriteBytes": usage.io_write_bytes,
    }
