# SPDX-License-Identifier: MIT
"""What macOS and Windows do differently: consoles, pipes, places, files of editors there."""

import errno
import io
import os
import types
from pathlib import Path, PureWindowsPath
from typing import cast

import pytest
import yaml

import rnx.cli
import rnx.config
import rnx.output
from rnx.config import candidates, load
from rnx.formats import rfc3339
from rnx.output import Environment
from tests.unit.rnx.test_process import SOURCES, start

WINDOWS = types.SimpleNamespace(name="nt", environ={}, open=os.open, dup2=os.dup2, close=os.close)
UNIX = types.SimpleNamespace(name="posix")


class Deaf(io.BytesIO):
    """A pipe of Windows whose reader has gone."""

    def write(self, data: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "not a file")


# --------------------------------------------------------------------------------------- the places


def test_windows_looks_in_places_of_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rnx.config, "os", WINDOWS)
    cwd, home = PureWindowsPath("D:\\work"), PureWindowsPath("C:\\Users\\ann")
    found = candidates({}, cast(Path, cwd), cast(Path, home))
    assert list(map(str, found)) == [
        "D:\\work\\rnx-config.yml",
        "D:\\work\\config\\rnx-config.yml",
        "C:\\Users\\ann\\.rnx\\rnx-config.yml",
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_files_as_windows_writes_them(tmp_path: Path, encoding: str) -> None:
    """Of Notepad, and of PowerShell's `>`."""
    text = yaml.safe_dump({"nodes": {"köln": {"address": "h"}}}, allow_unicode=True)
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path = tmp_path / "c.yml"
    path.write_bytes((mark + text.replace("\n", "\r\n")).encode(encoding))
    assert load(path).nodes == {"köln": {"address": "h"}}


def test_certificates_with_windows_line_ends_are_the_same(tmp_path: Path) -> None:
    pem = "-----BEGIN X-----\nabc\n-----END X-----\n"
    text = "nodes:\n  default:\n    address: h\n"
    for key in ("cert", "key", "ca"):
        text += f"    {key}: |\n" + "".join(f"      {line}\n" for line in pem.splitlines())
    path = tmp_path / "c.yml"
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert load(path).node("default").cert == pem


# ------------------------------------------------------------------------------- consoles and pipes


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "cp932", "ascii"])
@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("status", "ü€λ…")])
def test_no_code_page_stands_in_the_way(
    environ: dict[str, str], encoding: str, words: tuple[str, ...]
) -> None:
    """What comes is UTF-8, and the same for every code page."""
    environ["RNX_CONFIG"] = environ["HOME"] = "/nonexistent"
    seen = []
    for each in ("utf-8", f"{encoding}:strict"):
        environ["PYTHONIOENCODING"] = each
        process = start(environ, *words, cwd="/")
        out, err = process.communicate(timeout=30)
        assert b"bug in rnx" not in err
        assert b"\r" not in out
        seen.append((process.returncode, out.decode(), err.decode()))
    assert seen[0] == seen[1]


def test_a_pipe_of_windows_that_nobody_reads(
    monkeypatch: pytest.MonkeyPatch, env: Environment
) -> None:
    env.out = Deaf()
    monkeypatch.setattr(rnx.cli, "os", WINDOWS)
    assert rnx.cli.main(["nodes", "--help"], env) == 0  # click's, to another stream
    assert rnx.cli.main([], env) == 141
    assert cast(io.BytesIO, env.err).getvalue() == b""
    monkeypatch.setattr(rnx.cli, "os", UNIX)
    assert rnx.cli.main([], env) == 1


def test_a_stderr_that_nobody_reads_is_no_reason_to_stop(env: Environment) -> None:
    env.err = Deaf()
    env.note("x")


@pytest.mark.parametrize(
    ("name", "variables", "colour"),
    [
        ("posix", {}, True),
        ("posix", {"TERM": "dumb"}, False),
        ("posix", {"NO_COLOR": "1"}, False),
        ("nt", {}, False),
        ("nt", {"WT_SESSION": "x"}, True),
        ("nt", {"WT_SESSION": "x", "NO_COLOR": "1"}, False),
    ],
)
def test_colour_only_where_the_terminal_knows_it(
    monkeypatch: pytest.MonkeyPatch, name: str, variables: dict[str, str], *, colour: bool
) -> None:
    terminal = types.SimpleNamespace(isatty=lambda: True, buffer=io.BytesIO())
    streams = types.SimpleNamespace(stdout=terminal, stderr=terminal)
    monkeypatch.setattr(rnx.output, "sys", streams)
    monkeypatch.setattr(rnx.output, "os", types.SimpleNamespace(name=name, environ=variables))
    assert Environment.of_process().colour is colour


def test_times_of_any_year_can_be_written() -> None:
    assert rfc3339(-1.0e9) == "1938-04-24T22:13:20Z"
    assert rfc3339(2.0e11)[:4] == "8307"


# ----------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_needs_a_unix_event_loop(path: Path) -> None:
    """Those calls exist on Windows, and fail there."""
    text = path.read_text()
    assert "add_signal_handler" not in text
    assert "asyncio" not in text
