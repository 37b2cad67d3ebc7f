# SPDX-License-Identifier: MIT
"""What an administrator does on the server's machine: `joblet cert`.

    cert.py   keys and certificates; pure
    files.py  the configuration files that hold them, written atomically
    show.py   what is configured
    cli.py    the command line

Must not import grpc.
"""
