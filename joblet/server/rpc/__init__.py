# SPDX-License-Identifier: MIT
"""The wire: thin handlers, proto <-> model, errors -> status. The only importers of grpc in the
server."""

import os

# gRPC's C library writes to stderr what becomes an error of ours anyway; it looks at this once
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
