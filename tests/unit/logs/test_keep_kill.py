# SPDX-License-Identifier: MIT
"""Killed at every step of sealing and of retention: nothing is lost but what expired, and that is
told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from joblet.server.logs import ERR, OUT, Chunk, Gap, GapKind
from tests.unit.logs.support import opened, read_all, stream_of

DRIVER = Path(__file__).with_name("keep_driver.py")
# Of the first two segments: two frames each.
SEAL_STEPS = ["frame", "frame", "written", "sums", "renamed", "synced", "removed", "done", "frame"]
EXPIRE_STEPS = ["entered", "removed", "removed"]


def _drive(path: Path, *arguments: str, status: int) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "dev", str(DRIVER), str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    path = tmp_path_factory.mktemp("made") / "log"
    return path, json.loads(_drive(path, "make", status=0))


def _said(stream: int) -> bytes:
    return b"".join(b"%d:%07d\n" % (stream, number) for number in range(100_000))


@pytest.mark.parametrize("number", range(1, len(SEAL_STEPS) + 1))
def test_killed_while_it_seals(
    tmp_path: Path, made: tuple[Path, dict[str, int]], number: int
) -> None:
    path = Path(shutil.copytree(made[0], tmp_path / "log"))
    steps = _drive(path, "seal", str(number), status=-9).split()
    assert [step.removeprefix("seal:") for step in steps] == SEAL_STEPS[:number]
    for _ in range(2):  # a server that opens it, and the next one
        with opened(path) as core:
            items = read_all(core)
            assert not any(isinstance(item, Gap) for item in items)
            assert all(stream_of(items, stream) == _said(stream) for stream in (OUT, ERR))
        names = [file.name for file in path.iterdir()]
        assert not [name for name in names if ".new" in name]
        data = {name.removesuffix(".zst") for name in names if not name.endswith(".sums")}
        assert len(data) == len(names) // 2 + 1  # each segment once, with its sums; the index
    _drive(path, "seal", "0", status=0)
    assert not list(path.glob("out.*[0-9]"))
    with opened(path) as core:
        assert stream_of(read_all(core), OUT) == _said(OUT)
    shown = b"".join(
        subprocess.run(["zstdcat", file], capture_output=True, check=True, timeout=50).stdout
        for file in sorted(path.glob("out.*.zst"))
    )
    assert shown == _said(OUT)


@pytest.mark.parametrize("number", range(1, len(EXPIRE_STEPS) + 1))
def test_killed_while_it_removes(
    tmp_path: Path, made: tuple[Path, dict[str, int]], number: int
) -> None:
    path = Path(shutil.copytree(made[0], tmp_path / "log"))
    steps = _drive(path, "expire", str(number), status=-9).split()
    assert [step.removeprefix("expire:") for step in steps] == EXPIRE_STEPS[:number]
    for _ in range(2):
        with opened(path) as core:
            begin = core.segments[OUT].expired
            assert begin == core.segments[OUT].begin > 0
            items = read_all(core)
        gap = items[0]
        assert isinstance(gap, Gap)
        assert (gap.offset, gap.kind, gap.bytes, gap.stream) == (0, GapKind.EXPIRED, begin, OUT)
        assert all(isinstance(item, Chunk) for item in items[1:])
        assert stream_of(items, OUT) == _said(OUT)[begin:]
        assert stream_of(items, ERR) == _said(ERR)
    _drive(path, "expire", "0", status=0)
    with opened(path) as core:
        assert all(segments.expired == 900_000 for segments in core.segments.values())
