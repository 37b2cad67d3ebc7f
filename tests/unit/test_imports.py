# SPDX-License-Identifier: MIT
"""Who may import whom: the rooms of the design as a rule on every module's syntax tree.

A room is a privilege, so an import across rooms is a hole in a wall. What is not in the tables
below is refused: a new module or a new package of somebody else's is put there by hand, once it is
clear which room it belongs to. Imports inside functions and for type checkers count like any other.
"""

import ast
import functools
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]

# Room -> what it may import of joblet. A name stands for the module and, if it is a package, for
# all in it.
SHARED = ("link", "systemd", "config", "metrics", "model", "errors")
ROOMS = {
    "joblet.errors": (),
    "joblet.model": ("errors",),
    "joblet.config": ("config", "errors", "model"),
    "joblet.metrics": ("config", "errors"),
    "joblet.systemd": ("systemd", "errors"),
    "joblet.link": ("errors",),
    "joblet.launch": ("launch",),
    "joblet.init": ("init", "launch", *SHARED),
    "joblet.server": ("server", "launch.plan", "launch.protocol", *SHARED),
    "joblet.admin": ("admin", "server.access", "config", "errors", "model"),
    "joblet.__main__": (
        "server.daemon",
        "init.daemon",
        "init.journal_process",
        "launch.zygote",
        "admin.cli",
        "config",
        "errors",
        "systemd.failure",
    ),
}

# Inside the server imports point down: each line may import what stands on the lines below it. What
# stands together is one noun or knows nothing of each other, but for the parts of one noun
# (`records` and `records_file`, the modules of a package).
SERVER = (
    ("daemon",),
    ("rpc",),
    ("supervisor",),
    ("jobtask", "recovery", "deletion"),
    ("change",),
    ("journal", "events", "results", "troubles"),
    ("patience",),
    ("launcher", "ctl", "units", "load"),
    (
        "records",
        "logs",
        "access",
        "limits",
        "admission",
        "ending",
        "audit",
        "counts",
        "host",
        "budgets",
        "allocator",
    ),
    ("cgroup",),
)
NOUNS = ("host", "journal", "records")

LOGS = "joblet.server.logs"

# Packages of others -> who may import them.
FOREIGN = {
    "grpc": ("joblet.server.rpc", "rnx.client"),
    "joblet_pb": ("joblet.server.rpc", "rnx"),
    "google": ("joblet.server.rpc", "rnx.client", "rnx.formats"),
    "dbus_next": ("joblet.systemd.bus",),
    "systemd": ("joblet.systemd.unit_journal",),
    "seccomp": ("joblet.init.seccomp",),
    "cryptography": ("joblet.server.access", "joblet.admin"),
    "yaml": ("joblet.config.reading", "joblet.admin.files", "rnx.config"),
    "zstandard": (
        "joblet.server.logs.blocks",
        "joblet.server.logs.frames",
        "joblet.server.logs.sealing",
    ),
    "click": ("joblet.admin.cli", "rnx"),
}

# Only a process of the job's own becomes something else, and only the zygote, PID 1 and the
# journal's process fork.
FORKS = {"joblet.launch.zygote", "joblet.launch.command", "joblet.init.journal_process"}
EXECS = {"joblet.launch.command"}
# what is run as a job, and by nothing of ours
PAYLOAD = "joblet.launch.probe"

# What a PID 1 carries along: all that is loaded before the zygote is forked.
ZYGOTE = {
    "abc", "array", "ast", "codecs", "collections", "contextlib", "copy", "copyreg", "ctypes",
    "dataclasses", "dis", "encodings", "enum", "errno", "fcntl", "functools", "gc", "genericpath",
    "importlib", "inspect", "io", "itertools", "joblet", "json", "keyword", "linecache", "math",
    "opcode", "operator", "os", "posixpath", "re", "reprlib", "resource", "select", "selectors",
    "signal", "socket", "stat", "struct", "token", "tokenize", "types", "typing", "warnings",
    "weakref",
}  # fmt: skip
ZYGOTE_OURS = {"joblet", "joblet.__main__", "joblet.errors"}  # and all of joblet.launch

