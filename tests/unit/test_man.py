# SPDX-License-Identifier: MIT
"""The man pages against the code: what there is stands in its page, and nothing else does.

Pages are made here as `make man` makes them.
"""

import ast
import collections
import dataclasses
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

import joblet
import rnx
from joblet.__main__ import EX_CONFIG, EXIT_CODES
from joblet.config import SEARCH, ServerConfig
from joblet.config.server import OVERRIDES, WITHOUT_MEANING
from joblet.server import audit
from joblet.server.logs import GapKind
from joblet.systemd import journal, messages
from joblet_pb import joblet_pb2 as pb
from rnx.cli import JOB_COMMANDS
from rnx.commands import monitor
from rnx.exits import Exit
from tools import man

TREE = Path(__file__).resolve().parents[2]
NAMES = [source.name for source in man.pages()]
DATE = "2026-01-31"

# Options of others that examples use.
FOREIGN = {"--since", "--flag"}
# Words like a variable's name that are none to be set: the completion's protocol, and a job's own.
NOT_FOR_PEOPLE = {"_RNX_COMPLETE", "JOBLET_"}

every_page = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("man")
    man.write(target, DATE)
    return target


def plain(roff: str) -> str:
    """A page's words, without roff's escapes."""
    text = re.sub(r"\\f[BIRP]", "", roff.replace("\\-", "-").replace("\\&", ""))
    return text.replace("\\e", "\\")


@pytest.fixture(scope="module")
def text(built: Path) -> Mapping[str, str]:
    return {path.name: plain(path.read_text()) for path in built.iterdir()}


def shown(page: Path) -> str:
    """As a reader has it, words with single spaces between."""
    argv = ["mandoc", "-T", "utf8", "-O", "width=1000", str(page)]
    out = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
    return " ".join(re.sub(".\b", "", out).split())


def heads(roff: str, macro: str = ".TP") -> list[str]:
    """What stands in the heads of paragraphs."""
    lines = roff.splitlines()
    return [lines[number + 1] for number, line in enumerate(lines) if line == macro]


# -- the pages themselves --------------------------------------------------------------------------


