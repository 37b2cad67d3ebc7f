# SPDX-License-Identifier: MIT
"""Certificates put into configuration files: by lines, atomically, with the right owners."""

import os
import stat
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from joblet.admin import files
from joblet.config import ConfigurationError, ServerConfig, parse
from joblet.errors import FailedPrecondition

PEM = "-----BEGIN {0}-----\n{1}\n-----END {0}-----\n"
BLOCKS = {
    "serverCert": PEM.format("CERTIFICATE", "NEWCERT"),
    "serverKey": PEM.format("PRIVATE KEY", "NEWKEY"),
    "caCert": PEM.format("CERTIFICATE", "NEWCA"),
}


def edit(text: str) -> str:
    return files.with_security(text, BLOCKS, "FILE")


def test_a_new_configuration_says_the_defaults() -> None:
    text = edit(files.NEW_SERVER_CONFIG)
    loaded = parse(text, "FILE", environ={})
    assert (loaded.warnings, loaded.notes) == ((), ())
    assert loaded.config.security.server_cert == BLOCKS["serverCert"]
    defaults = ServerConfig(security=loaded.config.security)
    assert loaded.config == defaults
    assert text.startswith(files.NEW_SERVER_CONFIG)


OLD = """\
# a comment of mine
version: "3.0"   # kept
server:
    port: 1234

security:   # certificates
    # above
    serverCert: |
        -----BEGIN CERTIFICATE-----
        OLDCERT

        -----END CERTIFICATE-----
    "serverKey": |-
        -----BEGIN PRIVATE KEY-----
        OLDKEY
        -----END PRIVATE KEY-----

    other: kept
# at the margin
    caCert:  >-
        OLDCA
    # below

logging: {level: warn}  # last
"""

NEW = """\
# a comment of mine
version: "3.0"   # kept
server:
    port: 1234

security:   # certificates
    # above
    serverCert: |
      -----BEGIN CERTIFICATE-----
      NEWCERT
      -----END CERTIFICATE-----
    serverKey: |
      -----BEGIN PRIVATE KEY-----
      NEWKEY
      -----END PRIVATE KEY-----
    caCert: |
      -----BEGIN CERTIFICATE-----
      NEWCA
      -----END CERTIFICATE-----

    other: kept
# at the margin
    # below

logging: {level: warn}  # last
"""


def test_old_entries_are_replaced_and_every_other_line_stays() -> None:
    assert edit(OLD) == NEW
    assert edit(NEW) == NEW


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "server: {port: 1}",
        "server:\n  port: 1\n\n",
        "security:\n",
        "security:",
        "security: {}\nserver: {port: 1}\n",
        "security: ~  # none yet\nserver: {port: 1}\n",
        "security: null\n",
        "'security':\n  other: 1\n\n\n# end\n",
        "security:\n  other:\n  serverCert:\n",
        "server: {port: 1}\nsecurity:\n  x: |\n    serverCert: not a key\n\n    text\nversion: 3\n",
        '---\nversion: "3.0"\n',
        "security:\r\n  serverCert: old\r\nserver: {port: 1}\r\n",
        "security: &a\n  other: 1\n",
        "securityX: 1\nserver: {port: 1}\n",
        'security:\n  serverCert: "-----BEGIN\n    MORE"\n  z: 1\n',
    ],
)
def test_what_comes_out_is_what_went_in_with_the_certificates(text: str) -> None:
    before = yaml.safe_load(text) or {}
    after = yaml.safe_load(edit(text))
    assert after.pop("security") == {**(before.pop("security", None) or {}), **BLOCKS}
    assert after == before
    assert yaml.safe_load(edit(edit(text)))["security"].items() >= BLOCKS.items()


@pytest.mark.parametrize(
    "text",
    [
        "security: {other: 1}\n",
        "{security: {}}\n",
        "security:\n  other: 1\nserver: {port: 1}\n...\n---\nx: 1\n",
        "security:\n  {serverCert: x}\n",
        "version: 3\n...\n",
    ],
)
def test_what_cannot_be_edited_by_lines_is_refused(text: str) -> None:
    with pytest.raises(FailedPrecondition) as info:
        edit(text)
    assert "FILE" in str(info.value)


@pytest.mark.parametrize("text", ["a: [", "- a", "security: [1]"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="FILE"):
        edit(text)


keys = st.sampled_from(["other", "serverCert", "serverKey", "caCert", "note"])
plain = st.text("abcxyz: #-|>{}[]'\"\n\t ", max_size=30) | st.integers() | st.none() | st.booleans()


@given(
    st.dictionaries(st.sampled_from(["version", "server", "logging"]), plain, max_size=3),
    st.none() | st.dictionaries(keys, plain, max_size=4),
    st.sampled_from([None, "'", '"', "|", ">"]),
    st.integers(2, 6),
)
def test_any_configuration_is_edited_or_refused_never_damaged(
    rest: dict[str, object], security: dict[str, object] | None, style: str | None, indent: int
) -> None:
    document: dict[str, object] = {**rest, "security": security}
    text = yaml.safe_dump(document, default_style=style, indent=indent, default_flow_style=False)
    try:
        edited = edit(text)
    except FailedPrecondition:
        return
    after = yaml.safe_load(edited)
    assert after.pop("security") == {**(security or {}), **BLOCKS}
    assert after == rest


def test_a_client_configuration() -> None:
    nodes = {
        name: {"cert": BLOCKS["serverCert"], "key": BLOCKS["serverKey"], "ca": BLOCKS["caCert"]}
        for name in ("default", "viewer")
    }
    parsed = yaml.safe_load(files.client_config(nodes, "[::1]:50051"))
    assert parsed["version"] == "3.0"
    assert list(parsed["nodes"]) == ["default", "viewer"]
    assert parsed["nodes"]["viewer"] == {"address": "[::1]:50051", **nodes["viewer"]}


# -- files -----------------------------------------------------------------------------------------

MINE = files.Owner(-1, -1, 0o640)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "f.yml"
    path.write_text("old")
    held = path.open()
    files.write(path, "new µ", MINE)
    with held:
        assert held.read() == "old"
    assert path.read_text(encoding="utf-8") == "new µ"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["f.yml"]


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        files.write(tmp_path / "f", "x", MINE)
        files.make_directory(tmp_path / "d", files.Owner(-1, -1, 0o755))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o755


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        files.write(path, "new", MINE)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("theirs")
    (tmp_path / "f").symlink_to(target)
    files.write(tmp_path / "f", "ours", MINE)
    assert target.read_text() == "theirs"
    assert not (tmp_path / "f").is_symlink()


def test_the_old_file_is_kept_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert not files.keep_old(path)
    for content in ("one", "two"):
        files.write(path, content, MINE)
        assert files.keep_old(path)
    files.write(path, "three", MINE)
    assert (tmp_path / "f.old").read_text() == "two"
    assert names(tmp_path) == ["f", "f.old"]


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    files.make_directory(tmp_path, files.Owner(-1, -1, 0o755))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o711
