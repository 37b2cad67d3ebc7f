# SPDX-License-Identifier: MIT
"""ListJobs: the newest, and all of them in pages, whatever comes and goes between two."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from joblet.errors import InvalidArgument
from joblet.model import Job, JobSpec, JobState
from joblet.server.records import LAST, Records
from joblet.server.rpc import convert, listing
from joblet.server.rpc.listing import Listing, number_of, token
from joblet_pb import joblet_pb2 as pb
from tests.unit.server.grpc_support import call, channel, failure, serving
from tests.unit.server.pid1 import Pid1
from tests.unit.server.support import World, job, job_id, run, supervisor, world

pytestmark = pytest.mark.usefixtures("patch")

LIST = "/joblet.JobService/ListJobs"


@contextlib.asynccontextmanager
async def listed(base: Path) -> AsyncIterator[tuple[World, "Client"]]:
    async with world(base) as w:
        w.init.started = Pid1.start
        made = supervisor(w)
        try:
            yield w, Client(Listing(made, node_id="node-1"))
        finally:
            await made.close()


class Client:
    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    async def page(self, **request: Any) -> pb.Jobs:
        return pb.Jobs.FromString(await self._listing.page(pb.EmptyRequest(**request)))

    async def numbers(self, **request: Any) -> tuple[list[int], str]:
        answer = await self.page(**request)
        return [int(one.uuid[:8], 16) for one in answer.jobs], answer.next_page_token

    async def pages(self, **request: Any) -> list[list[int]]:
        """All of them."""
        found, begun = [], ""
        while True:
            numbers, begun = await self.numbers(page_token=begun, **request)
            found.append(numbers)
            if not begun:
                return found


async def put(w: World, numbers: Collection[int], **more: Any) -> None:
    more.setdefault("state", JobState.COMPLETED)
    for number in numbers:
        await w.records.put(job(number, **more))


async def delete(w: World, number: int) -> None:
    await w.records.begin_deletion(job_id(number))
    await w.records.forget([job_id(number)])


def test_of_more_jobs_than_fit_the_newest(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with listed(tmp_path) as (w, client):
            assert await client.page() == pb.Jobs()
            spec = JobSpec("true", args=("x" * 1000,), secret_environment={"A": "hunter2"})
            await put(w, range(1, 31), spec=spec)
            assert await client.numbers() == (list(range(1, 31)), "")
            assert "hunter2" not in str(await client.page())
            patch.setattr(listing, "MAX_BYTES", 12_000)
            newest = await client.page()
            assert [one.uuid for one in newest.jobs] == [job_id(n) for n in range(21, 31)]
            assert newest.ByteSize() <= 12_100
            pages = await client.pages()
            assert pages == [list(range(n, n + 10)) for n in (21, 11, 1)]
            assert await client.pages(oldest_first=True) == pages[::-1]

    run(main)


@pytest.mark.parametrize("heads", [2, 3, 1000])
def test_pages_of_a_size(tmp_path: Path, patch: pytest.MonkeyPatch, heads: int) -> None:
    async def main() -> None:
        patch.setattr(listing, "HEADS", heads)
        patch.setattr(listing, "LOAD", 2)
        async with listed(tmp_path) as (w, client):
            assert await client.pages(page_size=3) == [[]]
            await put(w, range(1, 8))
            assert await client.pages(page_size=3) == [[5, 6, 7], [2, 3, 4], [1]]
            assert await client.pages(page_size=3, oldest_first=True) == [[1, 2, 3], [4, 5, 6], [7]]
            assert await client.pages(page_size=7) == [[1, 2, 3, 4, 5, 6, 7]]
            assert await client.pages(page_size=1000) == [[1, 2, 3, 4, 5, 6, 7]]
            assert await client.pages(page_size=1) == [[n] for n in range(7, 0, -1)]

    run(main)


@pytest.mark.parametrize("oldest_first", [False, True])
def test_what_comes_and_goes_between_two_pages(tmp_path: Path, *, oldest_first: bool) -> None:
    async def main() -> None:
        async with listed(tmp_path) as (w, client):
            await put(w, range(1, 10))
            size = {"page_size": 3, "oldest_first": oldest_first}
            first, following = await client.numbers(**size)
            assert first == ([1, 2, 3] if oldest_first else [7, 8, 9])
            for gone in (3, 7, 5):  # what pages end with, and one to come
                await delete(w, gone)
            await put(w, [20])
            second, following = await client.numbers(page_token=following, **size)
            assert second == ([4, 6, 8] if oldest_first else [2, 4, 6])
            third, following = await client.numbers(page_token=following, **size)
            assert (third, following) == ([9, 20] if oldest_first else [1], "")

    run(main)


def test_a_job_that_fills_a_message_has_a_page_for_itself(
    tmp_path: Path, patch: pytest.MonkeyPatch
) -> None:
    """Or whoever turns pages would never get past it."""

    async def main() -> None:
        patch.setattr(listing, "MAX_BYTES", 2_000)
        async with listed(tmp_path) as (w, client):
            await put(w, [1, 2])
            await put(w, [3], spec=JobSpec("true", args=("x" * 5000,)))
            await put(w, [4, 5])
            assert await client.pages() == [[4, 5], [3], [1, 2]]
            assert await client.pages(oldest_first=True) == [[1, 2], [3], [4, 5]]

    run(main)


class Reads:
    """What is read of the records."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.heads: list[int] = []
        self.loaded: list[int] = []
        heads, load = Records.heads, Records.load

        async def counted_heads(records: Records, **named: Any) -> Any:
            found = await heads(records, **named)
            self.heads.append(len(found))
            return found

        async def counted_load(records: Records, ids: Collection[str]) -> Mapping[str, Job]:
            self.loaded.append(len(ids))
            return await load(records, ids)

        patch.setattr(Records, "heads", counted_heads)
        patch.setattr(Records, "load", counted_load)


