# SPDX-License-Identifier: MIT
"""rnx and a server's logs, both real: what a person sees is the log, whatever happens between."""

import asyncio
import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.server.logs import Selection as Wanted
from joblet.server.logs import selection
from joblet.server.logs.core import LogCore
from joblet.server.rpc import convert
from joblet_pb import joblet_pb2 as pb
from rnx.errors import BrokenOff, Unreachable
from rnx.follow import Log, Patience
from rnx.selection import Selection
from tests.unit.logs.naive import LOG, Said, Shown, filled, naively, placed, select, selections
from tests.unit.server.grpc_support import OURS, authority, client_pair
from tests.unit.server.support import decoded, job_id, run, until
from tests.unit.server.test_rpc_jobs import flooded, served


class Jobs:
    """A server around one log; the connection breaks after so many messages, once each."""

    def __init__(self, core: LogCore, max_bytes: int, breaks: list[tuple[int, bool]]) -> None:
        self._core = core
        self._max_bytes = max_bytes
        self._breaks = breaks

    def job_logs(self, uuid: str, selection: Selection) -> Generator[pb.DataChunk, None, None]:
        request = pb.GetJobLogsRequest(uuid=uuid, **dataclasses.asdict(selection))
        answers = asyncio.run(self._answers(pb.GetJobLogsRequest.FromString(
            request.SerializeToString()
        )))  # fmt: skip
        if not self._breaks:
            yield from answers
            return
        count, ours = self._breaks.pop(0)
        yield from answers[:count]
        raise BrokenOff("cannot go on") if ours else Unreachable("gone")

    async def _answers(self, request: pb.GetJobLogsRequest) -> list[pb.DataChunk]:
        """As the servicer gives them."""
        wanted = convert.selection(request)
        selected = select(self._core, wanted, self._max_bytes)
        begin = await selected.open()
        answers = [pb.DataChunk(offset_end=begin, begin=True)] if wanted.narrow else []
        return answers + [decoded(convert.chunk(piece)) async for piece in selected]

    def job_status(self, uuid: str) -> pb.GetJobStatusResponse:
        return pb.GetJobStatusResponse(status="COMPLETED")


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    said=LOG,
    max_bytes=st.integers(1, 12),
    breaks=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=6),
)
def test_any_part_of_any_log_over_any_breaks(
    data: st.DataObject, said: list[Said], max_bytes: int, breaks: list[tuple[int, bool]]
) -> None:
    wanted = data.draw(selections(said))
    parts = placed(said)
    _, _, expected = naively(parts, wanted)
    with pytest.MonkeyPatch.context() as patch, filled(said) as (core, _):
        patch.setattr(selection, "TELL_EVERY_BYTES", 7)
        found, arrivals = seen(Jobs(core, max_bytes, breaks), wanted)
    assert found == expected
    if wanted.arrivals:
        times = {o: part.time_us for part in parts for o in range(part.offset, part.end)}
        assert arrivals == {offset: times[offset] for offset in expected[0]}


def seen(jobs: Jobs, wanted: Wanted) -> tuple[Shown, dict[int, int]]:
    """What rnx gives out, by offset, and when it says that each byte arrived."""
    asked = Selection(
        from_offset=wanted.from_offset,
        no_follow=not wanted.follow,
        since_us=wanted.since_us,
        until_us=wanted.until_us,
        tail_lines=wanted.tail_lines,
        stream=wanted.stream,
        arrivals=wanted.arrivals,
    )
    found: dict[int, tuple[int, int]] = {}
    gaps: set[int] = set()
    arrivals: dict[int, int] = {}
    patience = Patience(lambda _: None, monotonic=lambda: 0.0, sleep=lambda _: None)
    for piece in Log(jobs, "j", patience, asked).pieces():
        if piece.gap:
            missing = set(range(piece.end - piece.missing, piece.end))
            assert piece.missing > 0
            assert not missing & gaps
            gaps |= missing
        for offset, byte in enumerate(piece.data, piece.end - len(piece.data)):
            assert offset not in found
            found[offset] = (piece.stream, byte)
        for at, time_us in piece.arrivals:
            arrivals |= dict.fromkeys(range(piece.end - len(piece.data) + at, piece.end), time_us)
    assert list(found) == sorted(found)
    return (found, gaps), arrivals


def test_rnx_goes_on_when_its_reader_does(
    tmp_path: Path, patch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`rnx job log JOB | less`, with somebody who reads slowly."""
    caplog.set_level(logging.INFO, logger="joblet.server.rpc.guard")

    async def main() -> None:
        async with served(tmp_path, stall_s=1) as (w, _, target):
            log = await flooded(w, 32 << 20)
            await log.finish(1)
            await log.finish(2)
            process = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
                [sys.executable, "-m", "rnx", "log", job_id(7)],
                env=environment(tmp_path, target),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert process.stdout is not None
            read = await asyncio.to_thread(process.stdout.read, 100)
            for breaks in (1, 2):  # each time until the server has had enough
                await had_enough(caplog, breaks)
                read += await asyncio.to_thread(process.stdout.read, 12 << 20)
            read += await asyncio.to_thread(process.stdout.read)
            _, err = await asyncio.to_thread(process.communicate)
            assert read == b"".join(b"%07d\n" % number * (1 << 17) for number in range(32))
            assert (process.returncode, err) == (0, b"")

    run(main)


async def had_enough(caplog: pytest.LogCaptureFixture, times: int) -> None:
    await until(lambda: len(caplog.records) >= times)


def environment(directory: Path, target: str) -> dict[str, str]:
    """Of an rnx that finds this server."""
    pair = client_pair("admin", OURS)
    node = {"address": target, "cert": pair.cert, "key": pair.key, "ca": authority(OURS).cert}
    config = directory / "rnx-config.yml"
    config.write_text(yaml.safe_dump({"version": "3.0", "nodes": {"default": node}}))
    paths = os.pathsep.join(path for path in sys.path if path)
    return {"PYTHONPATH": paths, "PATH": os.environ["PATH"], "RNX_CONFIG": str(config)}
