# SPDX-License-Identifier: MIT
"""Joblet: runs other people's commands on a Linux host, safely and under limits."""

__version__ = "0.1.0"
