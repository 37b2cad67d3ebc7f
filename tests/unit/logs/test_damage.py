# SPDX-License-Identifier: MIT
"""Bytes flipped, files cut or gone, anywhere in what is stored: no reader gets a wrong byte, what
is missing is counted, and the rest is read."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblet.server.logs import ERR, OUT, Chunk, Gap, GapKind, blocks
from joblet.server.logs import format as fmt
from joblet.server.logs.core import LogCore
from tests.unit.logs.support import BOOT, OTHER_BOOT, nothing, opened, read_all, say

ROTATION = 100
NAMES = {OUT: "out", ERR: "err"}
EXPIRED = 240  # bytes of stdout that are gone by then, if anything is


def _bytes(stream: int, position: int, length: int) -> bytes:
    return bytes((stream * 31 + p * 7 + p // 251) % 256 for p in range(position, position + length))


def _make(path: Path, *, seal: bool, expire: bool) -> int:
    """A log with 10 segments of each stream, blocks of 30 bytes; how much it says."""
    with opened(path, rotation=ROTATION) as core:
        core.expect(frozenset({OUT, ERR}))
        for _ in range(40):
            for stream in fmt.STREAMS:
                say(core, stream, _bytes(stream, core.written[stream], 30))
                core.store()
        for stream in fmt.STREAMS:
            core.end(stream)
        core.store()
        if expire:
            core.segments[OUT].expire(EXPIRED, 1, nothing)
            core.segments[OUT].expire(EXPIRED + 120, 2, nothing)
        if seal:
            for segments in core.segments.values():
                for number, segment in enumerate(segments.stored()):
                    if number % 3:
                        segments.seal(segment.start, pause=lambda: None, step=nothing)
                        segments.publish(segment.start, nothing)
        return int(core.size)


def _log_bytes(core: LogCore) -> Iterator[tuple[int, bytes]]:
    """What stands at each offset that is not in a gap; what is not right with it fails."""
    offset = 0
    for item in read_all(core):
        assert item.offset == offset
        offset = item.offset_end
        if isinstance(item, Gap):
            assert item.kind in (GapKind.LOST, GapKind.EXPIRED)
            assert item.bytes == item.offset_end - item.offset
        else:
            yield item.offset, item.data
    assert offset == core.size


def _expected(offset: int, length: int) -> bytes:
    """They speak in turn, 30 bytes each."""
    found = bytearray()
    for at in range(offset, offset + length):
        turn, within = divmod(at, 30)
        found += _bytes(ERR if turn % 2 else OUT, turn // 2 * 30 + within, 1)
    return bytes(found)


def _readable(path: Path, stream: int) -> set[int]:
    """The positions of a stream whose block and its record are as they were written, looked at
    without the code that reads them."""
    found: set[int] = set()
    for sums in path.glob(f"{NAMES[stream]}.*.sums"):
        raw = sums.read_bytes()
        data = sums.with_suffix("")
        if not data.exists():
            continue
        contents = blocks.compressed if data.suffix == ".zst" else blocks.plain
        with data.open("rb") as file:
            for number in range(len(raw) // blocks.SUM_BYTES):
                block = blocks.decode(raw, number * blocks.SUM_BYTES, number)
                if block is not None and contents(file.fileno(), block) is not None:
                    found |= set(range(block.position, block.end))
    return found


FILES = ("data", "sums", "expired")
DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(("flip", "flip", "flip", "cut", "remove")),
        st.sampled_from((OUT, ERR)),
        st.sampled_from(FILES),
        st.integers(0, 19),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=6,
)


def _hit(path: Path, how: str, file: Path, where: float, mask: int) -> None:
    if not file.exists():
        return
    raw = bytearray(file.read_bytes())
    at = int(where * len(raw))
    if how == "remove":
        file.unlink()
    elif how == "cut":
        file.write_bytes(raw[:at])
    elif raw:
        raw[at] ^= mask
        file.write_bytes(raw)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each, to be copied."""
    path = tmp_path_factory.mktemp("logs")
    for seal in (False, True):
        for expire in (False, True):
            _make(path / f"{seal}{expire}", seal=seal, expire=expire)
    return path


@settings(max_examples=150, deadline=None)
@given(seal=st.booleans(), expire=st.booleans(), rebooted=st.booleans(), damages=DAMAGE)
def test_any_damage_to_what_is_stored(
    logs: Path,
    seal: bool,
    expire: bool,
    rebooted: bool,
    damages: list[tuple[str, int, str, int, float, int]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(shutil.copytree(logs / f"{seal}{expire}", Path(name) / "log"))
        size = 40 * 2 * 30
        cut_sums = set()
        for how, stream, what, number, where, mask in damages:
            files = sorted(path.glob(f"{NAMES[stream]}.[0-9]*"))
            data = [each for each in files if each.suffix != ".sums"]
            if not data:
                continue
            file = data[number % len(data)]
            if what == "sums":
                file = file.with_name(f"{file.name}.sums")
                if how != "flip":
                    cut_sums.add(file)
            elif what == "expired":
                file = path / f"{NAMES[stream]}.expired"
            # A killed server leaves bytes without a checksum at the end: nobody can tell these.
            elif file.with_name(f"{file.name}.sums") in cut_sums:
                continue
            _hit(path, how, file, where, mask)
        readable = {stream: _readable(path, stream) for stream in fmt.STREAMS}
        boot = OTHER_BOOT if rebooted else BOOT
        with opened(path, boot=boot, rotation=ROTATION) as core:
            assert core.size == size
            got: set[int] = set()
            for offset, data_there in _log_bytes(core):
                assert data_there == _expected(offset, len(data_there))
                got |= set(range(offset, offset + len(data_there)))
        for stream in fmt.STREAMS:
            wanted = {
                p // 30 * 60 + p % 30 + (30 if stream == ERR else 0) for p in readable[stream]
            }
            assert wanted <= got, (stream, sorted(wanted - got)[:5])


@pytest.mark.parametrize("seal", [False, True])
def test_what_expired_is_one_gap_in_its_place(tmp_path: Path, seal: bool) -> None:
    path = tmp_path / "log"
    size = _make(path, seal=seal, expire=True)
    with opened(path) as core:
        gaps = [item for item in read_all(core) if isinstance(item, Gap)]
        assert {gap.kind for gap in gaps} == {GapKind.EXPIRED}
        assert sum(gap.bytes or 0 for gap in gaps) == EXPIRED + 120
        chunks = [item for item in read_all(core) if isinstance(item, Chunk)]
        assert sum(len(chunk.data) for chunk in chunks) == size - EXPIRED - 120
        # from within a gap, too
        first = read_all(core, 7)[0]
        assert isinstance(first, Gap)
        assert (first.offset, first.kind, first.stream) == (7, GapKind.EXPIRED, OUT)


def test_a_front_that_expired_is_one_gap(tmp_path: Path) -> None:
    path = tmp_path / "log"
    size = _make(path, seal=False, expire=False)
    with opened(path, rotation=ROTATION) as core:
        last = sum(
            segments.end - segments.stored()[-1].start for segments in core.segments.values()
        )
        assert core.expire(1) == size - last
        assert core.expire(1) == 0
        gap, *rest = read_all(core)
        assert isinstance(gap, Gap)
        assert (gap.offset, gap.kind, gap.stream) == (0, GapKind.EXPIRED, 0)
        assert gap.bytes == gap.offset_end
        assert not any(isinstance(item, Gap) for item in rest)
    with opened(path) as core:
        assert read_all(core)[0] == gap
