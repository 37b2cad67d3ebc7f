# SPDX-License-Identifier: MIT
"""The project of this working tree, installed: the layer that test machines get on their root.

The layer is made the way the package is: `make install DESTDIR=` with the suite's own protoc and
Python, then what a package's postinst does. It is kept in the cache by the hash of the sources, so
an unchanged tree costs nothing and a changed one about two seconds a suite.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.machine.rig import Cache, Nspawn, build_layer

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE = Path(__file__).resolve().parents[2]
SOURCES = (
    *("joblet", "rnx", "proto", "units", "tools", "docs/man"),
    *("Makefile", "pyproject.toml", "setup.py"),
)
"""All that `make install` may read."""

INSTALL_S = 120

# Unpacked with tar, not cp: /lib and /bin are links in a machine and must stay that.
INSTALL = """
set -e
cp -r /mnt /root/build
make -C /root/build --no-print-directory install DESTDIR=/root/out PREFIX=/usr
tar -C /root/out -cf - . | tar -C / --no-overwrite-dir --keep-directory-symlink -xf -
"""

# What debhelper's snippets do when the package is configured: byte code, users, directories,
# certificates and configuration, units.
CONFIGURE = """
set -e
cd /root/out
find . -name '*.py' -printf '/%h\\n' | sort -u | xargs -r python3 -m compileall -q -l
systemd-sysusers
find usr/lib/tmpfiles.d -name '*.conf' -printf '%f\\n' 2>/dev/null |
    xargs -r systemd-tmpfiles --create
systemctl daemon-reload
joblet cert init
find . -path '*/systemd/system/*' -type f -exec grep -l '^\\[Install\\]' {} + |
    xargs -r -n1 basename | xargs -r systemctl enable
rm -rf /root/out /root/build
"""


def project_layer(suite: str, cache: Cache | None = None) -> list[Path]:
    """The layers of the installed project for one suite, built when the tree has changed."""
    cache = cache or Cache()
    with tempfile.TemporaryDirectory(prefix="joblet-tree-") as name:
        # A copy first: somebody may be editing, and what is hashed must be what is installed.
        copy = Path(name) / "tree"
        copy.mkdir()
        for source in SOURCES:
            _copy(TREE / source, copy / source)
        cache.prune("layer")
        layer = build_layer(
            suite,
            [],
            _install,
            [INSTALL, CONFIGURE, _hash(copy)],
            what="the installed project",
            binds_ro={copy: "/mnt"},
            cache=cache,
        )
    return [layer]


def _install(machine: Nspawn) -> None:
    for script in (INSTALL, CONFIGURE):
        machine.run(script, check=True, timeout=INSTALL_S)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        shutil.copytree(source, target, ignore=ignored, symlinks=True)
    elif source.exists():
        shutil.copy2(source, target)


def _hash(tree: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(_files(tree)):
        content = path.read_bytes()
        mode = path.stat().st_mode & 0o777
        digest.update(f"{path.relative_to(tree)} {mode:o} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _files(tree: Path) -> Iterator[Path]:
    return (path for path in tree.rglob("*") if path.is_file())
