# SPDX-License-Identifier: MIT
"""A launch that failed, in words: one line that no terminal obeys, whatever files are called."""

import errno
from pathlib import Path

import pytest

from joblet.launch.failure import MAX_TEXT, Failed, sentence, why_not_executed


@pytest.mark.parametrize(
    ("step", "number", "subject", "text"),
    [
        ("exec", errno.EACCES, "/work/x", "cannot start the command: /work/x: Permission denied"),
        ("uid_map", errno.EPERM, "", "cannot prepare the job: uid_map: Operation not permitted"),
        ("fork", 0, "", "cannot start a process for the command: an unknown fault"),
        ("exec", 0, "a\x1b[2J\nb", "cannot start the command: a?[2J?b: an unknown fault"),
    ],
)
def test_a_sentence(step: str, number: int, subject: str, text: str) -> None:
    assert sentence(step, number, subject) == Failed(step, number, text).detail == text


def test_what_a_script_calls_its_interpreter_is_no_order(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"#! /nowhere/\x1b]0;mine\x07\xff -x\ntrue\n")
    why = why_not_executed(str(script), errno.ENOENT)
    text = sentence("exec", errno.ENOENT, str(script), why)
    assert text.endswith("its interpreter /nowhere/?]0;mine?\ufffd is not there")
    assert text.isprintable()
    assert len(sentence("exec", 0, "\u20ac" * 9999, "\u20ac" * 9999).encode()) <= MAX_TEXT
