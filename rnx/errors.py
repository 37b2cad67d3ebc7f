# SPDX-License-Identifier: MIT
"""What can go wrong in rnx, as one line for people: "cannot X: reason; what to do next". No I/O.

    RnxError
    ├── UsageError      the command line is wrong
    ├── ConfigError     no configuration, or one that cannot be used
    ├── Unreachable     no answer: not connected, connection lost, deadline passed
    │   └── BrokenOff   the server had enough of waiting for us: go on from where it stood
    └── ServerError     the server answered with an error, in its own words

A subclass stands where a caller decides by it: Unreachable is tried again while a job is followed,
BrokenOff at once, UsageError names the help to read. Exit codes are rnx.exits' business.
"""


class RnxError(Exception):
    """`text` is shown to the user as it is."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class UsageError(RnxError):
    """`following`: the command line asked to follow or to wait, which decides the exit code.
    `command`: the words whose --help tells how it is done, filled in by who knows them."""

    def __init__(self, text: str, *, following: bool = False) -> None:
        super().__init__(text)
        self.following = following
        self.command = ""


class ConfigError(RnxError):
    pass


class Unreachable(RnxError):
    pass


class BrokenOff(Unreachable):
    pass


class ServerError(RnxError):
    """`code` is the name of a gRPC status: NOT_FOUND, PERMISSION_DENIED, …"""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
