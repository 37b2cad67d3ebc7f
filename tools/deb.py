# SPDX-License-Identifier: MIT
"""`make deb`: the Debian packages of this working tree, as it is, built in a clean root of a suite.

    python3 -m tools.deb SUITE [DIRECTORY]    source and binary packages; build/deb/SUITE by default

The source is what git would commit of the working tree: nothing that it ignores gets in. It is
built with packaging/debian as debian/, by an unprivileged user, without network, in a throw-away
copy of a root that has what debian/control asks for. What is in the cache is not built again: the
packages are the same, bit by bit, from the same source.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.machine.rig import RigError, roots
from tests.machine.rig.cache import Cache, key_of
from tests.machine.rig.chroot import USER, run

TREE = Path(__file__).resolve().parent.parent
BUILD_S = 600
KIND = "deb"
TESTS = "tests/"
VERSIONS = ("joblet/__init__.py", "rnx/__init__.py")


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a build differs from the one that users get."""

    quick: bool = False
    """Binary packages alone, without the tests: the same .deb files, sooner."""
    version: str = ""
    """Another version than the tree's: what an upgrade goes to."""
    edits: tuple[tuple[str, str, str], ...] = ()
    """Changes to the source: file, text, what stands there instead."""
    elsewhere: bool = False
    """By somebody else: another path, umask, locale, time zone and home. It must not show."""


def build(suite: str, cache: Cache | None = None, variant: Variant | None = None) -> Path:
    """The directory with what was built. Raises RigError with the end of the build's output."""
    cache, variant = cache or Cache(), variant or Variant()
    cache.prune(KIND)
    with tempfile.TemporaryDirectory(prefix="joblet-deb-") as name:
        # A copy first: somebody may be editing, and what is hashed must be what is built.
        source = Path(name) / f"joblet-{variant.version or version_of()}"
        export(source, without=TESTS if variant.quick else "")
        if variant.version:
            _next_version(source, variant.version)
        for file, old, new in variant.edits:
            _edit(source / file, old, new)
        root = roots.root(cache, suite, roots.BUILD)
        key = key_of(roots.key(suite, roots.BUILD), dataclasses.astuple(variant), digest(source))
        what = f"{'quick ' if variant.quick else ''}package for {suite}"
        return cache.entry(
            KIND, f"{suite}-{key}", what, lambda aside: _build(root, source, variant, aside)
        )


def debs(built: Path) -> list[Path]:
    """The binary packages in a directory that build() returned."""
    return sorted(built.glob("*.deb"))


def export(target: Path, *, without: str = "") -> None:
    """The working tree as git sees it, with debian/ where Debian's tools want it."""
    # the tree may be another user's, as a checkout in a container is
    argv = ["git", "-c", f"safe.directory={TREE}", "ls-files", "-z"]
    argv += ["--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=TREE, capture_output=True, check=False)
    if listed.returncode != 0:
        why = listed.stderr.decode(errors="replace").strip()
        raise RigError("copy the working tree", f"git does not list it: {why}")
    for name in sorted(set(listed.stdout.decode().split("\0")) - {""}):
        path = TREE / name
        if not path.is_file() or (without and name.startswith(without)):
            continue  # removed and not yet committed
        copy = target / name.replace("packaging/debian/", "debian/", 1)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        # whatever the umask here is
        copy.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
    for directory in [target, *target.rglob("*/")]:
        directory.chmod(0o755)


def digest(tree: Path) -> str:
    """A hash of names, modes and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        content = path.read_bytes()
        mode = path.stat().st_mode & 0o777
        total.update(f"{path.relative_to(tree)} {mode:o} {len(content)}\n".encode() + content)
    return total.hexdigest()


def version_of(tree: Path = TREE) -> str:
    """What debian/changelog's first entry says."""
    changelog = next(p for p in (tree / "debian", tree / "packaging/debian") if p.is_dir())
    found = re.match(r"joblet \((\S+)\)", (changelog / "changelog").read_text())
    if found is None:
        raise RigError("tell the version", f"{changelog}/changelog does not begin with joblet (…)")
    return found[1]


def _next_version(source: Path, version: str) -> None:
    changelog = source / "debian/changelog"
    text = changelog.read_text()
    entry = text[: text.index("\njoblet (") + 1] if "\njoblet (" in text else text
    old = version_of(source)
    changelog.write_text(f"{entry.replace(old, version, 1)}\n{text}")
    for name in VERSIONS:
        _edit(source / name, f'"{old}"', f'"{version}"')


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if old not in text:
        raise RigError(f"edit {path.name}", f"it does not have {old!r}")
    path.write_text(text.replace(old, new))


def _build(root: Path, source: Path, variant: Variant, aside: Path) -> None:
    aside.mkdir()
    for path in (source.parent, *source.parent.rglob("*")):
        os.chown(path, USER, USER)
    kinds = ["--build=binary"] if variant.quick else ["--build=full"]
    options = ["parallel=2", *(["nocheck"] if variant.quick else [])]
    environ = {"DEB_BUILD_OPTIONS": " ".join(options)}
    if variant.quick:
        environ["DEB_BUILD_PROFILES"] = "nocheck"
    # the export is as clean as it gets
    argv = ["dpkg-buildpackage", "--no-pre-clean", "--unsigned-source", "--unsigned-changes"]
    argv += kinds
    place = "/build"
    if variant.elsewhere:
        place = "/srv/elsewhere/of-somebody"
        argv = ["sh", "-c", 'umask 077; exec "$@"', "sh", *argv]
        environ |= {"LC_ALL": "C", "TZ": "XXX-11:30", "HOME": "/srv"}
    done = run(
        root,
        argv,
        binds={source.parent: place},
        cwd=f"{place}/{source.name}",
        env=environ,
        timeout=BUILD_S,
    )
    if done.returncode != 0:
        raise RigError("build the package", f"exit code {done.returncode}", done.stdout)
    for path in source.parent.iterdir():
        if path.is_file():
            shutil.copyfile(path, aside / path.name)
    (aside / "build.log").write_bytes(done.stdout)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="deb: %(message)s", stream=sys.stderr)
    if not 2 <= len(sys.argv) <= 3:
        print(__doc__, file=sys.stderr)
        return 2
    suite = sys.argv[1]
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else TREE / "build/deb" / suite
    try:
        if os.geteuid() != 0:
            raise RigError("build in a clean root", "that needs root (the build itself does not)")
        built = build(roots.check_suite(suite))
    except RigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(built, target)
    for path in debs(target):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
