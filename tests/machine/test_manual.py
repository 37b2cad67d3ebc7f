# SPDX-License-Identifier: MIT
"""What is installed for people: man pages, completion, and the fields that they describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from joblet.systemd import messages
from tests.machine.client import Rnx
from tests.machine.rig import Nspawn, eventually

PAGES = Path(__file__).resolve().parents[2] / "docs" / "man"

# What bash does at TAB, with the script where bash-completion looks for it.
AT_TAB = """
source /usr/share/bash-completion/completions/rnx
COMP_WORDS=({words} '')
COMP_CWORD={at}
_rnx rnx
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def rnx(machine: Nspawn) -> Rnx:
    return Rnx(machine)


def test_pages_are_installed_in_their_sections(machine: Nspawn) -> None:
    names = sorted(page.name for page in PAGES.iterdir())
    found = machine.run("cd /usr/share/man && ls man*/rnx* man*/joblet*").check().text.split()
    assert sorted(found) == sorted(f"man{name[-1]}/{name}.gz" for name in names)


def test_bash_completes_jobs_of_the_server(rnx: Rnx, machine: Nspawn) -> None:
    done = rnx.start("true")
    rnx.ended(done)
    job = rnx.start("--name=here", "sleep", "300")

    def completed(*words: str) -> list[str]:
        script = AT_TAB.format(words=" ".join(words), at=len(words))
        return machine.run(["bash", "-c", script]).check().text.split()

    assert job in completed("rnx", "job", "stop")
    assert done not in completed("rnx", "job", "stop")
    assert {job, done} <= set(completed("rnx", "log"))
    assert completed("rnx", "--node") == ["default", "viewer"]
    rnx("stop", job).check()
    machine.run("systemctl stop joblet.service").check()
    try:
        assert completed("rnx", "job", "stop") == []
    finally:
        machine.run("systemctl start joblet.service").check()


def entries(machine: Nspawn, *words: str) -> list[dict[str, Any]]:
    """What journalctl finds."""
    text = machine.run(["journalctl", "--no-pager", "-o", "json", *words]).check().text
    return [json.loads(line) for line in text.splitlines()]


def test_the_journal_has_the_fields_that_the_manual_tells(rnx: Rnx, machine: Nspawn) -> None:
    job = rnx.start("sh", "-c", "echo to-out; echo to-err >&2")
    rnx.ended(job)
    lines = eventually(
        lambda: entries(machine, "-t", job[:8], "JOBLET_STREAM=stderr"), what="the line"
    )
    assert lines
    assert [line["MESSAGE"] for line in lines] == ["to-err"]
    assert lines[0]["JOBLET_JOB_ID"] == job
    assert lines[0]["PRIORITY"] == "5"
    of_unit = entries(machine, "-u", f"joblet-{job}.scope")
    assert {"to-out", "to-err"} <= {entry["MESSAGE"] for entry in of_unit}
    said = entries(machine, "-t", "joblet", f"JOBLET_JOB_ID={job}")
    assert said
    assert not {"to-out", "to-err"} & {entry["MESSAGE"] for entry in said}
    assert all(entry["LOGGER"].startswith("joblet.") for entry in said)
    audit = entries(machine, f"MESSAGE_ID={messages.CHANGE}", f"JOBLET_JOB_ID={job}")
    assert [(entry["JOBLET_WHAT"], entry["JOBLET_RESULT"]) for entry in audit] == [("RunJob", "ok")]
    assert audit[0]["JOBLET_WHO"]
    assert audit[0]["JOBLET_FROM"].startswith("127.0.0.1:")
