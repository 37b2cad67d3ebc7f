# SPDX-License-Identifier: MIT
"""A server that keeps a log in order and is killed on the way. A program of its own.

python3 keep_driver.py DIRECTORY make            make the log, and say as JSON what it says
python3 keep_driver.py DIRECTORY seal|expire N   do that to it; SIGKILL at the N-th step.
                                                 Exit status 0: there were fewer
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from joblet.server.logs import ERR, OUT
from tests.unit.logs.support import opened, say

ROTATION = 300_000


def make(path: Path) -> None:
    said = {}
    with opened(path, rotation=ROTATION) as core:
        core.expect(frozenset({OUT, ERR}))
        for stream in (OUT, ERR):
            data = b"".join(b"%d:%07d\n" % (stream, number) for number in range(100_000))
            for begin in range(0, len(data), 100_000):
                say(core, stream, data[begin : begin + 100_000])
                core.store()
            said[str(stream)] = len(data)
            core.end(stream)
    print(json.dumps(said))


def keep(path: Path, what: str, kill_at: int) -> None:
    left = kill_at

    def step(name: str) -> None:
        nonlocal left
        if not name.startswith(("seal:", "expire:")):
            return
        print(name, flush=True)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with opened(path, rotation=ROTATION, step=step) as core:
        if what == "expire":
            core.expire(500_000)
            return
        segments = core.segments[OUT]
        for segment in segments.stored():
            if not segment.sealed:
                segments.seal(segment.start, pause=lambda: None, step=step)
                core.publish(OUT, segment.start)


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    if sys.argv[2] == "make":
        make(directory)
    else:
        keep(directory, sys.argv[2], int(sys.argv[3]))
