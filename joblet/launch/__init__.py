# SPDX-License-Identifier: MIT
"""The job's own processes before its command: zygote and PID 1. stdlib alone, nothing else of
joblet."""
