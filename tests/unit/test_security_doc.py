# SPDX-License-Identifier: MIT
"""docs/SECURITY.md against the tests and probes that it names."""

import ast
import re
from pathlib import Path

import pytest

from joblet.config import PROFILES
from joblet.launch import command, probe, syscalls

TREE = Path(__file__).resolve().parents[2]
TEXT = (TREE / "docs" / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))


def test_there_is_something_to_check() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_what_it_names_is_a_test(path: str, name: str) -> None:
    tree = ast.parse((TREE / path).read_text())
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not name or (name.startswith("test_") and name in tests)
    assert any(found.startswith("test_") for found in tests)


def test_every_probe_has_its_line_and_no_other() -> None:
    threats = TEXT.partition("## Threats")[2].partition("## What is not")[0]
    named = re.findall(r"`([a-z0-9_]+)`", threats)
    probes = [name for name in named if name in probe.PROBES]
    assert sorted(probes) == sorted(probe.PROBES)


def test_capabilities_and_profiles() -> None:
    profiles = TEXT.partition("## Profiles")[2].partition("## Threats")[0]
    heads, *rows = [line for line in profiles.splitlines() if line.startswith("|")]
    assert re.findall(r"`(\w+)`", heads) == list(PROFILES)
    [kept] = [row.split("|")[2] for row in rows if row.startswith("| capabilities")]
    names = [name.strip() for name in kept.split(",")]
    numbers = [getattr(syscalls, f"CAP_{name}") for name in names]
    assert sorted(numbers) == sorted(command.KEPT_CAPABILITIES)