# What `rnx --help` pays for. Most of it is click's and dataclasses' own.
RNX_HELP = {
    "abc", "ast", "bz2", "click", "codecs", "collections", "contextlib", "copy", "copyreg",
    "dataclasses", "datetime", "decimal", "dis", "encodings", "enum", "errno", "fnmatch",
    "functools", "genericpath", "gettext", "glob", "grp", "importlib", "inspect", "io",
    "ipaddress", "itertools", "json", "keyword", "linecache", "locale", "lzma", "math", "ntpath",
    "numbers", "opcode", "operator", "os", "pathlib", "platform", "posixpath", "pwd", "re",
    "reprlib", "rnx", "shutil", "signal", "stat", "textwrap", "threading", "token", "tokenize",
    "types", "typing", "urllib", "warnings", "weakref", "zlib",
}  # fmt: skip


def modules(top: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((TREE / top).rglob("*.py")):
        parts = path.relative_to(TREE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict([*modules("joblet"), *modules("rnx")])
every_module = pytest.mark.parametrize("name", MODULES)


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def is_ours(name: str) -> bool:
    return name in MODULES


@functools.cache
def imports(name: str) -> frozenset[str]:
    """The modules that a module names in its imports, absolute."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            for alias in node.names:
                # `from joblet import link` names a module, `from joblet.link import Link` does not
                inner = f"{base}.{alias.name}"
                found.add(inner if is_ours(inner) else base)
    return frozenset(found)


def within(name: str, *places: str) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def room_of(name: str) -> str:
    rooms = [room for room in ROOMS if within(name, room)]
    assert rooms, f"{name} is in no room: put it into ROOMS"
    return rooms[0]


def noun_of(name: str) -> str:
    """The line's word for a module of the server."""
    first = name.split(".")[2]
    return next((noun for noun in NOUNS if first.startswith(f"{noun}_")), first)


def level_of(name: str) -> int:
    noun = noun_of(name)
    levels = [number for number, nouns in enumerate(SERVER) if noun in nouns]
    assert levels, f"{name} is on no line of the server: put it into SERVER"
    return levels[0]


def test_there_is_something_to_check() -> None:
    assert {"joblet.link", "joblet.launch.pid1", "joblet.init.requests", "rnx.cli"} <= set(MODULES)
    assert "joblet.launch.plan" in imports("joblet.launch.pid1")
    assert "joblet.launch.ops" in imports("joblet.launch.pid1")
    assert "joblet.server.daemon" in imports("joblet.__main__")


@every_module
def test_rooms(name: str) -> None:
    if name.startswith("rnx"):
        strangers = {found for found in imports(name) if within(found, "joblet")}
        assert not strangers, f"{name} imports {strangers}: rnx never imports joblet"
        return
    if name == "joblet":
        assert not {found for found in imports(name) if is_ours(found)}
        return
    allowed = [f"joblet.{place}" for place in ROOMS[room_of(name)]]
    for found in imports(name):
        if found == "joblet":  # its version
            assert room_of(name) != "joblet.launch"
        elif within(found, "joblet", "rnx"):
            assert within(found, *allowed), f"{name} must not import {found}"


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, "joblet.server")])
def test_inside_the_server_imports_point_down(name: str) -> None:
    if name == "joblet.server":
        assert not {found for found in imports(name) if is_ours(found)}
        return
    for found in imports(name):
        if within(found, "joblet.server") and noun_of(found) != noun_of(name):
            assert level_of(name) < level_of(found), f"{name} must not import {found}"


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, LOGS) and name != LOGS])
def test_neighbours_in_the_logs(name: str) -> None:
    """A module's docstring says which ones it imports, or that it may import all."""
    says = " ".join((ast.get_docstring(tree(name)) or "").split())
    rule = says.partition("Must not import anything of joblet")[2]
    _, some, named = rule.partition("neighbour")
    words = set(re.findall(r"\w+", named.removeprefix("s").partition(".")[0]))
    if some and not words:
        return
    found = {other.removeprefix(f"{LOGS}.") for other in imports(name) if within(other, LOGS)}
    assert found == {word for word in words if f"{LOGS}.{word}" in MODULES}


