# SPDX-License-Identifier: MIT
"""What the operating system refuses, as errors of Joblet. Pure."""

import errno
from typing import Final

from joblet.errors import Internal, JobletError, ResourceExhausted

_FULL: Final = {
    errno.ENOSPC: "make room on the filesystem of the log directory",
    errno.EDQUOT: "raise the disk quota of the server's user",
    errno.EFBIG: "raise the file size limit of the server",
    errno.EMFILE: "raise LimitNOFILE of the server",
    errno.ENFILE: "raise the system's limit of open files (fs.file-max)",
    errno.ENOMEM: "free memory on this machine",
}


def fault(what: str, exc: OSError) -> JobletError:
    """`exc` as ResourceExhausted if a bound was reached, else as Internal (a broken machine)."""
    reason = exc.strerror or str(exc)
    hint = _FULL.get(exc.errno or 0)
    if hint is not None:
        return ResourceExhausted(what, reason, hint=hint)
    return Internal(what, reason, hint="look at the kernel's log for the disk's errors")
