# SPDX-License-Identifier: MIT
"""Shows a job's log: raw bytes, or an object a chunk. What is missing from it is said on stderr."""

import base64
from collections.abc import Iterable
from typing import Any

from rnx.follow import Piece
from rnx.formats import rfc3339
from rnx.output import Environment

STDERR = 2


def show(
    pieces: Iterable[Piece], env: Environment, *, as_json: bool = False, split: bool = False
) -> None:
    """Until the pieces end. `split` sends what the job wrote to stderr there.

    Raises BrokenPipeError when nobody reads stdout any more.
    """
    for piece in pieces:
        if piece.gap:
            env.note(f"rnx: {missing(piece)}")
        if as_json:
            env.print_json(chunk_json(piece, env), indent=None)
        elif split and piece.stream == STDERR:
            env.write_err(piece.data)
        else:
            env.write(piece.data)


def missing(piece: Piece) -> str:
    """A gap, for people."""
    count = f"{piece.missing} bytes" if piece.missing > 0 else "an unknown number of bytes"
    return f"{count} of the log are missing here ({piece.gap})"


def chunk_json(piece: Piece, env: Environment) -> dict[str, Any]:
    """`data` and `timestamp` as published. Bytes that are not UTF-8 would not survive in `data`:
    then `data_base64` has them. The time is the chunk's arrival at the server if it says so."""
    when = piece.time_us / 1e6 if piece.time_us else env.now()
    shown: dict[str, Any] = {"data": "", "timestamp": rfc3339(when)}
    try:
        shown["data"] = piece.data.decode()
    except UnicodeDecodeError:
        shown["data"] = piece.data.decode(errors="replace")
        shown["data_base64"] = base64.b64encode(piece.data).decode()
    shown["offset_end"] = piece.end
    if piece.stream:
        shown["stream"] = piece.stream
    if piece.gap:
        shown["gap"] = {"kind": piece.gap, "bytes": piece.missing}
    return shown
