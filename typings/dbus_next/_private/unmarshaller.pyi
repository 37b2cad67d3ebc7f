# SPDX-License-Identifier: MIT
"""Types of dbus-next 0.2.3, as far as Joblet uses it."""

from typing import BinaryIO

from dbus_next import Message

class Unmarshaller:
    def __init__(self, stream: BinaryIO, sock: None = None) -> None: ...
    def unmarshall(self) -> Message | None: ...
