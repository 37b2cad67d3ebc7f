# SPDX-License-Identifier: MIT
"""Init mode: the root half. No network, no grpc; the peer is the server, and it may be hostile."""
