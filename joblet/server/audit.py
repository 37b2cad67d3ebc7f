# SPDX-License-Identifier: MIT
"""The audit: every change, and every refusal of one, as a record in the journal: who, from where,
what, result.

MESSAGE_ID makes them findable: `journalctl MESSAGE_ID=…`.
"""

import logging
from typing import Final

MESSAGE_ID: Final = "6b5e0d8b7d1c4a3f9a7f0f3a2f5d9c11"

MAX_RESULT: Final = 1000  # characters; a refusal quotes what was asked for

log = logging.getLogger("joblet.audit")


def record(who: str, where: str, what: str, result: str, *, job: str = "") -> None:
    """result: "ok", or why not."""
    result = result[:MAX_RESULT]
    log.info(
        "%s from %s: %s: %s",
        who,
        where,
        what,
        result,
        extra={"job": job, "fields": {"MESSAGE_ID": MESSAGE_ID, "JOBLET_WHO": who,
                                      "JOBLET_FROM": where, "JOBLET_WHAT": what,
                                      "JOBLET_RESULT": result}},
    )  # fmt: skip
