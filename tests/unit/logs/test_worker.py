# SPDX-License-Identifier: MIT
"""The threads of a store that no pipe hangs on (those are in test_reader): their deaths."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblet.server.logs.packer import Packer
from joblet.server.logs.syncer import Syncer
from joblet.server.logs.worker import Worker
from joblet.server.logs.writer import Writer
from tests.unit.logs.support import run, running

if TYPE_CHECKING:
    from joblet.errors import JobletError


@pytest.mark.parametrize(
    ("kind", "method", "number", "said"),
    [
        (Writer, "_wait", 1, "cannot store output: the thread log-writer-0 ended"),
        (Packer, "_wait", 2, "cannot compress output: the thread log-compress ended"),
        (Syncer, "_round", 1, "cannot sync output: the thread log-syncer ended"),
    ],
)
def test_no_thread_dies_unseen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Worker],
    method: str,
    number: int,
    said: str,
) -> None:
    def bug(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(kind, method, bug)

    async def main() -> None:
        deaths: asyncio.Queue[JobletError] = asyncio.Queue()
        async with running(tmp_path, sync_s=0.001, on_death=deaths.put_nowait):
            told = {str(error): error for error in [await deaths.get() for _ in range(number)]}
        error = told[f"{said}: ZeroDivisionError('a bug')"]
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert ("nothing they say is lost" in error.text) == (kind is not Syncer)

    run(main)
