# SPDX-License-Identifier: MIT
"""Throw-away Debian machines for tests: containers on this kernel, VMs with a kernel of their own.

machine.py has the interface, nspawn.py and qemu.py the two kinds, layer.py prepared disks,
cache.py where things are kept. `python3 -m tests.machine.rig` is the command line.
Standard library alone.
"""

from .cache import Cache
from .errors import BootFailed, CommandFailed, CommandTimeout, RigError
from .layer import build_layer
from .machine import Machine, Process, Result, eventually
from .nspawn import Nspawn
from .qemu import Vm
from .roots import SUITES

__all__ = [
    "SUITES",
    "BootFailed",
    "Cache",
    "CommandFailed",
    "CommandTimeout",
    "Machine",
    "Nspawn",
    "Process",
    "Result",
    "RigError",
    "Vm",
    "build_layer",
    "eventually",
]
