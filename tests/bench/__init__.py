# SPDX-License-Identifier: MIT
"""Measurements with peers beside us, in one run on one machine: `make bench`.

Figures, never verdicts: a bar in a timed run fails on a busy machine and proves nothing on a quiet
one. __main__.py makes the machine and prints; guest/ is what measures, inside it.
"""
