# SPDX-License-Identifier: MIT
"""What PID 1 says: the messages on `ctl` and the exit record. Pure; stdlib alone.

`ctl` is a SOCK_SEQPACKET socket, one JSON object a message, its type in "t":

    PID 1 -> holder   hello           version, streams; the FIFOs' read ends come with it, in that
    order
                      started         pid (the command, in the job's namespace), at_us, ran_us:
                                      how long ago that is, whatever becomes of the wall clock
                      launch-failed   step, errno, detail
                      exit            record (an ExitRecord)
    holder -> PID 1   stop            grace_us
                      time-out        after_us: ends this long after the command started (0: never)
                      acknowledge     the record is committed: PID 1 may go

The exit record is also the file `exit` in the job's directory, as one line of JSON. `rest` is
present only in its second version: the bytes of each stream that PID 1 left in `out.rest`,
`err.rest`.

Version N must understand N-1: an old PID 1 outlives an upgrade of the server. Unknown fields are
ignored.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

VERSION: Final = 1
OLDEST: Final = 1

MAX_MESSAGE: Final = 16384  # bytes; both sides read with this much room

HELLO: Final = "hello"
STARTED: Final = "started"
LAUNCH_FAILED: Final = "launch-failed"
EXIT: Final = "exit"
STOP: Final = "stop"
TIME_OUT: Final = "time-out"
ACKNOWLEDGE: Final = "acknowledge"

# names of the streams, in the order of their numbers on the wire (1, 2)
STREAMS: Final = ("out", "err")


class ProtocolError(ValueError):
    """A message or an exit record that cannot be understood."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a job ended, as its PID 1 saw it. Times are µs since the epoch, 0 where it did not
    happen.

    ended_by: what made it end: "" (by itself), "ctl" (a stop from the holder), "signal" (SIGTERM
    from
    outside: systemd's or an admin's), "timeout", "oom", "launch" (step and errno say where).
    code and signal are the command's own: exactly one is meaningful, both 0 if it never ran.
    usage: cpu_usec, memory_peak, memory_limit (at the end), io_read, io_write (bytes); oom_own: the
    job's own memory limit did it.
    """

    job: str
    ended_by: str = ""
    code: int = 0
    signal: int = 0
    step: str = ""
    errno: int = 0
    detail: str = ""
    started_us: int = 0
    ended_us: int = 0
    oom_own: bool = False
    usage: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rest: Mapping[str, int] | None = None
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        record = dataclasses.asdict(self)
        if self.rest is None:
            del record["rest"]
        return record

    @classmethod
    def from_json(cls, record: Any) -> "ExitRecord":
        """Raises ProtocolError."""
        if not isinstance(record, dict):
            raise ProtocolError("an exit record is an object")
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name not in record:
                continue
            value = record[field.name]
            if field.name in ("usage", "rest"):
                good = isinstance(value, dict) and all(
                    isinstance(k, str) and type(v) is int for k, v in value.items()
                )
            else:
                good = type(value) is _EXIT_TYPES[field.name]
            if not good:
                raise ProtocolError(f"exit record: {field.name} is {value!r:.80}")
            values[field.name] = value
        if "job" not in values:
            raise ProtocolError("exit record: no job")
        return cls(**values)

    def to_bytes(self) -> bytes:
        return json.dumps(self.to_json(), separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "ExitRecord":
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            raise ProtocolError("exit record: not JSON") from None
        return cls.from_json(record)


_EXIT_TYPES: Final[Mapping[str, type]] = {
    "job": str,
    "ended_by": str,
    "code": int,
    "signal": int,
    "step": str,
    "errno": int,
    "detail": str,
    "started_us": int,
    "ended_us": int,
    "oom_own": bool,
    "version": int,
}


def encode(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"t": kind, **fields}, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise ProtocolError(f"{kind}: {len(data)} bytes are more than {MAX_MESSAGE}")
    return data


def decode(data: bytes) -> tuple[str, dict[str, Any]]:
    """(type, fields). Raises ProtocolError."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("t"), str):
        raise ProtocolError("no message type")
    return message.pop("t"), message


def number(fields: Mapping[str, Any], name: str) -> int:
    """A non-negative number of a message. Raises ProtocolError."""
    value = fields.get(name)
    if type(value) is not int or value < 0:
        raise ProtocolError(f"{name} is {value!r:.80}")
    return value
