# SPDX-License-Identifier: MIT
"""rnx's exit codes: one table, and how a job's end becomes one of them.

Without --follow or --wait a command exits with 0 or 1. With them `rnx run` takes over the job's
end, and what is rnx's or the server's own fault is 125, so that a script can tell the two apart.
"""

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joblet_pb.joblet_pb2 import GetJobStatusResponse

SIGNAL_BASE = 128
SIGTERM = 15  # the same number everywhere, and Windows has no signal.SIGTERM to kill with

# Every other status is an end.
UNENDED = frozenset({"PENDING", "SCHEDULED", "INITIALIZING", "RUNNING", "STOPPING"})


class Exit(enum.IntEnum):
    """Codes of rnx's own. A followed job's exit code n, and 128 + its signal, stand beside them."""

    OK = 0
    FAILED = 1
    INCOMPLETE = 3
    TIMED_OUT = 124
    FAULT = 125
    INTERRUPTED = 130
    OUT_OF_MEMORY = 137
    BROKEN_PIPE = 141

    @property
    def meaning(self) -> str:
        return MEANINGS[self]


MEANINGS = {
    Exit.OK: "done; with --follow or --wait: the job exited with 0",
    Exit.FAILED: "failed (with --follow or --wait only if the job exited with 1)",
    Exit.INCOMPLETE: "rnx log --strict: bytes of the log are missing",
    Exit.TIMED_OUT: "the job reached its time-out",
    Exit.FAULT: "rnx's or the server's own fault: refused, could not begin, lost",
    Exit.INTERRUPTED: "interrupted by Ctrl-C; the job goes on",
    Exit.OUT_OF_MEMORY: "the job reached its memory limit",
    Exit.BROKEN_PIPE: "whoever read rnx's output has gone",
}


# What a job's end, followed or waited for, can become besides its own codes.
OF_RUN = tuple(code for code in Exit if code > Exit.INCOMPLETE)


def own_fault(*, following: bool) -> Exit:
    """For an error that is not the job's."""
    return Exit.FAULT if following else Exit.FAILED


def of_job(job: "GetJobStatusResponse") -> int:
    """The exit code for a job that has ended and was followed or waited for.

    Servers that say no reason are read by status, exit code and signal alone.
    """
    reason = job.reason or _guess(job)
    match reason:
        case "exited":
            return job.exit_code
        case "oom":
            return Exit.OUT_OF_MEMORY
        case "timeout":
            return Exit.TIMED_OUT
        case "signalled":
            return SIGNAL_BASE + (job.signal or SIGTERM)
        case "stopped" | "unit-stopped":
            return SIGNAL_BASE + (job.signal or SIGTERM)
        case _:  # launch-failed, lost, and what a newer server may add
            return Exit.FAULT


def _guess(job: "GetJobStatusResponse") -> str:
    match job.status:
        case "COMPLETED":
            return "exited"
        case "FAILED" if job.exit_code > 0:
            return "exited"
        case "FAILED" if job.signal > 0:
            return "signalled"
        case "STOPPED" | "CANCELED" | "CANCELLED":
            return "stopped"
        case "TIMEOUT":
            return "timeout"
        case _:
            return ""
