# SPDX-License-Identifier: MIT
"""The audit: every change, and every refusal of one, as a record in the journal: who, from where,
what, result.

Their message ids make them findable: `journalctl MESSAGE_ID=…`.
"""

import logging
from collections.abc import Sequence
from typing import Final

from joblet.errors import printable
from joblet.systemd import messages
from joblet.systemd.statusline import count

MAX_RESULT: Final = 1000  # characters; a refusal quotes what was asked for
MAX_PROFILE: Final = 40
MAX_CHANGE: Final = 400

log = logging.getLogger("joblet.audit")


def record(
    who: str,
    where: str,
    what: str,
    result: str,
    *,
    job: str = "",
    jobs: Sequence[str] = (),
    profile: str = "",
    change: str = "",
    refused: bool = False,
) -> None:
    """result: "ok", or why not. job, or jobs: whom it was done to. profile: of a job that was to
    run. change: what was to become of a running job's limits. refused: who asked may not do this
    at all."""
    # what a client says is not to hide the record: journalctl shows none that a terminal obeys
    who, result, job = printable(who), printable(result[:MAX_RESULT]), printable(job)
    fields = {
        "MESSAGE_ID": messages.CHANGE_REFUSED if refused else messages.CHANGE,
        "JOBLET_WHO": who,
        "JOBLET_FROM": where,
        "JOBLET_WHAT": what,
        "JOBLET_RESULT": result,
    }
    if profile:
        fields["JOBLET_PROFILE"] = profile = printable(profile[:MAX_PROFILE])
    if change:
        fields["JOBLET_CHANGE"] = change = printable(change[:MAX_CHANGE])
    whose = f" {job[:8]}" if job else f" of {count(len(jobs), 'job')}" if jobs else ""
    # what most jobs have goes without saying
    how = f" (profile {profile})" if profile not in ("", "default") else ""
    how = f" ({change})" if change else how
    log.log(
        logging.WARNING if refused else logging.INFO,
        "%s from %s: %s%s%s: %s",
        who,
        where,
        what,
        whose,
        how,
        result,
        extra={"job": job, "jobs": jobs, "fields": fields},
    )
