# SPDX-License-Identifier: MIT
"""The wire: thin handlers, proto <-> model, errors -> status. The only importers of grpc in the
server."""