@every_module
def test_packages_of_others(name: str) -> None:
    for found in imports(name):
        top = found.partition(".")[0]
        if top in ("joblet", "rnx") or top in sys.stdlib_module_names:
            continue
        assert not within(name, "joblet.launch"), f"{name} imports {found}: stdlib alone"
        assert top in FOREIGN, f"{name} imports {found}: in Debian 12 and 13? Then into FOREIGN"
        assert within(name, *FOREIGN[top]), f"{name} must not import {found}"


@every_module
def test_nothing_runs_a_shell_or_a_program(name: str) -> None:
    """A job is all that is executed, and execve of the launch room does that."""
    assert not imports(name) & {"subprocess", "pty", "multiprocessing", "commands"}
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.keyword):
            assert node.arg != "shell", f"{name}:{node.lineno}"
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            continue
        spelt = f"{node.value.id}.{node.attr}"
        where = f"{name}:{node.lineno} uses {spelt}"
        assert not spelt.startswith(("os.spawn", "os.posix_spawn", "asyncio.create_subprocess")), (
            where
        )
        assert spelt not in ("os.system", "os.popen", "os.forkpty", "os.startfile"), where
        assert spelt != "os.fork" or name in {*FORKS, PAYLOAD}, where
        assert not spelt.startswith("os.exec") or name in {*EXECS, PAYLOAD}, where


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, "joblet")])
def test_no_import_is_hidden(name: str) -> None:
    """What a string names at run time, no table can refuse."""
    assert not {found for found in imports(name) if within(found, "importlib", "runpy", "imp")}
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Name):
            assert node.id not in ("__import__", "eval", "exec"), f"{name}:{node.lineno}"


def loaded(code: str) -> set[str]:
    """The modules of a new interpreter after this code, without what `site` loads on this host."""
    # /usr/lib/python3/dist-packages, where -S leaves it out, and a virtual environment's own
    places = [str(TREE), str(TREE / "build" / "stubs"), *sys.path]
    script = f"import sys; sys.path[:0] = {places!r}\n{code}\n"
    script += "import json as j; print(j.dumps(sorted(sys.modules)), file=sys.stderr)"
    argv = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    return set(json.loads(done.stderr.splitlines()[-1])) - {"__main__", "json.tool"}


def tops(names: set[str]) -> set[str]:
    builtin = set(sys.builtin_module_names) | {"zipimport", "site"}
    found = {name.partition(".")[0] for name in names}
    return {name for name in found - builtin if not name.startswith("_")}


def test_budget_of_the_zygote() -> None:
    names = loaded("import joblet.__main__\nimport joblet.launch.zygote")
    ours = {name for name in names if within(name, "joblet") and not within(name, "joblet.launch")}
    assert ours == ZYGOTE_OURS
    assert tops(names) - ZYGOTE == set()


def test_budget_of_rnx_help() -> None:
    names = loaded("import rnx.cli\nassert rnx.cli.main(['--help']) == 0")
    assert tops(names) - RNX_HELP == set()


@pytest.mark.parametrize("room", ["joblet.launch.plan", "joblet.launch.protocol"])
def test_what_the_server_imports_of_launch_brings_no_more(room: str) -> None:
    """The codecs load nothing of the part that mounts and forks."""
    names = {name for name in loaded(f"import {room}") if within(name, "joblet")}
    assert names == {"joblet", "joblet.launch", room}


def test_init_mode_loads_no_network_and_no_grpc() -> None:
    names = tops(loaded("import joblet.init.daemon"))
    assert not names & {"grpc", "google", "joblet_pb", "cryptography", "http", "urllib3", "sqlite3"}
