# SPDX-License-Identifier: MIT
"""Builds the wheel of rnx: `python3 tools/wheel.py DIRECTORY`, which is what `make wheel` does.

It is pure Python and serves every system, so its stubs must be of the generation that imports
everywhere (tools/stubs.py); a wheel with others is refused. The same sources give the same bytes:
they are built from a copy, in which nothing of an earlier build lies and in which modes are set,
with the times of SOURCE_DATE_EPOCH, or of the commit. No network: setuptools, wheel and protoc are
the distribution's (tools/host-setup.sh). Standard library only.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SOURCES = (
    "rnx", "proto", "tools/stubs.py", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md",
    "LICENSE",
)  # fmt: skip
"""All that the wheel is made of."""

PACKAGES = ("rnx/", "joblet_pb/")
TIED = b"import runtime_version"
"""What stubs import that are tied to the protobuf they were made with, or newer."""

EARLIEST_S = 315_532_800
"""1980: zip files know no time before."""


class WheelError(Exception):
    """The wheel cannot be built, or is not what it should be."""


def copy_sources(tree: Path) -> list[Path]:
    """Copies SOURCES without byte code, as 0644 and 0755; returns the copied files, sorted."""
    copied = []
    for name in SOURCES:
        source = ROOT / name
        for path in sorted([source] if source.is_file() else source.rglob("*")):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            target = tree / path.relative_to(ROOT)
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            target.chmod(0o644)
            copied.append(target)
    return copied


def build(out: Path) -> Path:
    """The wheel, in the directory `out`. Raises WheelError."""
    with tempfile.TemporaryDirectory(prefix="joblet-wheel-") as name:
        tree, made = Path(name) / "tree", Path(name) / "made"
        copy_sources(tree)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
        how = ["--no-deps", "--no-index", "--no-build-isolation", f"--wheel-dir={made}"]
        environ = {**os.environ, "SOURCE_DATE_EPOCH": str(max(_epoch(), EARLIEST_S))}
        environ.pop("PYTHONPATH", None)  # or the build would find this tree's own rnx
        done = subprocess.run(
            [*pip, *how, str(tree)],
            env=environ,
            umask=0o022,  # files that the build makes go into the wheel with their modes
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise WheelError(f"cannot build the wheel: {done.stdout}{done.stderr}".rstrip())
        (wheel,) = made.glob("*.whl")
        _check(wheel)
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, out / wheel.name))


def _check(wheel: Path) -> None:
    """Raises WheelError for what must not be handed out."""
    if not wheel.name.endswith("-py3-none-any.whl"):
        raise WheelError(f"cannot use {wheel.name}: it is not for every system")
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
        strange = [name for name in names if not name.startswith(PACKAGES)]
        if strange:
            raise WheelError(f"cannot use {wheel.name}: it has {', '.join(strange)}")
        if TIED in file.read("joblet_pb/joblet_pb2.py"):
            raise WheelError(
                f"cannot use {wheel.name}: its stubs import only with the newest protobuf; "
                "install protobuf-compiler and protobuf-compiler-grpc 3.21, as Debian has them"
            )


def _epoch() -> int:
    """Seconds since 1970 for the wheel's times: SOURCE_DATE_EPOCH, the commit's, or none."""
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not said and (ROOT / ".git").exists():
        log = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
        said = subprocess.run(log, check=False, capture_output=True, text=True).stdout.strip()
    return int(said) if said.isdigit() else 0


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: wheel.py DIRECTORY", file=sys.stderr)
        return 2
    try:
        print(build(Path(sys.argv[1])))
    except (WheelError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
