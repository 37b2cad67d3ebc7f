# SPDX-License-Identifier: MIT
"""journald, asked to take in what waits in its sockets: what `journalctl --sync` does.

journald answers when it has nothing else to do, so that all that was written before the call is in
the journal by then, and on disk. One call at a time; whoever comes while it runs waits for the
next, which many share: an end of a job costs no sync of its own.
"""

import asyncio
import json
from typing import Final

from joblet.errors import Unavailable

PATH: Final = "/run/systemd/journal/io.systemd.journal"
CALL: Final = json.dumps({"method": "io.systemd.Journal.Synchronize"}).encode() + b"\0"
WHAT: Final = "synchronise the journal"
SYNC_S: Final = 3.0  # a journald that others keep busy answers late, or never


class JournalSync:
    """Lives in one event loop."""

    def __init__(self, path: str = PATH) -> None:
        self._path = path
        self._turn = asyncio.Lock()
        self._begun = 0  # calls so far

    async def sync(self) -> None:
        """Raises Unavailable when journald is not there, or takes longer than SYNC_S."""
        begun = self._begun
        try:
            async with asyncio.timeout(SYNC_S), self._turn:
                # one that began after we came has seen all that we know of
                if self._begun <= begun:
                    self._begun += 1
                    try:
                        await self._call()
                    except BaseException:
                        self._begun -= 1  # it was none
                        raise
        except TimeoutError:
            raise Unavailable(WHAT, f"journald does not answer within {SYNC_S:g} s") from None
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise Unavailable(WHAT, str(error)) from None

    async def _call(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            writer.write(CALL)
            answer = json.loads((await reader.readuntil(b"\0")).rstrip(b"\0"))
        finally:
            writer.close()
        if "error" in answer:
            raise Unavailable(WHAT, f"journald says {answer['error']}")
