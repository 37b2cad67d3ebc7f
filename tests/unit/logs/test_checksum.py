# SPDX-License-Identifier: MIT
"""The sums are zlib's, whichever library computes them."""

import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblet.server.logs import checksum

LONG = bytes(range(256)) * 64


@pytest.mark.parametrize("library", ["libdeflate.so.0", "libnowhere.so.7"])
def test_sums_are_zlibs(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum, "_fast", checksum._library(library))
    _compare(lambda data: data)
    _compare(lambda data: memoryview(bytearray(data)))
    _compare(memoryview)
    _compare(lambda data: memoryview(bytearray(b"xyz" + data + b"xyz"))[3:-3])


def _compare(view: Callable[[bytes], bytes | memoryview]) -> None:
    @given(st.binary(max_size=64), st.integers(0, 2**32 - 1), st.booleans())
    def same(data: bytes, start: int, is_long: bool) -> None:
        data = LONG + data if is_long else data
        assert checksum.crc32(view(data), start) == zlib.crc32(data, start)

    same()


def test_a_library_that_is_not_there() -> None:
    assert checksum._library("libnowhere.so.7") is None
    assert checksum._library("libc.so.6") is None  # has no such function
