# SPDX-License-Identifier: MIT
"""What runs inside the machine: one part of the bench a process, its figures as JSON on stdout.

Standard library, the installed rnx and its joblet_pb; nothing else of this tree.
"""
