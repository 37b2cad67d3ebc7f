# SPDX-License-Identifier: MIT
"""A server killed anywhere loses nothing, doubles nothing, and another goes on.

Each test runs kill_driver.py: real FIFOs, a real writer, real SIGKILLs.
"""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")
# Small pipes and splices: many steps for few bytes.
SMALL = {"fair_splice_bytes": 20_000, "splice_bytes": 20_000, "pace_s": 0.0}

READER_STEPS = (
    "reader:polled",
    "reader:opened",
    "reader:before-splice",
    "reader:spliced",
    "reader:entered",
    "reader:ended",
    "reader:closed",
)
STORE_STEPS = ("store:copied", "store:index", "store:freed")
SYNC_STEPS = ("sync:few", "sync:all")
RECOVERY_STEPS = (
    "recovery:scanned",
    "recovery:stored",
    "recovery:indexed",
    "recovery:unstaged",
    "recovery:entered",
)
REST_STEPS = (
    "rest:staged",
    "rest:marked",
    "rest:copied",
    "rest:entered",
    "rest:gap",
    "rest:synced",
)
OVERFLOW_STEPS = {
    "compress": ("overflow:body", "overflow:framed", "overflow:packed"),
    "spill": ("overflow:body", "overflow:spilled", "overflow:framed", "overflow:packed"),
    "sample": ("overflow:left-out",),
}
# The disk cannot keep up with the job, and the stage is small.
SLOW: dict[str, Any] = {
    "settings": SMALL,
    "bounds": {"limit_bytes": 1_000_000, "batch_chunks": 10},
    "batching": {"flush_s": 0.001},
    "slow": 0.02,
}


def _drive(directory: Path, **plan: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-X", "dev", str(DRIVER), str(directory), json.dumps(plan)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["streams"] == result["sent"]
    assert result["ended"]
    assert result["gaps"] == 0
    return result


@pytest.mark.parametrize("end", ["eof", "finish"])
@pytest.mark.parametrize("step", READER_STEPS)
def test_killed_at_every_step_of_the_loop(tmp_path: Path, step: str, end: str) -> None:
    kills = [[step, 1], [step, 1], [step, 2], [step, 7]]
    result = _drive(tmp_path, blocks=300, kills=kills, end=end, settings=SMALL, pipe=65536)
    assert not result["survived"][0]
    assert result["steps"][step] >= 1


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("step", STORE_STEPS)
def test_killed_while_it_stores(tmp_path: Path, step: str, batch: int) -> None:
    kills = [[step, 1], [step, 2], ["reader:entered", 5], [step, 3], [step, 7]]
    result = _drive(
        tmp_path,
        blocks=300,
        kills=kills,
        settings=SMALL,
        pipe=65536,
        bounds={"batch_chunks": batch, "limit_bytes": 200_000},
        batching={"flush_s": 0.001},
        rotation=100_000,
    )
    assert not result["survived"][0]
    assert result["steps"][step] >= 1
    assert len(list((tmp_path / "logs" / "job").glob("out.*.sums"))) > 3
    assert not (tmp_path / "stage" / "job").exists()


def test_killed_while_it_syncs(tmp_path: Path) -> None:
    kills = [["sync:few", 1], ["sync:few", 2], ["reader:entered", 5], ["sync:few", 3]]
    result = _drive(
        tmp_path,
        blocks=300,
        kills=kills,
        settings=SMALL,
        pipe=65536,
        bounds={"batch_chunks": 1},
        rotation=100_000,
        sync=0.0001,
    )
    assert not result["survived"][0]


@pytest.mark.parametrize(
    ("strategy", "step"),
    [(strategy, step) for strategy, steps in OVERFLOW_STEPS.items() for step in steps],
)
def test_killed_while_the_stage_is_nearly_full(tmp_path: Path, strategy: str, step: str) -> None:
    kills = [[step, 1], [step, 2], ["store:freed", 2], [step, 7], ["recovery:stored", 1]]
    # each server spills to another directory than the one before
    spills = ["spill", "other"]
    result = _drive(tmp_path, blocks=1500, kills=kills, strategy=strategy, spills=spills, **SLOW)
    assert not result["survived"][0]
    assert set(result["left_out"]) == ({"sampled"} if strategy == "sample" else set())
    assert not (tmp_path / "stage" / "job").exists()
    assert not (tmp_path / "spill" / "job").exists()
    assert not (tmp_path / "other" / "job").exists()


@pytest.mark.parametrize("strategy", [*OVERFLOW_STEPS, "alert"])
def test_killed_at_random_moments_while_the_stage_is_nearly_full(
    tmp_path: Path, strategy: str
) -> None:
    chance = random.Random(strategy)
    kills = [chance.uniform(0, 0.15) for _ in range(12)]
    result = _drive(tmp_path, blocks=None, kills=kills, strategy=strategy, on_full="drop", **SLOW)
    assert result["survived"].count(False) >= 10


@pytest.mark.parametrize("step", RECOVERY_STEPS)
def test_killed_while_it_repairs(tmp_path: Path, step: str) -> None:
    kills = [["reader:spliced", 2], [step, 1], ["reader:spliced", 3], [step, 2]]
    result = _drive(tmp_path, blocks=300, kills=kills, settings=SMALL, pipe=65536)
    assert result["survived"][:2] == [False, False]


@pytest.mark.parametrize("step", REST_STEPS)
def test_killed_at_every_step_of_an_import(tmp_path: Path, step: str) -> None:
    # The first server reads some of it and dies; PID 1 keeps the rest.
    kills: list[object] = [["reader:entered", 3], [step, 1], [step, 2], [step, 1]]
    result = _drive(tmp_path, blocks=100, kills=kills, rest=1, settings=SMALL)
    assert not result["survived"][1]


def test_every_step_is_in_the_tests_above(tmp_path: Path) -> None:
    kills = [["reader:spliced", 2], ["recovery:entered", 1]]
    result = _drive(tmp_path, blocks=60, kills=kills, rest=3, settings=SMALL)
    named = {*READER_STEPS, *STORE_STEPS, *SYNC_STEPS, *RECOVERY_STEPS, *REST_STEPS}
    assert set(result["steps"]) <= named | {"recovery:header"}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("end", ["eof", "finish"])
def test_killed_at_random_moments(tmp_path: Path, end: str) -> None:
    chance = random.Random(20240229)
    kills = [chance.uniform(0, 0.012) for _ in range(60)]
    result = _drive(tmp_path, blocks=None, kills=kills, end=end)
    assert result["survived"].count(False) >= 55
