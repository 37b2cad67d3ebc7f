# SPDX-License-Identifier: MIT
"""Types of dbus-next 0.2.3, as far as Joblet and its tests use it."""

import enum
from typing import Any

from dbus_next import aio as aio

class MessageType(enum.Enum):
    METHOD_CALL = 1
    METHOD_RETURN = 2
    ERROR = 3
    SIGNAL = 4

class MessageFlag(enum.IntFlag):
    NONE = 0
    NO_REPLY_EXPECTED = 1
    NO_AUTOSTART = 2
    ALLOW_INTERACTIVE_AUTHORIZATION = 4

class ErrorType(enum.Enum):
    LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"
    NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
    UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod"

class RequestNameReply(enum.Enum):
    PRIMARY_OWNER = 1
    IN_QUEUE = 2
    EXISTS = 3
    ALREADY_OWNER = 4

class Variant:
    signature: str
    value: Any
    def __init__(self, signature: str, value: Any) -> None: ...

# Fields that a received message may lack are None there; Joblet reads each only where the type of
# the message requires it.
class Message:
    destination: str
    path: str
    interface: str
    member: str
    message_type: MessageType
    flags: MessageFlag
    error_name: str
    reply_serial: int
    sender: str
    signature: str
    body: list[Any]
    serial: int
    def __init__(
        self,
        destination: str | None = None,
        path: str | None = None,
        interface: str | None = None,
        member: str | None = None,
        message_type: MessageType = ...,
        flags: MessageFlag = ...,
        error_name: str | None = None,
        reply_serial: int | None = None,
        sender: str | None = None,
        unix_fds: list[int] = ...,
        signature: str = "",
        body: list[Any] = ...,
        serial: int = 0,
    ) -> None: ...
    @staticmethod
    def new_error(msg: Message, error_name: str, error_text: str) -> Message: ...
    @staticmethod
    def new_method_return(
        msg: Message, signature: str = "", body: list[Any] = ..., unix_fds: list[int] = ...
    ) -> Message: ...
    @staticmethod
    def new_signal(
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: list[Any] | None = None,
        unix_fds: list[int] | None = None,
    ) -> Message: ...
    def _marshall(self, negotiate_unix_fd: bool = False) -> bytearray: ...
