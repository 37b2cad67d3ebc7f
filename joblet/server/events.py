# SPDX-License-Identifier: MIT
"""What the journal hears of jobs, each with its message id: at most a line at a job's start and one
at its end, and what is out of the ordinary.

The fields are those of joblet/systemd/journal.py; the catalog (units/joblet.catalog) explains each
message to `journalctl -x`.
"""

import dataclasses
import logging
from collections.abc import Collection, Sequence
from typing import Final

from joblet.model import Job, Reason
from joblet.server.admission import masked, shown
from joblet.server.logs import Swept
from joblet.systemd import messages
from joblet.systemd.statusline import count, size

SOME: Final = 3  # ids that a message names

log = logging.getLogger("joblet.jobs")


def started(job: Job) -> None:
    name, command = shown(job)
    text = f"job {job.id[:8]}{f' ({name})' if name else ''} started"
    text += f" for {job.created_by}: {command}" if job.created_by else f": {command}"
    fields = {"JOBLET_WHO": job.created_by}
    if job.spec.profile:
        fields["JOBLET_PROFILE"] = job.spec.profile
    _say(logging.INFO, text, messages.JOB_STARTED, job, **fields)


def ended(job: Job) -> None:
    end = job.end
    if end is None:
        return
    # what could not be started is named there
    how = dataclasses.replace(end, detail=masked(job.spec, end.detail))
    if end.reason is Reason.LAUNCH_FAILED:
        text = f"job {job.id[:8]} could not be launched: {how}"
        _say(logging.WARNING, text, messages.JOB_LAUNCH_FAILED, job, JOBLET_REASON=str(end.reason))
        return
    fields = {"JOBLET_REASON": str(end.reason), "JOBLET_STATE": str(job.state)}
    if end.reason is Reason.EXITED:
        fields["JOBLET_EXIT_CODE"] = str(end.code)
    elif end.signal:
        fields["JOBLET_SIGNAL"] = str(end.signal)
    level = logging.WARNING if end.reason is Reason.LOST else logging.INFO
    _say(level, f"job {job.id[:8]} ended: {how}", messages.JOB_ENDED, job, **fields)


def not_answering(job: Job) -> None:
    text = f"job {job.id[:8]} does not end: its PID 1 does not answer; asking systemd to end it"
    _say(logging.WARNING, text, messages.JOB_NOT_ANSWERING, job)


def not_enforced(job: Job, by_client: Collection[str]) -> None:
    """Limits that this job's client asked for and has not got; the host's own are said once."""
    names = ", ".join(name for name in job.not_enforced if name in by_client)
    if names:
        text = f"job {job.id[:8]} runs without what it asked for: {names} not enforced here"
        _say(logging.WARNING, text, messages.LIMITS_NOT_ENFORCED, job, JOBLET_LIMITS=names)


def host_enforces_not(names: Collection[str], *, refused: bool) -> None:
    """Said once, at the server's start. refused: whether jobs that ask for one are."""
    listed = ", ".join(names)
    if listed:
        then = "are refused" if refused else "run without it"
        text = (
            f"this host does not enforce {listed}: its kernel has no controller for that here;"
            f" jobs that ask for such a limit {then}"
        )
        fields = {"MESSAGE_ID": messages.LIMITS_NOT_ENFORCED, "JOBLET_LIMITS": listed}
        log.warning("%s", text, extra={"fields": fields})


def taken_back(running: int, ended_meanwhile: int) -> None:
    if running or ended_meanwhile:
        text = f"took back {count(running, 'running job')} of an earlier server"
        if ended_meanwhile:
            text += f", and {count(ended_meanwhile, 'job')} that ended meanwhile"
        fields = {"MESSAGE_ID": messages.JOBS_TAKEN_BACK, "JOBLET_JOBS": str(running)}
        log.info("%s", text, extra={"fields": fields})


def logs_without_record(ids: Sequence[str]) -> None:
    """Said once, at the server's start."""
    if ids:
        some = ", ".join(ids[:SOME]) + (", …" if len(ids) > SOME else "")
        text = f"{count(len(ids), 'log')} of jobs that have no record: {some}; kept as they are"
        fields = {"MESSAGE_ID": messages.LOGS_WITHOUT_RECORD, "JOBLET_LOGS": str(len(ids))}
        log.warning("%s", text, extra={"fields": fields})


def output_expired(swept: Swept) -> None:
    """What a sweep of the logs has removed."""
    texts = []
    if swept.logs:
        texts.append(f"removed {count(swept.logs, 'job')} with {size(swept.log_bytes)} of logs")
    if swept.shortened:
        what = f"the oldest {size(swept.shortened_bytes)} of the output"
        texts.append(f"removed {what} of {count(swept.shortened, 'job')}")
    if swept.failed:
        texts.append(f"could not remove {count(swept.failed, 'log')}")
    fields = {
        "MESSAGE_ID": messages.OUTPUT_EXPIRED,
        "JOBLET_LOGS": str(swept.logs),
        "JOBLET_BYTES": str(swept.log_bytes + swept.shortened_bytes),
    }
    level = logging.WARNING if swept.failed else logging.INFO
    log.log(level, "retention: %s", "; ".join(texts), extra={"fields": fields})


def _say(level: int, text: str, message_id: str, job: Job, **fields: str) -> None:
    known = {"MESSAGE_ID": message_id, "JOBLET_UNIT": job.unit}
    log.log(level, "%s", text, extra={"job": job.id, "fields": {**known, **fields}})
