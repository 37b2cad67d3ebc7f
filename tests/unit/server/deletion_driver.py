# SPDX-License-Identifier: MIT
"""A server that deletes jobs and is killed at a step. A program of its own.

    python3 deletion_driver.py BASE STEP one|all

Three jobs have ended, the fourth runs. STEP is one of Deletion's, or one inside the removal of a
log: "staged", nothing has been done but what a removal begins with, or "aside", it is whole and
aside.
"""

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from joblet.model import JobState
from tests.unit.server.support import job, job_id, supervisor, world

SAID = b"what it said\n"


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(base: Path, step: str, how: str) -> None:
    async with world(base) as w:
        for number in (1, 2, 3):
            await w.records.put(job(number, state=JobState.COMPLETED), key=f"key-{number}")
            log = await w.logs.open(job_id(number))
            await log.expect([1, 2])
            rest = base / "rest"
            rest.write_bytes(SAID)
            await log.import_rest(1, rest, len(SAID))
            await log.finish(1)
            await log.finish(2)
            await log.sync()
        await w.records.put(job(4, state=JobState.RUNNING))
        made = supervisor(w, step=lambda name: die() if name == step else None)
        really = shutil.rmtree

        def rmtree(path: Any, **more: Any) -> None:
            aside = Path(path).name.startswith(".removed-")
            if step == ("aside" if aside and Path(path).exists() else "staged"):
                die()
            really(path, **more)

        shutil.rmtree = rmtree  # type: ignore[assignment]
        if how == "one":
            await made.delete(job_id(2))
        else:
            await made.delete_ended(lambda _: None)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