def test_what_does_not_fit_is_not_even_read(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """Or every list would cost what the server has ever run."""
    patch.setattr(listing, "HEADS", 50)
    patch.setattr(listing, "LOAD", 20)
    patch.setattr(listing, "MAX_BYTES", 4_000)

    async def main() -> None:
        async with listed(tmp_path) as (w, client):
            await put(w, range(1, 301))
            reads = Reads(patch)
            numbers, _ = await client.numbers()
            assert 10 < len(numbers) < 40
            assert sum(reads.heads) <= 50
            assert sum(reads.loaded) <= 40

    run(main)


def test_what_has_ended_is_read_once(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with listed(tmp_path) as (w, client):
            await put(w, range(1, 31))
            first = await client.page()
            reads = Reads(patch)
            assert await client.page() == first
            assert reads.loaded == []
            # pages of any kind take from what is kept, and leave it as it is
            assert await client.pages(page_size=20) == [list(range(11, 31)), list(range(1, 11))]
            await client.pages(oldest_first=True)
            assert reads.loaded == []
            await put(w, [40])
            await delete(w, 7)
            numbers, _ = await client.numbers()
            assert numbers == [n for n in [*range(1, 31), 40] if n != 7]
            assert reads.loaded == [1]

    run(main)


def test_a_job_that_is_deleted_while_it_is_listed(
    tmp_path: Path, patch: pytest.MonkeyPatch
) -> None:
    load = Records.load

    async def main() -> None:
        async with listed(tmp_path) as (w, client):
            await put(w, range(1, 6))

            async def late(records: Records, ids: Collection[str]) -> Mapping[str, Job]:
                await delete(w, 3)
                patch.setattr(Records, "load", load)
                return await load(records, ids)

            patch.setattr(Records, "load", late)
            assert await client.numbers() == ([1, 2, 4, 5], "")

    run(main)


def test_a_job_that_lives_is_encoded_when_it_changes(
    tmp_path: Path, patch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    listed = convert.listed

    def counted(job: Job, node_id: str) -> pb.Job:
        encoded.append(job.state)
        return listed(job, node_id)

    async def main() -> None:
        async with world(tmp_path) as w:
            w.init.started = Pid1.start
            made = supervisor(w)
            client = Client(Listing(made, node_id="n"))
            job = await made.run(JobSpec("true"), by="me")
            patch.setattr(convert, "listed", counted)
            first = await client.page()
            assert encoded == ["RUNNING"]
            assert await client.page() == first
            assert await client.page(oldest_first=True) == first
            assert encoded == ["RUNNING"]
            w.pid1().end(code=3)
            await made.wait_ended(job.id)
            [one] = (await client.page()).jobs
            assert (one.status, one.exit_code) == ("FAILED", 3)
            await client.page()
            assert encoded == ["RUNNING", "FAILED"]
            await made.close()

    run(main)


def test_jobs_that_live_are_true(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as w:
            w.init.started = Pid1.start
            made = supervisor(w)
            client = Client(Listing(made, node_id="n"))
            await made.run(JobSpec("true"), by="me")
            for request in ({}, {"oldest_first": True}, {"page_size": 1}):
                [one] = (await client.page(**request)).jobs
                assert (one.status, one.node_id) == ("RUNNING", "n")
            await made.close()

    run(main)


def test_what_is_no_token(tmp_path: Path) -> None:
    good = token(17, newest_first=True)
    flipped = [f"{good[:at]}{'A' if good[at] != 'A' else 'B'}{good[at + 1 :]}" for at in range(18)]
    odd = ["x", "ä" * 18, " " * 18, good + "=", good * 2, good[:-1], "\0" * 18, "A" * 100_000]
    unmade = [token(0, newest_first=True), base64.urlsafe_b64encode(bytes(13)).decode()[:18]]

    async def main() -> None:
        async with listed(tmp_path) as (_, client):
            for text in [*flipped, *odd, *unmade]:
                with pytest.raises(InvalidArgument, match="page_token cannot be used") as caught:
                    await client.page(page_token=text)
                assert len(caught.value.text) < 200
            with pytest.raises(InvalidArgument, match="other order"):
                await client.page(page_token=good, oldest_first=True)
            with pytest.raises(InvalidArgument, match="page_size is negative: -1"):
                await client.page(page_size=-1)

    run(main)


@pytest.mark.parametrize("number", [1, 255, 2**40, LAST])
@pytest.mark.parametrize("newest_first", [False, True])
def test_a_token_is_what_it_was_made_of(number: int, *, newest_first: bool) -> None:
    made = token(number, newest_first=newest_first)
    assert len(made) == 18
    assert number_of(made, newest_first=newest_first) == number


def test_a_published_client_gets_the_newest(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """By real gRPC: its empty request, and an answer that it can read."""

    async def main() -> None:
        patch.setattr(listing, "MAX_BYTES", 4_000)
        async with listed(tmp_path) as (w, client):
            await put(w, range(1, 101))

            async def serve(request: pb.EmptyRequest, _: Any) -> bytes:
                return await client._listing.page(request)

            async with serving({LIST: serve}, {}) as target, channel(target, "viewer") as caller:
                answer = await call(caller, LIST)
                assert answer.jobs[-1].uuid == job_id(100)
                assert answer == await client.page()
                again = pb.EmptyRequest(page_token=answer.next_page_token)
                before = (await call(caller, LIST, again)).jobs[-1].uuid
                assert int(before[:8], 16) == int(answer.jobs[0].uuid[:8], 16) - 1
                nonsense = pb.EmptyRequest(page_token="nonsense")
                code, details = await failure(caller, LIST, nonsense)
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert "next_page_token" in details

    run(main)


def test_others_go_on_while_a_long_list_is_made(tmp_path: Path) -> None:
    async def main() -> None:
        async with listed(tmp_path) as (w, client):
            await put(w, range(1, 301))
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            working = asyncio.ensure_future(other())
            assert len((await client.page()).jobs) == 300
            working.cancel()
            assert turns >= 300 // listing.SLICE

    run(main)
