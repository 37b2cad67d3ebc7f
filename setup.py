# SPDX-License-Identifier: MIT
"""Only what joblet_pb needs, which the build makes; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).resolve().parent
# last: tools/wheel.py must not stand for the package that setuptools may need
sys.path.append(str(ROOT / "tools"))

import stubs  # noqa: E402  (lies beside us in the source package, and is not installed)


class BuildPy(build_py):
    """Adds the stubs to what is built, or, for an editable install, to the source tree."""

    def run(self) -> None:
        super().run()
        try:
            stubs.generate(ROOT if self.editable_mode else Path(self.build_lib))
        except stubs.StubsError as error:
            sys.exit(str(error))


class EggInfo(egg_info):
    """Names the package beside those that setuptools found in the tree."""

    def run(self) -> None:
        super().run()
        path = Path(self.egg_info) / "top_level.txt"
        names = {*path.read_text().split(), stubs.PACKAGE}
        path.write_text("".join(f"{name}\n" for name in sorted(names)))


setup(cmdclass={"build_py": BuildPy, "egg_info": EggInfo})
