# SPDX-License-Identifier: MIT
"""Man pages: docs/man/* with what the code knows put in. `make man` writes them to build/man.

    python3 tools/man.py TARGET          all pages
    SOURCE_DATE_EPOCH                    their date, if set, as Debian's build sets it

A source is roff with man(7)'s macros, except that a hyphen is always the character of the keyboard,
and that a line with @ is replaced:

    @title                  the .TH line
    @synopsis COMMAND       a command of rnx or joblet, as its usage says
    @commands GROUP         every command below it: text and options
    @options COMMAND        its options but the global ones
    @globals                the options that every command of rnx has
    @setting SECTION.KEY    a setting: its key, the text that follows, what it may be, its default;
                            KEY alone is one of init.yml
    @field NAME             the head and the meaning of one of the journal's fields
    @list NAME              one of LISTS

What a page must have and must not have is held against the code by tests/unit/test_man.py.
"""

import argparse
import dataclasses
import datetime
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from joblet.__main__ import EX_CONFIG, EXIT_CODES
from joblet.admin import cli as cert
from joblet.config import SEARCH, InitPolicy, ServerConfig
from joblet.config.policy import PROPERTIES
from joblet.config.server import OVERRIDES, WITHOUT_MEANING
from joblet.errors import Code
from joblet.systemd.journal import FIELDS
from rnx import __version__
from rnx.cli import JOB_COMMANDS, root
from rnx.config import VARIABLES, candidates
from rnx.exits import OF_RUN, Exit
from rnx.run_args import FLAGS

TREE: Final = Path(__file__).resolve().parents[1]
SOURCES: Final = TREE / "docs" / "man"
GLOBALS: Final = ("--config", "--node", "--json", "--help")
HELP: Final = ("-h, --help", "Show the help text and exit.")
# What joblet's exit codes mean, where they are those of an error's code.
MEANINGS: Final[Mapping[Code, str]] = {
    Code.INVALID_ARGUMENT: "the command line, or a value in it, is wrong",
    Code.UNAVAILABLE: "something is not there now, such as the port or D-Bus; try again",
    Code.PERMISSION_DENIED: "not allowed",
}

Lines = Iterator[str]


def escape(text: str) -> str:
    """Plain text as a line of roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def prose(text: str) -> str:
    """The same, with what stands in backquotes in bold."""
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", escape(text))


def bold(text: str) -> str:
    return f"\\fB{escape(text)}\\fR"


def item(names: str, text: str) -> Lines:
    yield ".TP"
    yield names
    yield prose(text)


# -- rnx -------------------------------------------------------------------------------------------


def find(path: str) -> tuple[click.Command, click.Context]:
    """A command of rnx by its words ("rnx job run")."""
    command: click.Command = root
    context = click.Context(root, info_name="rnx")
    for name in path.split()[1:]:
        assert isinstance(command, click.Group), path  # noqa: S101
        inner = command.get_command(context, name)
        assert inner is not None, path  # noqa: S101
        command, context = inner, click.Context(inner, info_name=name, parent=context)
    return command, context


def click_options(command: click.Command) -> Iterator[tuple[list[str], str, str]]:
    """Names, metavar and help of the options of a command; `rnx job run` has its own parser."""
    if command.name == "run":
        for flag in FLAGS:
            names = [name for name in (flag.short, flag.name) if name]
            yield names, flag.metavar, flag.help + (" May be given several times." * flag.many)
        return
    for option in command.params:
        if isinstance(option, click.Option):
            metavar = "" if option.is_flag else (option.metavar or option.name or "").upper()
            yield [*option.opts, *option.secondary_opts], metavar, option.help or ""
    yield ["-h", "--help"], "", HELP[1]


def option_items(command: click.Command, *, globals_too: bool) -> Lines:
    for names, metavar, text in click_options(command):
        if globals_too == any(name in GLOBALS for name in names):
            value = f" \\fI{escape(metavar)}\\fR" if metavar else ""
            yield from item(", ".join(map(bold, names)) + value, text)


def usage(context: click.Context) -> str:
    command = context.command
    pieces = " ".join(command.collect_usage_pieces(context))
    return f"{bold(context.command_path)} {escape(pieces)}"


def help_text(command: click.Command) -> Lines:
    """Paragraphs of a command's help; those behind \\b keep their lines."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", (command.help or "").strip())):
        if number:
            yield ".PP"
        lines = [line.strip() for line in paragraph.splitlines()]
        yield from map(prose, lines)


