# SPDX-License-Identifier: MIT
"""The producer of the bench: both of its programs print the same, and report it."""

import os
import select
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.guest import elf, load, producer
from tests.bench.guest.errors import Broken
from tests.bench.guest.load import Check, Load
from tests.bench.guest.producer import Report

WAIT_S = 20.0


def report(fd: int) -> Report:
    assert select.select([fd], [], [], WAIT_S)[0], "no report"
    return Report.parse(os.read(fd, Report.FORMAT.size))[0]


@pytest.mark.parametrize("machine", [elf.MACHINE, "another"])
@pytest.mark.parametrize("block", [100, 65_500, 10_000_000])
def test_it_waits_prints_and_reports(tmp_path: Path, machine: str, block: int) -> None:
    if machine == elf.MACHINE and os.uname().machine != machine:
        return  # the other one is the one that counts here
    program = tmp_path / producer.NAME
    program.write_bytes(producer.program(machine))
    program.chmod(0o755)
    data = tmp_path / "data"
    data.write_bytes(load.data())
    names = ("reports", "gate", "exit")
    for name in names:
        os.mkfifo(tmp_path / name)
    reports = os.open(tmp_path / "reports", os.O_RDWR)
    # begins near the end of the data, so that it comes round
    wanted = Load(load.LINES // 7 - 3, 3_500_000, block)
    words = [wanted.number, wanted.begin, wanted.total, block]
    paths = [str(path) for path in (program, tmp_path / "reports", tmp_path / "gate", data)]
    argv = [*paths, *map(str, words), str(tmp_path / "exit")]
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(argv, stdout=out)
    gates = []
    try:
        assert report(reports) == Report(wanted.number, 0, 0, 0, wanted.total)
        assert (tmp_path / "out").stat().st_size == 0
        gates.append(os.open(tmp_path / "gate", os.O_RDWR))
        done = report(reports)
        assert (done.number, done.total) == (wanted.number, wanted.total)
        assert 0 < done.begin_ns < done.end_ns
        assert done.cpu_ns > 0
        assert process.poll() is None
        gates.append(os.open(tmp_path / "exit", os.O_RDWR))
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
        for fd in [reports, *gates]:
            os.close(fd)
    check = Check(wanted)
    check.update((tmp_path / "out").read_bytes())
    check.done()


def test_no_two_lines_are_alike() -> None:
    lines = load.data().splitlines(keepends=True)
    assert len(set(lines)) == load.LINES
    assert {len(line) for line in lines} == {load.LINE_BYTES}


def test_jobs_share_the_output_and_print_whole_lines() -> None:
    jobs = load.loads(3, 1_000_000)
    assert [job.total for job in jobs] == [333_300] * 3
    assert len({job.begin for job in jobs}) == 3
    assert load.loads(1000, 100)[0].total == load.LINE_BYTES


def output(job: Load) -> bytes:
    return b"".join(load.pieces(job, 0, job.total))


def test_the_last_line_is_the_end_of_the_output() -> None:
    job = Load(5, 3_300_000)
    assert output(job).endswith(job.last_line)
    assert len(job.last_line) == load.LINE_BYTES


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-100],
        lambda text: text + text[-100:],
        lambda text: text[100:200] + text[:100] + text[200:],
        lambda text: text[:5000] + b"x" + text[5001:],
    ],
    ids=["short", "doubled", "swapped", "changed"],
)
def test_output_that_differs_is_found(change: Callable[[bytes], bytes]) -> None:
    job = Load(1, 10_000)
    check = Check(job)
    check.update(change(output(job)))
    with pytest.raises(Broken, match="job 1"):
        check.done()


def test_a_report_that_is_cut_off_is_none() -> None:
    with pytest.raises(Broken, match="39 bytes"):
        Report.parse(bytes(39))
