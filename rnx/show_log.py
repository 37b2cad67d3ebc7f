# SPDX-License-Identifier: MIT
"""Shows a job's log: raw bytes, lines with their times, or an object a chunk.

What is missing from it is said on stderr, when all that comes before it is written.
"""

import base64
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from rnx.follow import Piece
from rnx.formats import rfc3339, rfc3339_us
from rnx.output import Environment
from rnx.stamps import Stamps

STDERR = 2


def show(
    pieces: Iterable[Piece],
    env: Environment,
    *,
    as_json: bool = False,
    split: bool = False,
    timestamps: bool = False,
) -> None:
    """Until the pieces end. `split` sends what the job wrote to stderr there.

    Raises BrokenPipeError when nobody reads stdout any more.
    """
    stamps = _Stamped(env, split=split) if timestamps and not as_json else None
    try:
        for piece in pieces:
            if piece.gap:
                if stamps is not None:
                    stamps.close(piece.stream)
                env.note(f"rnx: {missing(piece)}")
            if as_json:
                for part in _arrived(piece) if timestamps else (piece,):
                    env.print_json(chunk_json(part, env, precise=timestamps), indent=None)
            elif stamps is not None:
                stamps.add(piece)
            else:
                _put(env, piece.data, to_stderr=split and piece.stream == STDERR)
    finally:
        if stamps is not None:
            stamps.close()  # what has come is shown, whatever has ended it


class _Stamped:
    """Lines with their times, each stream's to where it goes."""

    def __init__(self, env: Environment, *, split: bool) -> None:
        self._env = env
        self._outputs = {False: Stamps(), True: Stamps()} if split else {False: Stamps()}

    def add(self, piece: Piece) -> None:
        to_stderr = piece.stream == STDERR and True in self._outputs
        _put(self._env, self._outputs[to_stderr].add(piece), to_stderr=to_stderr)

    def close(self, stream: int = 0) -> None:
        """Shows what is held back of a stream, 0: of all."""
        for to_stderr, stamps in self._outputs.items():
            _put(self._env, stamps.close(stream), to_stderr=to_stderr)


def _put(env: Environment, data: bytes, *, to_stderr: bool) -> None:
    if not data:
        return
    if to_stderr:
        env.write_err(data)
    else:
        env.write(data)


def _arrived(piece: Piece) -> Iterator[Piece]:
    """The piece in parts, each of which arrived at one time."""
    marks = piece.arrivals or ((0, piece.time_us),)
    behind = [at for at, _ in marks[1:]] + [len(piece.data)]
    for (at, time_us), end in zip(marks, behind, strict=True):
        yield dataclasses.replace(
            piece,
            data=piece.data[at:end],
            end=piece.end - len(piece.data) + end,
            time_us=time_us,
            arrivals=(),
        )


def missing(piece: Piece) -> str:
    """A gap, for people."""
    unit = "lines" if piece.lines else "bytes"
    known = piece.lines or piece.missing
    count = f"{known} {unit}" if known > 0 else f"an unknown number of {unit}"
    return f"{count} of the log are missing here ({piece.gap})"


def chunk_json(piece: Piece, env: Environment, *, precise: bool = False) -> dict[str, Any]:
    """`data` and `timestamp` as published. Bytes that are not UTF-8 would not survive in `data`:
    then `data_base64` has them. The time is the chunk's arrival at the server if it says so, to
    the second, or `precise` to the microsecond."""
    if precise and piece.time_us:
        when = rfc3339_us(piece.time_us)
    else:
        when = rfc3339(piece.time_us / 1e6 if piece.time_us else env.now())
    shown: dict[str, Any] = {"data": "", "timestamp": when}
    try:
        shown["data"] = piece.data.decode()
    except UnicodeDecodeError:
        shown["data"] = piece.data.decode(errors="replace")
        shown["data_base64"] = base64.b64encode(piece.data).decode()
    if piece.cursor:
        shown["cursor"] = piece.cursor
    else:
        shown["offset_end"] = piece.end
    if piece.stream:
        shown["stream"] = piece.stream
    if piece.gap:
        shown["gap"] = {"kind": piece.gap, "bytes": piece.missing}
        if piece.lines:
            shown["gap"]["lines"] = piece.lines
    return shown
