# SPDX-License-Identifier: MIT
"""What README and tutorial tell a reader to type works, and prints what they say.

In an indented block a line behind `$ ` is typed by somebody in group rnx, one behind `# ` by root;
the lines below are what comes of it, in this order: `…` stands for anything, other lines may lie
between. ID is the latest job. `# exits with N` at a command's end is its exit code, else it is 0.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.machine.client import Rnx, wait_served

if TYPE_CHECKING:
    from tests.machine.rig import Cache, Nspawn

TREE = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/tutorial.md")
# It makes the reader a member of the group, which holds at the next login.
JOIN = "usermod -a -G rnx alice"
READER = "alice"
DEMO_S = 240  # of which most is a package built first, when the tree has changed
EXIT = re.compile(r"\s+# exits with (\d+)$")


@dataclasses.dataclass(frozen=True)
class Typed:
    line: int
    root: bool
    command: str
    code: int
    shown: tuple[str, ...]


def typed(page: str) -> list[Typed]:
    """The commands of a page."""
    found: list[Typed] = []
    for number, line in enumerate((TREE / page).read_text().splitlines(), 1):
        if not line.startswith("    "):
            continue
        text = line[4:]
        if text.startswith(("$ ", "# ")):
            end = EXIT.search(text)
            command = EXIT.sub("", text[2:])
            found.append(Typed(number, text[0] == "#", command, int(end[1]) if end else 0, ()))
        elif found and found[-1].line + len(found[-1].shown) + 1 == number:
            found[-1] = dataclasses.replace(found[-1], shown=(*found[-1].shown, text))
    return found


def follows(shown: tuple[str, ...], lines: list[str]) -> bool:
    """Whether what is shown is printed in this order."""
    rest = iter(lines)
    patterns = [".*".join(re.escape(part) for part in line.split("…")) for line in shown]
    return all(any(re.fullmatch(r"\s*" + p, line) for line in rest) for p in patterns)


def test_what_is_shown_must_be_printed() -> None:
    assert follows(("a … c", "d"), ["x", "  a b c", "", "d"])
    assert not follows(("d", "a"), ["a", "d"])
    assert not follows(("a",), ["ab"])


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_a_page(fresh_machine: Nspawn, page: str) -> None:
    wait_served(fresh_machine)
    fresh_machine.run(["useradd", "--create-home", READER]).check()
    fresh_machine.run(JOIN).check()
    rnx, commands = Rnx(fresh_machine), typed(page)
    assert commands, f"{page} has no command"
    for each in commands:
        command = each.command
        if re.search(r"\bID\b", command):
            command = re.sub(r"\bID\b", str(rnx.json("list")[-1]["uuid"]), command)
        user = None if each.root else READER
        result = fresh_machine.run(command, user=user, cwd="/", timeout=60)
        where = f"{page}:{each.line}: {each.command}\n{result.text}\n{result.errors}"
        assert result.code == each.code, where
        lines = [*result.text.splitlines(), *result.errors.splitlines()]
        assert follows(each.shown, lines), f"{where}\nnot printed: {each.shown}"
        if each.root:  # it may have restarted the server; a person does not type that fast
            wait_served(fresh_machine)


def test_the_demo(cache: Cache) -> None:
    """The README's first command, and the reader's own command line with its exit code."""
    environ = {**os.environ, "JOBLET_CACHE": str(cache.root)}

    def demo(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            words,
            cwd=TREE,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEMO_S,
            check=False,
        )
        return done.returncode, done.stdout.decode()

    code, text = demo("make", "demo")
    assert code == 0, text
    assert "hello from job-" in text, text
    assert "Status: RUNNING" in text, text
    code, text = demo("tools/demo.sh", "echo $((6 * 7)); exit 3")
    assert code == 3, text
    assert "42" in text, text
    code, text = demo("make", "demo", "JOB=echo $((6 * 7)); exit 3")
    assert code == 2, text  # make's own, for any failure
    assert "42" in text, text