@every_page
def test_pages_are_clean(name: str, built: Path) -> None:
    page = str(built / name)
    for argv in (
        ["groff", "-ww", "-man", "-z", "-Tutf8", "-Kutf8", page],
        ["mandoc", "-T", "lint", "-W", "warning", page],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@every_page
def test_pages_are_found_by_name(name: str, built: Path) -> None:
    """apropos and whatis have them from lexgrog."""
    done = subprocess.run(
        ["lexgrog", "-m", str(built / name)], capture_output=True, text=True, check=True, timeout=30
    )
    assert f'"{name.rpartition(".")[0]} - ' in done.stdout


@every_page
def test_pages_have_the_usual_sections(name: str, text: Mapping[str, str]) -> None:
    found = re.findall(r"^\.SH (.*)$", text[name], re.MULTILINE)
    wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"]
    if name.endswith((".1", ".8")):
        wanted += ["EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO"]
    elif name.endswith(".5"):
        wanted += ["FILES", "EXAMPLES", "SEE ALSO"]
    else:
        wanted = ["NAME", "DESCRIPTION", "SEE ALSO"]
    assert [section for section in found if section in wanted] == wanted
    assert len(set(found)) == len(found)


@every_page
def test_pages_that_are_named_are_there(name: str, text: Mapping[str, str]) -> None:
    named = re.findall(r"\b((?:rnx|joblet)[\w.-]*?)[\" ]*\((\d)\)", text[name])
    assert named
    assert {f"{page}.{section}" for page, section in named} <= set(NAMES)


def test_pages_are_the_same_whenever_they_are_made(built: Path, tmp_path: Path) -> None:
    (tmp_path / "rnx-gone.1").write_text("of an older version")
    for environ, date in (({}, ""), ({"SOURCE_DATE_EPOCH": "1769817600"}, DATE)):
        argv = [sys.executable, "tools/man.py", str(tmp_path)]
        paths = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
        subprocess.run(argv, cwd=TREE, env=paths | environ, check=True, timeout=60)
        made = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert made == {
            path.name: path.read_text().replace(f'"{DATE}"', f'"{date}"')
            for path in built.iterdir()
        }


def test_a_directive_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "x.1"
    for line, error in (("@frob", ValueError), ("@setting server.frob", KeyError)):
        source.write_text(line)
        with pytest.raises(error):
            man.page(source, DATE)


# -- commands --------------------------------------------------------------------------------------


def walk(path: str = "rnx") -> Iterator[tuple[str, click.Command]]:
    command, context = man.find(path)
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from walk(f"{path} {name}")


def long_form(path: str) -> str:
    """`rnx job log` of `rnx log`."""
    words = path.split()
    return " ".join(["rnx", "job", *words[1:]]) if words[1:2] and words[1] in JOB_COMMANDS else path


def page_of(path: str, command: click.Command) -> str:
    """rnx job log is in rnx-job(1), rnx nodes in rnx(1)."""
    words = long_form(path).split()
    group = words if isinstance(command, click.Group) else words[:-1]
    return "-".join(group) + ".1"


COMMANDS = dict(walk())


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_is_in_its_page(path: str, built: Path) -> None:
    command = COMMANDS[path]
    page = shown(built / page_of(path, command))
    if isinstance(command, click.Group):
        if path != "rnx":
            assert f"{path} [OPTIONS] COMMAND" in shown(built / "rnx.1")
    else:
        assert f"{long_form(path)} [" in page
        for paragraph in re.split(r"\n\s*\n", command.help or ""):
            assert " ".join(paragraph.replace("`", "").split()) in page
    for names, metavar, text in man.click_options(command):
        assert f"{', '.join(names)} {metavar}".strip() in page
        assert text in page or set(names) & set(man.GLOBALS)


def test_options_are_those_of_the_commands() -> None:
    """What the generator takes for options is what the commands accept."""
    for path, command in COMMANDS.items():
        known = {name for names, _, _ in man.click_options(command) for name in names}
        if path.split()[-1] == "run":
            continue  # its options are FLAGS, which its parser reads
        context = click.Context(command, info_name="x", help_option_names=["-h", "--help"])
        options = [p for p in command.get_params(context) if isinstance(p, click.Option)]
        assert known == {name for o in options for name in [*o.opts, *o.secondary_opts]}, path


def test_every_number_of_monitor_status_is_in_its_page(text: Mapping[str, str]) -> None:
    page = text["rnx-monitor.1"].partition(".SH NUMBERS")[2].partition(".SH")[0]
    for title, message in (("jobsInfo", pb.JobCounts), ("logsInfo", pb.LogEngine)):
        section = page.partition(f".SS {title}")[2].partition(".SS")[0]
        told = {word for head in heads(section) for word in re.findall(r"\b[a-zA-Z]{3,}", head)}
        assert told == set(monitor.numbers(message()))
    assert all(kind in page for kind in GapKind)


def test_every_option_of_joblet_cert_is_in_its_page(built: Path) -> None:
    page = shown(built / "joblet-cert.8")
    assert set(man.subcommands()) == {"init", "show"}
    for name, parser in man.subcommands().items():
        assert f"joblet cert {name} [OPTIONS] {parser.description}" in page
        words = set(re.findall(r"--[a-z-]+", parser.format_help()))
        assert "--dir" in words
        assert words <= set(re.findall(r"--[a-z-]+", page))


@every_page
def test_no_page_has_an_option_that_is_gone(name: str, text: Mapping[str, str]) -> None:
    known = {
        option
        for command in COMMANDS.values()
        for names, _, _ in man.click_options(command)
        for option in names
    }
    for parser in man.subcommands().values():
        known |= set(re.findall(r"--[a-z-]+", parser.format_help()))
    body = "\n".join(line for line in text[name].splitlines() if not line.startswith(".TH"))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", body)) <= known | FOREIGN


def test_every_exit_code_is_in_its_page(built: Path, text: Mapping[str, str]) -> None:
    for name in ("rnx.1", "rnx-job.1"):
        section = text[name].partition(".SH EXIT STATUS")[2].partition(".SH")[0]
        assert set(heads(section)) == {"n", "128+n", *(str(int(code)) for code in Exit)}
    section = text["joblet.8"].partition(".SH EXIT STATUS")[2].partition(".SH")[0]
    codes = {0, 1, 2, 130, EX_CONFIG, *EXIT_CODES.values()}
    assert set(heads(section)) == {str(code) for code in codes}
    assert set(man.MEANINGS) == set(EXIT_CODES)


def test_options_of_joblet_are_in_its_page(built: Path) -> None:
    page = shown(built / "joblet.8")
    argv = [sys.executable, "-m", "joblet"]
    for option in ("--version", "-V", "--help", "-h"):
        assert f" {option}" in page
        done = subprocess.run(
            [*argv, option], cwd=TREE, capture_output=True, text=True, check=False, timeout=30
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_there_is_one_version() -> None:
    """rnx and joblet are installed apart and cannot import each other's; the wheel has rnx's."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "rnx.__version__"}
    assert joblet.__version__ == rnx.__version__
    for argv in (["joblet", "--version"], ["rnx", "--version"]):
        done = subprocess.run(
            [sys.executable, "-m", *argv],
            cwd=TREE, capture_output=True, text=True, check=True, timeout=30,
            env={"PYTHONPATH": ":".join(path for path in sys.path if path), "HOME": "/nowhere"},
        )  # fmt: skip
        assert done.stdout.splitlines()[0] == f"{argv[0]} {rnx.__version__}"


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("joblet-config.yml.5", man.server_settings()),
        ("joblet-init.yml.5", man.policy_settings()),
    ],
)
def test_every_setting_is_in_its_page(
    name: str, settings: Mapping[str, Mapping[str, object]], built: Path, text: Mapping[str, str]
) -> None:
    page = shown(built / name)
    found = heads(text[name].partition(".SH OPTIONS")[2].partition(".SH")[0])
    assert sorted(head for head in found if head != ".B version") == sorted(settings)
    for key, metadata in settings.items():
        # its own text between key and bounds, and the default as one would write it
        allowed = getattr(metadata["kind"], "allowed")  # noqa: B009 - a Kind, behind Any
        match = re.search(
            rf"{re.escape(key)} ([A-Z][^.]+.*?) Allowed: {re.escape(allowed)}\. "
            r"Default: (.*?)\.(?= |$)",
            page,
        )
        assert match, key
        given = metadata["default"]
        if isinstance(given, bool):
            assert match[2] == str(given).lower()
        elif isinstance(given, str | int) and given != "":
            assert match[2] == str(given)


def test_every_setting_has_an_effect() -> None:
    """If a part of the server reads it, it has one."""
    code = "".join(path.read_text() for path in (TREE / "joblet" / "server").rglob("*.py"))
    code += (TREE / "joblet" / "config" / "server.py").read_text()  # some through a property
    idle = set()
    for section in dataclasses.fields(ServerConfig):
        for field in dataclasses.fields(type(getattr(ServerConfig(), section.name))):
            if not re.search(rf"\.{field.name}\b", code):
                idle.add(f"{section.name}.{field.metadata['key']}")
    assert idle == set()


def test_search_paths_and_ignored_keys_are_in_their_pages(built: Path) -> None:
    page = shown(built / "joblet-config.yml.5")
    assert "• $JOBLET_CONFIG_PATH • " + " • ".join(SEARCH) in page
    for section, keys in WITHOUT_MEANING.items():
        assert f"• {section} (the whole section)" in page or keys
        assert all(f"• {section}.{key}" in page for key in keys)
    for variable, (section, key) in OVERRIDES.items():
        assert f"{variable} Overrides {section}.{key}." in page
    places = (
        "$RNX_CONFIG • $RNX_CONFIG_PATH • ./rnx-config.yml • ./config/rnx-config.yml"
        " • ~/.rnx/rnx-config.yml • /etc/joblet/rnx-config.yml • /opt/joblet/config/rnx-config.yml"
    )
    for name in ("rnx.1", "rnx-config.yml.5"):
        assert places in shown(built / name)


def nodes(*tops: str) -> Iterator[ast.AST]:
    for top in tops:
        for path in (TREE / top).rglob("*.py"):
            yield from ast.walk(ast.parse(path.read_text()))


def constants(*tops: str) -> list[str]:
    """Every text in the code, as often as it is there."""
    return [
        node.value
        for node in nodes(*tops)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def keywords(*tops: str) -> list[str]:
    """Names of arguments in calls."""
    return [node.arg for node in nodes(*tops) if isinstance(node, ast.keyword) and node.arg]


def test_variables_are_those_of_the_code(text: Mapping[str, str]) -> None:
    """What the environment says is documented, and what is documented is read."""
    named = {
        word for word in constants("joblet", "rnx") if re.fullmatch(r"_?(JOBLET|RNX)_\w*", word)
    }
    read = named - set(journal.FIELDS) - NOT_FOR_PEOPLE
    assert {"JOBLET_MODE", "JOBLET_CONFIG_PATH", "RNX_CONFIG"} <= read
    told: set[str] = set()
    for page in text.values():
        told |= set(re.findall(r"\b(?:JOBLET|RNX)_[A-Z_]+\b(?!=)", page))
    assert told - set(journal.FIELDS) == read


# -- journal ---------------------------------------------------------------------------------------

FIELDS_PAGE = "joblet.journal-fields.7"


def told_fields(page: str) -> list[str]:
    return [name for head in heads(page) for name in re.findall(r"([A-Z_]+)=", head)]


def test_every_field_is_in_the_page(built: Path, text: Mapping[str, str]) -> None:
    found = told_fields(text[FIELDS_PAGE])
    assert len(set(found)) == len(found)
    assert {name for name in found if name.startswith("JOBLET_")} == set(journal.FIELDS)
    page = shown(built / FIELDS_PAGE)
    for name, meaning in journal.FIELDS.items():
        assert f"{name}= {meaning}." in page


def test_the_list_of_fields_is_the_code() -> None:
    """Each is named by the list, and by who sends it."""
    variables = {"JOBLET_MODE", "JOBLET_CONFIG_PATH", *OVERRIDES}
    count = collections.Counter(constants("joblet"))
    count.update(keywords("joblet"))
    ours = {word for word in count if re.fullmatch(r"JOBLET_[A-Z_]+", word)} - variables
    assert ours == set(journal.FIELDS)
    assert [name for name in journal.FIELDS if count[name] < 2] == []


def received(server: socket.socket) -> set[str]:
    """Names of the fields of all entries that have come."""
    names: set[str] = set()
    while True:
        try:
            entry = server.recv(1 << 20)
        except BlockingIOError:
            return names
        names |= {word.decode() for word in re.findall(rb"^([A-Z][A-Z0-9_]*)(?==|\n)", entry, re.M)}


def test_fields_that_are_sent_are_on_the_list(tmp_path: Path, text: Mapping[str, str]) -> None:
    """All at once: the server's messages, the audit, and lines of jobs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "socket"))
        server.setblocking(False)
        sender = journal.Journal(str(tmp_path / "socket"))
        handler = journal.JournalHandler(sender, "joblet")
        audit.log.addHandler(handler)
        level = audit.log.level
        audit.log.setLevel("INFO")
        try:
            audit.record("ann", "127.0.0.1:1", "RunJob", "ok", job="j")
        finally:
            audit.log.removeHandler(handler)
            audit.log.setLevel(level)
        sender.send_lines("j", "joblet-j.scope", "stdout", [b"a line"])
        names = received(server)
        handler.close()
    assert {"MESSAGE_ID", "JOBLET_WHO", "JOBLET_STREAM", "OBJECT_SYSTEMD_UNIT"} <= names
    told = told_fields(text[FIELDS_PAGE])
    assert names <= set(told)
    # of the journal's own fields the page has no more than are sent, and what journald adds itself
    assert {name for name in told if not name.startswith(("JOBLET_", "_"))} <= names


def test_message_ids_are_those_of_the_code(text: Mapping[str, str]) -> None:
    known = {word for word in constants("joblet") if re.fullmatch(r"[0-9a-f]{32}", word)}
    assert messages.CHANGE in known
    assert set(re.findall(r"\b[0-9a-f]{32}\b", text[FIELDS_PAGE])) == known


def test_examples_of_journalctl_name_fields_that_exist(text: Mapping[str, str]) -> None:
    """An example of each group of fields."""
    groups = text[FIELDS_PAGE].split(".SH ")[3:-1]
    assert len(groups) >= 4
    for group in groups:
        assert re.search(r"^journalctl ", group, re.MULTILINE), group[:30]
    lines = re.findall(r"^journalctl .*$", text[FIELDS_PAGE], re.MULTILINE)
    for line in lines:
        assert set(re.findall(r"\b([A-Z_]+)=", line)) <= set(told_fields(text[FIELDS_PAGE]))