def commands(path: str) -> Lines:
    """Everything below a group. The short forms of `rnx job` are told in a sentence of the page."""
    group, context = find(path)
    assert isinstance(group, click.Group)  # noqa: S101
    for name in group.list_commands(context):
        if path == "rnx" and name in JOB_COMMANDS:
            continue
        command, inner = find(f"{path} {name}")
        yield f".SS {usage(inner)}"
        yield from help_text(command)
        if isinstance(command, click.Group):
            yield f"See {bold(f'rnx-{name}')}(1)."
            continue
        yield from option_items(command, globals_too=False)


def short_forms() -> Lines:
    for number, name in enumerate(JOB_COMMANDS):
        if number:
            yield ".br"
        yield f"{bold(f'rnx {name}')} is {bold(f'rnx job {name}')}"


def rnx_search() -> Lines:
    """Where rnx looks, in order, with the variables by their names."""
    environ = {name: f"${name}" for name in VARIABLES}
    for place in candidates(environ, Path(), Path("~")):
        shown = str(place)
        yield from ordered(shown if shown[0] in "$~/" else f"./{shown}")


def ordered(text: str) -> Lines:
    yield ".IP \\(bu 2"
    yield bold(text)


def rnx_exits() -> Lines:
    rows: list[tuple[str, str]] = [
        ("n", "with --follow or --wait: the job exited with n"),
        ("128+n", "with --follow or --wait: signal n ended the job"),
    ]
    rows[0:0] = [(str(int(code)), code.meaning) for code in (Exit.OK, Exit.FAILED, Exit.INCOMPLETE)]
    rows += [(str(int(code)), code.meaning) for code in OF_RUN]
    for code, text in rows:
        yield from item(bold(code), f"{text}.")


# -- joblet ----------------------------------------------------------------------------------------


def subcommands() -> Mapping[str, argparse.ArgumentParser]:
    """The commands of `joblet cert`."""
    for action in cert.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError


def cert_commands() -> Lines:
    for name, parser in subcommands().items():
        yield f".SS {bold(f'joblet cert {name}')} [OPTIONS]"
        yield prose(parser.description or "")
        for action in parser._actions:
            metavar = "" if action.nargs == 0 else action.metavar or action.dest.upper()
            value = f" \\fI{escape(str(metavar))}\\fR" if metavar else ""
            text = (action.help or "") % {"default": action.default}
            text = HELP[1] if "--help" in action.option_strings else f"{sentence(text)}."
            yield from item(", ".join(map(bold, action.option_strings)) + value, text)


def joblet_exits() -> Lines:
    rows = {number: MEANINGS[code] for code, number in EXIT_CODES.items()}
    rows |= {
        0: "done",
        1: "failed; `joblet cert show`: a certificate does not work",
        2: "`joblet cert`: the command line is wrong",
        EX_CONFIG: "a configuration file cannot be used, or the records are of a newer release."
        " `joblet.service` is not restarted after this one: somebody must do something",
        130: "interrupted",
    }
    for number, text in sorted(rows.items()):
        yield from item(bold(str(number)), f"{sentence(text)}.")


def joblet_search() -> Lines:
    yield from ordered("$JOBLET_CONFIG_PATH")
    for place in SEARCH:
        yield from ordered(place)


def overrides() -> Lines:
    for variable, (section, key) in OVERRIDES.items():
        yield from item(bold(variable), f"Overrides `{section}.{key}`.")


def without_meaning() -> Lines:
    for section, keys in WITHOUT_MEANING.items():
        for key in sorted(keys):
            yield from ordered(f"{section}.{key}")
        if not keys:
            yield ".IP \\(bu 2"
            yield f"{bold(section)} (the whole section)"


