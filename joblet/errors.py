# SPDX-License-Identifier: MIT
"""The errors of Joblet: a stable code, "cannot X: reason", and what to do next. No I/O.

    JobletError
    ├── InvalidArgument      the request is wrong and will stay wrong
    ├── NotFound             no such job, node, …
    ├── AlreadyExists
    ├── FailedPrecondition   right request, wrong moment (stop of a finished job)
    │   └── NewerRelease     what is there was written by a newer Joblet
    ├── PermissionDenied     known client, not allowed
    ├── Unauthenticated      unknown client
    ├── ResourceExhausted    a bound of ours or of the machine is reached
    ├── Aborted              broken off by us: go on from where it stood, not from the beginning
    ├── Unavailable          try again later (init mode restarting, D-Bus away)
    ├── Unimplemented        part of the contract, not served
    └── Internal             a bug of ours, or a broken machine

A subclass exists only where a caller decides by it. Codes are mapped to gRPC status in
server/rpc/status.py and to exit codes in __main__.py, nowhere else.
"""

import enum
from typing import ClassVar


def printable(text: str) -> str:
    """A text from outside as it can stand in a message: nothing in it that a terminal obeys."""
    return "".join(c if c.isprintable() else "?" for c in text)


class Code(enum.StrEnum):
    """Names of gRPC's status codes, without importing grpc."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    ABORTED = "ABORTED"
    UNAVAILABLE = "UNAVAILABLE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


class JobletError(Exception):
    """cannot {what}: {why}. `hint` says what to do next and may be empty.

    str() is one line without the hint, for logs; `text` carries the hint, for people.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, what: str, why: str, *, hint: str = "") -> None:
        super().__init__(what, why)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return f"cannot {self.what}: {self.why}"

    @property
    def text(self) -> str:
        return f"{self}; {self.hint}" if self.hint else str(self)


class InvalidArgument(JobletError):
    code = Code.INVALID_ARGUMENT


class NotFound(JobletError):
    code = Code.NOT_FOUND


class AlreadyExists(JobletError):
    code = Code.ALREADY_EXISTS


class FailedPrecondition(JobletError):
    code = Code.FAILED_PRECONDITION


class NewerRelease(FailedPrecondition):
    """What is there was written by a newer Joblet: nothing helps but that one."""


class PermissionDenied(JobletError):
    code = Code.PERMISSION_DENIED


class Unauthenticated(JobletError):
    code = Code.UNAUTHENTICATED


class ResourceExhausted(JobletError):
    code = Code.RESOURCE_EXHAUSTED


class Aborted(JobletError):
    code = Code.ABORTED


class Unavailable(JobletError):
    code = Code.UNAVAILABLE


class Unimplemented(JobletError):
    code = Code.UNIMPLEMENTED


class Internal(JobletError):
    code = Code.INTERNAL
