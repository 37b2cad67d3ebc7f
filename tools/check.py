# SPDX-License-Identifier: MIT
"""`make check`, `make test` and `make test-full`: every check, what it is, how long it took.

    python3 tools/check.py quick    linters, types, unit and contract tests
    python3 tools/check.py all      the same, and the machine tests; machines are made meanwhile
    python3 tools/check.py full     the same, with the tests that take long, and VMs of both suites

Run from the top of the repository, after tools/host-setup.sh test (or full). The first failure does
not end the run: all are shown, and the exit status is 1.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(
    os.environ.get("JOBLET_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "joblet"
)
TOOLS = CACHE / "venv" / "bin"
STUBS = ROOT / "build" / "stubs"
PYTHON = str(TOOLS / "python")
PYTEST = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
# how long the slowest of the machine tests took
SLOW = ["--durations=20", "--durations-min=5"]
TREES = ["joblet", "rnx", "tests", "tools", "setup.py", "packaging"]

# what people read
TEXTS = (
    ".py",
    ".md",
    ".proto",
    ".service",
    ".socket",
    ".slice",
    ".conf",
    ".catalog",
    ".1",
    ".5",
    ".7",
    ".8",
)
SHELL = (".sh", ".bash", ".postinst", ".prerm", ".postrm")

# what tests/machine/conftest.py and tests/machine/test_clients.py look at
FULL = {"JOBLET_FULL": "1", "JOBLET_VM_SUITES": "bookworm trixie"}

Check = tuple[str, list[str]]


def tracked(*endings: str) -> list[str]:
    """Files of the tree with one of these endings."""
    out = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [name for name in out.splitlines() if name.endswith(endings) and (ROOT / name).exists()]


def lint() -> list[Check]:
    return [
        ("format", [str(TOOLS / "ruff"), "format", "--check", "-q", *TREES]),
        ("lint", [str(TOOLS / "ruff"), "check", "-q", *TREES]),
        ("types", [str(TOOLS / "mypy"), "joblet", "rnx", "tests", "tools"]),
        # names that these systems do not have are mistakes there
        *(
            (
                f"types of rnx on {system}",
                [
                    str(TOOLS / "mypy"),
                    f"--platform={system}",
                    f"--cache-dir=.mypy_cache/{system}",
                    "rnx",
                ],
            )
            for system in ("darwin", "win32")
        ),
        ("dead code", [str(TOOLS / "vulture")]),
        (
            "shell",
            [
                "shellcheck",
                *tracked(*SHELL),
                ".ci/run",
                *(f"packaging/debian/tests/{name}" for name in ("limits", "smoke", "unit")),
            ],
        ),
        # CapInh, of /proc/PID/status; a bullet, in roff; mistyped on purpose; mmdebstrap's
        (
            "spelling",
            ["codespell", "-L", "inh,bu,buildd,lsit,nd", *tracked(*TEXTS)],
        ),
    ]


def unit() -> list[Check]:
    return [("unit and contract tests", [*PYTEST, "-n", "2", "tests/unit", "tests/contract"])]


def machine() -> list[Check]:
    return [
        ("machine tests", [*PYTEST, "-n", "2", "--dist", "loadgroup", *SLOW, "tests/machine"]),
    ]


def run(checks: list[Check], environ: dict[str, str]) -> list[str]:
    """Names of those that failed."""
    failed = []
    for name, command in checks:
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
        verdict = "ok" if code == 0 else f"FAILED ({code})"
        print(f"== {name}: {verdict}, {time.monotonic() - begun:.1f} s", flush=True)
        if code:
            failed.append(name)
    return failed


def main() -> int:
    begun = time.monotonic()
    # a shell's background job ignores these two, and tests of Ctrl-C would inherit that
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    everything = sys.argv[1:] in (["all"], ["full"])
    path = os.pathsep.join([str(ROOT), str(STUBS)])
    environ = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    if sys.argv[1:] == ["full"]:
        environ |= FULL
    subprocess.run([PYTHON, "tools/stubs.py", str(STUBS)], cwd=ROOT, check=True)
    building = None
    if everything:
        # what takes longest first time: roots, kernel, a VM booted once
        build = [PYTHON, "-m", "tests.machine.rig", "build"]
        building = subprocess.Popen(build, cwd=ROOT, env=environ)
    failed = run([*lint(), *unit()], environ)
    if building is not None:
        print("== machines", flush=True)
        if building.wait():
            failed.append("machines")
        else:
            failed += run(machine(), environ)
    print(f"== {'FAILED: ' + ', '.join(failed) if failed else 'all ok'}, "
          f"{time.monotonic() - begun:.0f} s", flush=True)  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