def settings(kind: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each setting's name in the file and what its field knows of it."""
    for field in dataclasses.fields(kind):
        yield prefix + field.metadata["key"], field.metadata


def server_settings() -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for section in dataclasses.fields(ServerConfig):
        found.update(settings(section.type, f"{section.name}."))
    return found


def policy_settings() -> dict[str, Mapping[str, Any]]:
    return dict(settings(InitPolicy))


def setting(name: str) -> Lines:
    yield ".TP"
    yield bold(name)


def bounds(metadata: Mapping[str, Any]) -> Lines:
    """The end of a setting's paragraph."""
    yield f"Allowed: {prose(metadata['kind'].allowed)}."
    yield f"Default: {default_of(metadata)}."


def default_of(metadata: Mapping[str, Any]) -> str:
    default = metadata["default"]
    if default in ("", {}):
        return "not set"
    if isinstance(default, bool):
        return bold(str(default).lower())
    if default == list(PROPERTIES):
        return "all of them"
    return bold(", ".join(default) if isinstance(default, list) else str(default))


# -- journal ---------------------------------------------------------------------------------------


def field(name: str) -> Lines:
    yield from item(f"{bold(name)}=", f"{FIELDS[name]}.")


def other_fields() -> Lines:
    """Those that the page has no place of their own for."""
    page = (SOURCES / "joblet.journal-fields.7").read_text(encoding="utf-8")
    for name in FIELDS:
        if f"@field {name}\n" not in page:
            yield from field(name)


def message_ids() -> Lines:
    """Each with the subject that the catalog gives it, and the fields in that by their names."""
    text = (TREE / "units" / "joblet.catalog").read_text(encoding="utf-8")
    for number, subject in re.findall(r"^-- ([0-9a-f]{32})\nSubject: (.*)$", text, re.MULTILINE):
        words = re.sub(r"@(\w+)@", r"\\fI\1\\fR", escape(subject))
        yield ".TP"
        yield bold(number)
        yield f"{words}."


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- pages -----------------------------------------------------------------------------------------

LISTS: Final[Mapping[str, Callable[[], Lines]]] = {
    "short-forms": short_forms,
    "rnx-search": rnx_search,
    "rnx-exits": rnx_exits,
    "cert-commands": cert_commands,
    "joblet-exits": joblet_exits,
    "joblet-search": joblet_search,
    "overrides": overrides,
    "without-meaning": without_meaning,
    "other-fields": other_fields,
    "message-ids": message_ids,
}


def title(name: str, date: str) -> str:
    page, _, section = name.rpartition(".")
    manual = {"1": "User Commands", "5": "File Formats", "7": "Miscellany", "8": "Administration"}
    head = f'.TH "{escape(page.upper())}" "{section}" "{date}"'
    return f'{head} "Joblet {__version__}" "{manual[section]}"'


def directive(line: str, name: str, date: str) -> Iterable[str]:
    word, _, rest = line[1:].partition(" ")
    match word:
        case "title":
            return [title(name, date)]
        case "synopsis":
            return [usage(find(rest)[1])]
        case "commands":
            return commands(rest)
        case "options":
            return option_items(find(rest)[0], globals_too=False)
        case "globals":
            return option_items(find("rnx list")[0], globals_too=True)
        case "field":
            return field(rest)
        case "setting":
            return setting(rest)
        case "list":
            return LISTS[rest]()
        case _:
            raise ValueError(f"{name}: no directive {line}")


def page(source: Path, date: str) -> str:
    """A page in roff."""
    lines = ['.\\" Made by tools/man.py from docs/man; SPDX-License-Identifier: MIT']
    known = server_settings() | policy_settings()
    pending: Iterable[str] = ()
    for line in source.read_text(encoding="utf-8").splitlines():
        if line.startswith('.\\"'):
            continue
        if line.startswith(("@", ".SH", ".SS")):
            lines += pending
            pending = ()
        if line.startswith("@setting "):
            pending = bounds(known[line.removeprefix("@setting ")])
        if line.startswith("@"):
            lines += directive(line, source.name, date)
        else:
            lines.append(re.sub(r"(?<!\\)-", r"\\-", line))
    return "\n".join(lines) + "\n"


def build_date(environ: Mapping[str, str]) -> str:
    epoch = environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return ""
    return f"{datetime.datetime.fromtimestamp(int(epoch), datetime.UTC):%Y-%m-%d}"


def pages() -> list[Path]:
    return sorted(path for path in SOURCES.iterdir() if path.suffix[1:].isdigit())


def write(target: Path, date: str) -> None:
    """All pages, and nothing that was a page once."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    for source in pages():
        (target / source.name).write_text(page(source, date), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), build_date(os.environ))
