# SPDX-License-Identifier: MIT
"""Secrets are covered for every reader, wherever writes, reads and offsets cut them."""

import asyncio
import re
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.server.logs import ERR, OUT, Chunk, mask
from joblet.server.logs.core import LogCore
from joblet.server.logs.view import HELD, LogView, Place
from tests.unit.logs.support import (
    Pipe,
    by_offset,
    collect,
    opened,
    read_all,
    run,
    running,
    say,
    stream_of,
    until,
    waiting,
)

SECRETS = st.lists(st.text("ab", min_size=4, max_size=7), min_size=1, max_size=3)
# what a job writes: often parts of secrets
WRITES = st.lists(
    st.tuples(st.sampled_from([OUT, ERR]), st.text("ab-", min_size=1, max_size=9)), max_size=12
)


def expected(text: bytes, secrets: list[str]) -> bytes:
    """A text with every secret in it covered."""
    shown = bytearray(text)
    for secret in secrets:
        for found in re.finditer(f"(?={secret})".encode(), text):
            shown[found.start() : found.start() + len(secret)] = b"*" * len(secret)
    return bytes(shown)


def masked(core: LogCore, secrets: list[str]) -> LogView:
    view = LogView(core)
    view.mask = mask.of(secrets)
    return view


def read_on(view: LogView, place: Place, into: list[Chunk], max_bytes: int) -> Place:
    """What a follower gets now."""
    while (found := view.read(place, max_bytes)) is not None and found is not HELD:
        item, place = found
        assert isinstance(item, Chunk)
        into.append(item)
    return place


@settings(max_examples=300, deadline=None)
@given(secrets=SECRETS, writes=WRITES, max_bytes=st.integers(1, 12))
def test_no_reader_sees_a_secret(
    secrets: list[str], writes: list[tuple[int, str]], max_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as directory, opened(Path(directory) / "log") as core:
        view = masked(core, secrets)
        core.expect(frozenset({OUT, ERR}))
        said = {OUT: b"", ERR: b""}
        live: list[Chunk] = []
        place = Place(0)
        for stream, text in writes:
            said[stream] += text.encode()
            say(core, stream, text.encode())
            place = read_on(view, place, live, max_bytes)
            # held back is only what may become a secret, and only while nothing stands behind it
            behind = core.size - place.offset
            assert behind < max(map(len, secrets))
            tail = said[stream][len(said[stream]) - behind :].decode()
            assert not behind or any(tail in secret[:-1] for secret in secrets)
        for stream in (OUT, ERR):
            core.end(stream)
        read_on(view, place, live, max_bytes)
        shown = {stream: expected(text, secrets) for stream, text in said.items()}
        whole = by_offset(read_all(view))
        assert whole.keys() == by_offset(live).keys()  # nothing is missing, nothing comes twice
        for stream in (OUT, ERR):
            assert stream_of(read_all(view), stream) == shown[stream]
            assert stream_of(read_all(view, max_bytes=max_bytes), stream) == shown[stream]
            seen = stream_of(live, stream)
            assert len(seen) == len(shown[stream])
            for one, right, byte in zip(seen, shown[stream], said[stream], strict=True):
                assert one == right or (one == ord("*") and right == byte)
            if all(other == stream for other, _ in writes):
                assert seen == shown[stream]
        # nor does one who begins in the middle of a secret
        for offset in range(core.size):
            part = by_offset(read_all(view, offset, max_bytes))
            assert part == {at: byte for at, byte in whole.items() if at >= offset}


def test_a_follower_waits_for_what_a_secret_becomes(tmp_path: Path) -> None:
    async def main() -> None:
        with Pipe() as out:
            async with running(tmp_path) as store:
                log = await store.open("job")
                log.hide(["", "abc", "password"])  # the first two are too short to be covered
                await log.expect({OUT, ERR})
                log.attach(OUT, out.read_end())
                follower = log.follow()
                out.write(b"abc pass")
                first = await follower.read()
                assert isinstance(first, Chunk)
                assert (first.data, follower.offset) == (b"abc ", 4)
                # one that does not follow ends there, and whoever reads on from it misses nothing
                assert stream_of(await collect(log, follow=False), OUT) == b"abc "
                second = asyncio.create_task(follower.read())
                await waiting(log)
                out.write(b"age")
                assert (await second, follower.offset) != (None, 4)
                await until(log, 11)
                out.write(b" password, pass")
                await until(log, 26)
                out.hang_up()  # now it can become nothing any more
                await log.finish(ERR)
                assert stream_of(await collect(log), OUT) == b"abc passage ********, pass"
                await log.sync()
                (segment,) = (tmp_path / "job").glob("out.*[0-9]")
                assert segment.read_bytes() == b"abc passage password, pass"

    run(main)


def test_what_stands_behind_it_does_not_wait(tmp_path: Path) -> None:
    """Readers get past the beginning of a secret that goes on behind the other stream's words."""
    with opened(tmp_path / "log") as core:
        view = masked(core, ["password"])
        say(core, OUT, b"pass")
        assert view.read(Place(0), 100) is HELD
        say(core, ERR, b"warning")
        assert [item.data for item in read_all(view) if isinstance(item, Chunk)] == [
            b"****",
            b"warning",
        ]
        say(core, OUT, b"age")  # it was none: who reads now sees what it was
        assert stream_of(read_all(view), OUT) == b"passage"


def test_long_secrets_and_many_of_them(tmp_path: Path) -> None:
    secrets = ["x" * 32_000 + "y", *(f"secret-{n:04}" for n in range(300))]
    text = b"-".join([b"x" * 31_999, *(secret.encode() for secret in secrets), b"x" * 40_000])
    with opened(tmp_path / "log") as core:
        view = masked(core, secrets)
        for at in range(0, len(text), 10_007):
            say(core, OUT, text[at : at + 10_007])
        core.expect(frozenset({OUT}))
        core.end(OUT)
        covered = expected(text, secrets)
        assert stream_of(read_all(view), OUT) == covered
        assert stream_of(read_all(view, max_bytes=999), OUT) == covered


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=5), st.integers(1, 60)), max_size=6),
    SECRETS,
)
def test_what_repeats_itself(parts: list[tuple[str, int]], secrets: list[str]) -> None:
    text = "".join(part * times for part, times in parts).encode()
    made = mask.of(secrets)
    assert made is not None
    assert made.covered(b"", text, b"") == expected(text, secrets)


def test_zeros_do_not_cost_a_step_each() -> None:
    """A secret of zeros and a job that prints nothing else: minutes, once."""
    for secret in ("0000", "0" * 32_000, "01" * 16_000):
        made = mask.of([secret])
        assert made is not None
        assert made.covered(b"0", secret[:2].encode() * 400_000, b"") == b"*" * 800_000


def test_without_secrets_nothing_is_looked_at() -> None:
    assert mask.of([]) is None
    assert mask.of(["", "abc"]) is None
