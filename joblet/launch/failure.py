# SPDX-License-Identifier: MIT
"""A launch that failed, in words: for the job's record and, once, for its log. stdlib alone."""

import contextlib
import errno
import os
from typing import Final

# What a step was for; the others prepare the job, and their names say how far that went.
DONE_BY: Final = {
    "exec": "start the command",
    "chdir": "enter the work directory",
    "fork": "start a process for the command",
    "journal": "open the journal for the job's output",
}
MAX_SUBJECT: Final = 200  # characters of a path that are shown
MAX_TEXT: Final = 1000  # bytes: with its step it fits into one write to any pipe
HEAD: Final = 256  # bytes of a file in which the kernel looks for "#!"


class Failed(Exception):
    """A step of the launch that failed, with its errno (0: none) and what to tell people."""

    def __init__(self, step: str, errno: int, detail: str = "") -> None:
        detail = detail or sentence(step, errno)
        super().__init__(step, errno, detail)
        self.step, self.errno, self.detail = step, errno, detail

    def log(self, fd: int) -> None:
        """A line of it to a stream of the job, whose pipe is empty so far."""
        with contextlib.suppress(OSError):  # the record has it as well
            os.write(fd, self.detail.encode(errors="replace") + b"\n")


def sentence(step: str, number: int, subject: str = "", why: str = "") -> str:
    """ "cannot start the command: /work/x: Permission denied". subject: the path, where there is
    one; why: instead of the errno's own text."""
    done = DONE_BY.get(step)
    parts = [f"cannot {done}" if done else f"cannot prepare the job: {step}"]
    if subject:
        parts.append(subject[:MAX_SUBJECT])
    parts.append(why or (os.strerror(number) if number else "an unknown fault"))
    # a path, and a script's first line, are whatever somebody called them
    plain = "".join(c if c.isprintable() else "?" for c in ": ".join(parts))
    text = plain.encode(errors="replace")
    return text[:MAX_TEXT].decode(errors="ignore")


def why_not_executed(path: str, number: int) -> str:
    """What execve means by an errno that speaks of another file than the command's, or of none
    that one can find; "" where its own text says enough. Asked where the command would run."""
    file = path.encode()  # as execve had it; text would be encoded as the service's locale says
    match number:
        case errno.EACCES if os.path.isdir(file):
            return os.strerror(errno.EISDIR)
        case errno.ENOENT if os.path.exists(file):
            return _missing_interpreter(file)
        case errno.ENOEXEC:
            return "neither a program for this machine nor a script that begins with #!"
        case _:
            return ""


def _missing_interpreter(path: bytes) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        head = b""
    else:
        head = os.read(fd, HEAD)
        os.close(fd)
    words = head.partition(b"\n")[0][2:].split() if head.startswith(b"#!") else []
    if words:
        return f"its interpreter {words[0].decode(errors='replace')} is not there"
    return "the loader that it was built for is not there"
