# SPDX-License-Identifier: MIT
"""Only the hook that makes joblet_pb; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import stubs  # noqa: E402  (lies beside us in the source package, and is not installed)


class BuildPy(build_py):
    """Adds the stubs to what is built, or, for an editable install, to the source tree."""

    def run(self) -> None:
        super().run()
        try:
            stubs.generate(ROOT if self.editable_mode else Path(self.build_lib))
        except stubs.StubsError as error:
            sys.exit(str(error))


setup(cmdclass={"build_py": BuildPy})
