# SPDX-License-Identifier: MIT
"""The process beside one VM: runs the emulator, and ends it when the test process is gone.

Run as a script of its own (`python3 -I -S guard.py LOCK DIR COMMAND...`), single-threaded and
standard library alone. LOCK is the descriptor of the run directory's lock; all other descriptors
are the emulator's. On standard input, one byte ends the emulator, and the end of file (the test
process has gone, however it went) ends it and removes DIR. Exits with the emulator's code, or
128 + N after signal N.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
DESCRIPTORS = 4096


def main() -> int:
    lock, directory, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.set_inheritable(lock, False)
    libc = ctypes.CDLL(None)
    child = os.fork()
    if child == 0:
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, f"cannot start {command[0]}: {error}\n".encode())
        finally:
            os._exit(127)
    os.closerange(3, lock)  # the emulator's sockets: their end must be seen when it ends
    os.closerange(lock + 1, DESCRIPTORS)
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(0, select.POLLIN)
    orphaned = False
    ready = {descriptor for descriptor, _ in poll.poll()}
    if ended not in ready:
        orphaned = os.read(0, 1) == b""
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if orphaned:
        os.execvp("rm", ["rm", "-rf", "--", directory])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
