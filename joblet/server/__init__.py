# SPDX-License-Identifier: MIT
"""Server mode: the half that faces the network, as user joblet, without privileges."""
