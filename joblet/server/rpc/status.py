# SPDX-License-Identifier: MIT
"""Errors to gRPC status: the one place where it happens.

Clients of the contract show `details` to people and retry UNAVAILABLE and INTERNAL; so what would
fail the same way again never gets one of these.
"""

import urllib.parse
from collections.abc import Mapping
from typing import Final

import grpc

from joblet.errors import Code, JobletError

STATUS: Final[Mapping[Code, grpc.StatusCode]] = {
    Code.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Code.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.ABORTED: grpc.StatusCode.ABORTED,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
}

# bytes; details travel in a header, percent-encoded, and a client takes 8 KiB of headers
MAX_DETAILS: Final = 4096


def of(error: JobletError) -> tuple[grpc.StatusCode, str]:
    text = error.text[:MAX_DETAILS]
    if not text.isascii() or not text.isprintable() or "%" in text:
        left = MAX_DETAILS
        for place, char in enumerate(text):
            # as gRPC does it, or a little more
            left -= len(urllib.parse.quote(char, safe=" "))
            if left < 0:
                text = text[:place]
                break
    return STATUS[error.code], text
