# SPDX-License-Identifier: MIT
"""rnx, the command line of Joblet and its client library.

Pure Python for Linux, macOS and Windows; never imports joblet. Only rnx.client imports grpc, and
it is imported when a call is about to be made.
"""

__version__ = "0.1.0"
