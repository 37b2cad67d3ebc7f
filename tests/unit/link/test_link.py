# SPDX-License-Identifier: MIT
"""The link between the two halves, over real sockets: messages, descriptors, versions, ends."""

import asyncio
import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet import errors, link
from joblet.errors import Code, InvalidArgument, JobletError, Unavailable
from joblet.link import MAX_FDS, MAX_MESSAGE, Link

WAIT_S = 10.0
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await work

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Link, Link]]:
    ours, theirs = (Link(sock) for sock in raw_pair())
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


@contextlib.asynccontextmanager
async def half() -> AsyncIterator[tuple[Link, socket.socket]]:
    """One end of a link, and a peer that may send anything."""
    ours, peer = raw_pair()
    made = Link(ours)
    try:
        with peer:
            yield made, peer
    finally:
        made.close()


def raw_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """None may be left over."""

    def open_ones() -> set[str]:
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    before = open_ones()
    yield
    # the directory's own descriptor is in both or in neither
    assert len(open_ones()) == len(before)


def same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=10), values, max_size=4))
def test_a_message_arrives_as_it_is(message: dict[str, Any]) -> None:
    async def work() -> None:
        async with pair() as (ours, theirs):
            await ours.send(message)
            assert await theirs.recv() == (message, [])

    run(work())


@pytest.mark.usefixtures("descriptors")
def test_descriptors_are_close_on_exec() -> None:
    async def work() -> None:
        async with pair() as (ours, theirs):
            reader, writer = os.pipe()
            await ours.send({"n": 1}, [reader, writer])
            await ours.send({"n": 2}, [reader] * MAX_FDS)
            for count, number in ((2, 1), (MAX_FDS, 2)):
                received = await theirs.recv()
                assert received is not None
                message, fds = received
                assert (message, len(fds)) == ({"n": number}, count)
                assert not any(os.get_inheritable(fd) for fd in fds)
                assert same(fds[0], reader)
                link.close_all(fds)
            link.close_all([reader, writer])

    run(work())


@pytest.mark.usefixtures("descriptors")
def test_more_descriptors_than_are_allowed() -> None:
    """The kernel cuts the list off: then none is kept, and the message is refused."""

    async def work() -> None:
        for count in (MAX_FDS + 1, MAX_FDS + 2, 253):
            async with half() as (ours, peer):
                socket.send_fds(peer, [b"{}"], [0] * count)
                with pytest.raises(InvalidArgument, match="longer"):
                    await ours.recv()

    run(work())


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize(
    "data",
    [
        b"?",
        b"[]",
        b"null",
        b"1",
        b'"hello"',
        b"{",
        b"\xff\xfe",
        b"{" * 100_000,
        b"[" * 100_000,
        b"1" * 5000,
        b'{"a":' * 20_000,
    ],
    ids=lambda data: repr(data[:10]),
)
def test_what_is_no_message(data: bytes) -> None:
    async def work() -> None:
        async with half() as (ours, peer):
            socket.send_fds(peer, [data], [0, 1])
            with pytest.raises(InvalidArgument, match="cannot read a message"):
                await ours.recv()

    run(work())


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes(data: bytes) -> None:
    async def work() -> None:
        async with half() as (ours, peer):
            peer.send(data)
            try:
                received = await ours.recv()
            except InvalidArgument:
                return
            assert received is not None
            assert isinstance(received[0], dict)

    run(work())


@pytest.mark.usefixtures("descriptors")
def test_size() -> None:
    async def work() -> None:
        async with half() as (ours, peer):
            peer.send(b'{"a":"' + b"x" * (MAX_MESSAGE - 8) + b'"}')
            received = await ours.recv()
            assert received is not None
            assert len(received[0]["a"]) == MAX_MESSAGE - 8
            socket.send_fds(peer, [b'{"a":"' + b"x" * (MAX_MESSAGE - 7) + b'"}'], [0])
            with pytest.raises(InvalidArgument, match=f"longer than {MAX_MESSAGE} bytes"):
                await ours.recv()
            peer.send(b"x" * (MAX_MESSAGE + 5000))
            with pytest.raises(InvalidArgument, match=f"longer than {MAX_MESSAGE} bytes"):
                await ours.recv()
            # the next message is none of the worse for it
            peer.send(b'{"next":1}')
            assert await ours.recv() == ({"next": 1}, [])

    run(work())


def test_what_is_too_large_is_not_sent() -> None:
    async def work() -> None:
        async with pair() as (ours, theirs):
            await ours.send({"a": "x" * (MAX_MESSAGE - 8)})
            with pytest.raises(InvalidArgument, match="more than"):
                await ours.send({"a": "x" * (MAX_MESSAGE - 7)})
            received = await theirs.recv()
            assert received is not None
            assert len(received[0]["a"]) == MAX_MESSAGE - 8

    run(work())


@pytest.mark.usefixtures("descriptors")
def test_an_empty_message_is_an_end_and_keeps_nothing() -> None:
    async def work() -> None:
        async with half() as (ours, peer):
            socket.send_fds(peer, [b""], [0, 1, 2])
            assert await ours.recv() is None

    run(work())


def test_the_peers_end() -> None:
    async def work() -> None:
        async with half() as (ours, peer):
            peer.send(b'{"last":1}')
            peer.close()
            assert await ours.recv() == ({"last": 1}, [])
            assert await ours.recv() is None
            assert await ours.recv() is None
            with pytest.raises(Unavailable, match="cannot talk over the link"):
                await ours.send({})
        assert ours.closed
        assert await ours.recv() is None
        with pytest.raises(Unavailable):
            await ours.send({})
        ours.close()  # once more is no error

    run(work())


