# SPDX-License-Identifier: MIT
"""The reading of podman's k8s-file log, with which its output is compared."""

import pytest

from tests.bench.guest.errors import Broken
from tests.bench.guest.keepers import k8s_contents

TIME = b"2024-05-06T07:08:09.123456789+00:00"


def test_pieces_of_a_line_are_joined() -> None:
    log = [
        TIME + b" stdout F one two\n",
        TIME + b" stdout P thr\n",
        TIME + b" stdout F ee\n",
        TIME + b" stdout F \n",
    ]
    assert b"".join(k8s_contents(iter(log))) == b"one two\nthree\n\n"


def test_what_is_no_log_is_refused() -> None:
    with pytest.raises(Broken, match="no line"):
        list(k8s_contents(iter([b"one two three four\n"])))
