# SPDX-License-Identifier: MIT
"""One module a command of rnx; each has its click command as `command`."""
