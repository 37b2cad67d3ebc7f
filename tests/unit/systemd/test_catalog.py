# SPDX-License-Identifier: MIT
"""Every message id has its paragraph in the catalog, and every field its place in the list."""

import re
import subprocess
from pathlib import Path

from joblet.systemd import messages
from joblet.systemd.journal import FIELDS

TREE = Path(__file__).parents[3]
CATALOG = TREE / "units" / "joblet.catalog"
IDS = {name: value for name, value in vars(messages).items() if name.isupper()}
FIELD = re.compile(r"JOBLET_[A-Z_]+")
# variables of the environment, which look like fields
VARIABLES = {"JOBLET_MODE", "JOBLET_CONFIG_PATH", "JOBLET_NAME", "JOBLET_LOG_LEVEL"}


def entries() -> dict[str, str]:
    parts = re.split(r"^-- (.*)\n", CATALOG.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_ids_are_random_and_each_is_one_event() -> None:
    assert len(set(IDS.values())) == len(IDS) > 8
    for name, value in IDS.items():
        assert re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", value), name


def test_every_id_is_explained_and_nothing_else_is() -> None:
    assert set(entries()) == set(IDS.values())


def test_every_id_is_used() -> None:
    code = "".join(
        path.read_text() for path in (TREE / "joblet").rglob("*.py") if path.name != "messages.py"
    )
    assert [name for name in IDS if f"messages.{name}" not in code] == []


def test_an_explanation_has_a_subject_a_page_and_some_text() -> None:
    for number, entry in entries().items():
        head, _, text = entry.partition("\n\n")
        keys = [line.partition(":")[0] for line in head.splitlines()]
        assert keys == ["Subject", "Defined-By", "Documentation"], number
        assert len(text.split()) > 20, number
        assert max(map(len, entry.splitlines())) <= 80, number


def test_what_an_explanation_quotes_is_a_field() -> None:
    text = CATALOG.read_text()
    assert set(re.findall(r"@(\w+)@", text)) <= set(FIELDS)
    assert set(FIELD.findall(text)) <= set(FIELDS)


def test_the_list_of_fields_is_the_codes() -> None:
    named = set()
    for path in (TREE / "joblet").rglob("*.py"):
        text = path.read_text()
        if path.name == "journal.py" and path.parent.name == "systemd":
            text = text[text.index("_FIELD: Final") :]  # behind the list itself
        if path.parent.name != "config":  # the environment's variables are read there
            named |= set(FIELD.findall(text))
    assert named - VARIABLES == set(FIELDS)


def test_systemd_takes_the_catalog(tmp_path: Path) -> None:
    """As far as it can be asked without a journal: the compiler of the catalog names each entry."""
    place = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    place.mkdir(parents=True)
    (tmp_path / "var" / "lib" / "systemd" / "catalog").mkdir(parents=True)
    (place / "joblet.catalog").write_text(CATALOG.read_text())
    done = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--update-catalog"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    compiled = (tmp_path / "var" / "lib" / "systemd" / "catalog" / "database").read_bytes()
    for entry in entries().values():
        assert entry.splitlines()[0].encode() in compiled