def test_shutdown_wakes_a_reader() -> None:
    async def work() -> None:
        async with pair() as (ours, _):
            reading = asyncio.ensure_future(ours.recv())
            await asyncio.sleep(0)
            ours.shutdown()
            assert await reading is None

    run(work())


def test_close_wakes_who_waits_to_send() -> None:
    """A peer that reads no more, and is then given up: nobody may wait for it for ever."""

    async def work() -> None:
        async with half() as (ours, peer):
            sending = [asyncio.ensure_future(flood(ours)) for _ in range(3)]
            reading = asyncio.ensure_future(ours.recv())
            await full(peer)
            assert not any(task.done() for task in sending)
            ours.close()
            ends = await asyncio.gather(*sending, return_exceptions=True)
            assert [type(end) for end in ends] == [Unavailable] * 3
            assert await reading is None

    run(work())


async def flood(ours: Link) -> None:
    while True:
        await ours.send({"x": "y" * 50_000})


async def full(peer: socket.socket) -> None:
    """Until the kernel takes no more for this peer."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert peer.recv(1, socket.MSG_PEEK)


def test_many_senders_and_a_slow_reader() -> None:
    """Messages stay whole and in each sender's order."""

    async def work() -> None:
        async with pair() as (ours, theirs):

            async def send(who: int) -> None:
                for number in range(30):
                    await ours.send({"who": who, "number": number, "x": "y" * 20_000})

            sending = [asyncio.ensure_future(send(who)) for who in range(4)]
            heard: dict[int, list[int]] = {who: [] for who in range(4)}
            for _ in range(4 * 30):
                received = await theirs.recv()
                assert received is not None
                heard[received[0]["who"]].append(received[0]["number"])
            await asyncio.gather(*sending)
            assert list(heard.values()) == [list(range(30))] * 4

    run(work())


@pytest.mark.usefixtures("descriptors")
def test_a_cancelled_reader_loses_no_message() -> None:
    async def work() -> None:
        async with half() as (ours, peer):
            reading = asyncio.ensure_future(ours.recv())
            await asyncio.sleep(0)
            reading.cancel()
            peer.send(b'{"kept":1}')
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            assert await ours.recv() == ({"kept": 1}, [])

    run(work())


# --- hello ----------------------------------------------------------------------------------------


def test_a_hello_agrees_with_itself() -> None:
    hello = json.loads(json.dumps(link.hello()))
    assert link.agree(hello) == link.VERSION
    assert hello["program"].startswith("joblet ")


@pytest.mark.parametrize(
    ("newest", "oldest", "version"),
    [
        (link.VERSION + 1, link.OLDEST, link.VERSION),
        (link.VERSION + 9, link.VERSION, link.VERSION),
        (link.OLDEST, 0, link.OLDEST),
        (link.VERSION, -3, link.VERSION),
    ],
)
def test_another_release_that_can_be_spoken_with(newest: int, oldest: int, version: int) -> None:
    assert link.agree({"hello": newest, "oldest": oldest}) == version


@pytest.mark.parametrize(
    ("newest", "oldest"),
    [
        (link.OLDEST - 1, 0),
        (link.VERSION + 5, link.VERSION + 1),
        (link.VERSION, link.VERSION + 1),
        (-1, -5),
        (2**70, 2**69),
    ],
)
def test_another_release_that_cannot(newest: int, oldest: int) -> None:
    with pytest.raises(errors.FailedPrecondition, match="speaks versions") as info:
        link.agree({"hello": newest, "oldest": oldest, "program": "joblet 0"})
    assert "restart" in info.value.hint


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"hello": 1},
        {"oldest": 1},
        {"hello": "1", "oldest": 1},
        {"hello": 1, "oldest": None},
        {"hello": True, "oldest": 1},
        {"hello": 1.0, "oldest": 1},
        {"hello": [1], "oldest": 1},
        {"id": 1, "verb": "list"},
    ],
)
def test_no_hello(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="no hello"):
        link.agree(message)


# --- errors and fields ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.UNAUTHENTICATED])
def test_errors_arrive_as_they_were(code: Code) -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and c is not JobletError]
    cls = next(c for c in classes if issubclass(c, JobletError) and c.code is code)
    sent = cls("do it", "it is not so", hint="do that")
    received = link.error_from(json.loads(json.dumps(link.error_message(sent))))
    assert type(received) is cls
    assert (received.what, received.why, received.hint) == ("do it", "it is not so", "do that")


@settings(max_examples=100, deadline=None)
@given(values | st.dictionaries(st.sampled_from(["code", "what", "why", "hint"]), values))
def test_any_error(message: Any) -> None:
    assert isinstance(link.error_from(message), JobletError)


def test_fields_of_a_request() -> None:
    pattern = re.compile("[a-z]+")
    assert link.text({"a": "abc"}, "a", pattern) == "abc"
    assert link.number({"n": 5}, "n", 5, 5) == 5
    for value in (None, 1, "", "ABC", "abc\n", ["abc"], "x" * 10_000 + "!"):
        with pytest.raises(InvalidArgument, match="a is ") as info:
            link.text({"a": value}, "a", pattern)
        assert len(str(info.value)) < 200
    for number in (None, "5", 5.0, True, [5], 4, 7, -(10**4000)):
        with pytest.raises(InvalidArgument, match="n is ") as info:
            link.number({"n": number}, "n", 5, 6)
        assert len(str(info.value)) < 200


def test_a_send_that_the_kernel_refuses() -> None:
    async def work() -> None:
        async with pair() as (ours, _):
            with pytest.raises(Unavailable) as info:
                await ours.send({}, [99_999])
            assert os.strerror(errno.EBADF) in info.value.why

    run(work())
