# SPDX-License-Identifier: MIT
"""Messages of D-Bus as they come in: bytes to plain Python values. Pure; must not import dbus_next.

Its own decoder, because a server reads a dozen signals for every job: one PropertiesChanged of a
unit takes dbus-next 0.2.3 about 200 µs and this 36. Arrays are lists, `ay` bytes, structs lists,
dictionaries dicts, and of a variant its value is left. Format: D-Bus specification, "Marshaling".

Readers of one type take the message and a position, and give the value and the position behind it.
They are made once for each signature and byte order.
"""

import dataclasses
import functools
import struct
from collections.abc import Callable
from typing import Any, Final

METHOD_CALL: Final = 1
METHOD_RETURN: Final = 2
ERROR: Final = 3
SIGNAL: Final = 4

NO_REPLY_EXPECTED: Final = 1

# Codes of the header fields that are read.
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, _DESTINATION, SENDER, SIGNATURE = range(1, 9)

ORDERS: Final = {ord("l"): "<", ord("B"): ">"}

# struct's codes of the types of a fixed size; each is aligned to its size.
FIXED: Final = {
    "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I",
}  # fmt: skip

# What else has an alignment above 1.
ALIGNMENT: Final = {"b": 4, "s": 4, "o": 4, "a": 4, "(": 8, "{": 8}

# What each kind of message cannot do without.
REQUIRED: Final = {
    METHOD_CALL: (PATH, MEMBER),
    METHOD_RETURN: (REPLY_SERIAL,),
    ERROR: (ERROR_NAME, REPLY_SERIAL),
    SIGNAL: (PATH, INTERFACE, MEMBER),
}

Reader = Callable[[bytes, int], tuple[Any, int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Incoming:
    """A message. Fields that it does not have are "" or 0."""

    kind: int
    flags: int
    serial: int
    path: str
    interface: str
    member: str
    error_name: str
    reply_serial: int
    sender: str
    body: list[Any]


def kind(message: bytes) -> int:
    """The kind of a whole message, undecoded."""
    return message[1]


def decode(message: bytes) -> Incoming:
    """A whole message. Raises ValueError for what is none."""
    try:
        return _decode(message)
    except (IndexError, KeyError, struct.error, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _decode(message: bytes) -> Incoming:
    order = ORDERS[message[0]]
    _, kind, flags, _, size, serial = struct.unpack_from(f"{order}BBBBII", message)
    [read_fields] = _readers(order, "a(yv)")
    pairs, end = read_fields(message, 12)
    fields = dict(pairs)
    for code in REQUIRED.get(kind, ()):
        if not fields.get(code):
            raise ValueError(f"header field {code} is missing")
    body = []
    at = start = end + -end % 8
    for read in _readers(order, _text(fields, SIGNATURE)):
        value, at = read(message, at)
        body.append(value)
    if at != start + size or at != len(message):
        raise ValueError(f"its body ends at {at} and not at {start + size}")
    reply_serial = fields.get(REPLY_SERIAL, 0)
    if type(reply_serial) is not int:
        raise ValueError("the serial it answers is no number")
    return Incoming(
        kind,
        flags,
        serial,
        _text(fields, PATH),
        _text(fields, INTERFACE),
        _text(fields, MEMBER),
        _text(fields, ERROR_NAME),
        reply_serial,
        _text(fields, SENDER),
        body,
    )


def _text(fields: dict[int, Any], code: int) -> str:
    value = fields.get(code, "")
    if not isinstance(value, str):
        raise ValueError(f"header field {code} is no text")
    return value


@functools.lru_cache(maxsize=512)
def _readers(order: str, signature: str) -> tuple[Reader, ...]:
    """One reader for each complete type of a signature. Raises KeyError, IndexError."""
    readers = []
    while signature:
        reader, signature = _compile(order, signature)
        readers.append(reader)
    return tuple(readers)


def _compile(order: str, signature: str) -> tuple[Reader, str]:
    """A reader for the first complete type, and what is left of the signature."""
    code, rest = signature[0], signature[1:]
    match code:
        case "y":
            return _read_byte, rest
        case "b":
            return _boolean(order), rest
        case "s" | "o":
            return _string(order), rest
        case "g":
            return _read_signature, rest
        case "v":
            return _variant(order), rest
        case "a":
            return _array(order, rest)
        case "(":
            members: list[Reader] = []
            while rest[0] != ")":
                member, rest = _compile(order, rest)
                members.append(member)
            if not members:  # an array of these would never end
                raise ValueError("a struct without members")
            return _struct(members), rest[1:]
        case _:
            return _fixed(order, FIXED[code]), rest


def _read_byte(message: bytes, at: int) -> tuple[int, int]:
    return message[at], at + 1


def _fixed(order: str, code: str) -> Reader:
    layout = struct.Struct(order + code)
    unpack, size = layout.unpack_from, layout.size

    def read(message: bytes, at: int) -> tuple[Any, int]:
        at += -at % size
        return unpack(message, at)[0], at + size

    return read


def _boolean(order: str) -> Reader:
    read_number = _fixed(order, "I")

    def read(message: bytes, at: int) -> tuple[bool, int]:
        number, at = read_number(message, at)
        return bool(number), at

    return read


def _string(order: str) -> Reader:
    unpack = struct.Struct(f"{order}I").unpack_from

    def read(message: bytes, at: int) -> tuple[str, int]:
        at += -at % 4
        begin = at + 4
        end = begin + unpack(message, at)[0]
        if message[end]:
            raise ValueError("a string without its end")
        return message[begin:end].decode(), end + 1

    return read


def _read_signature(message: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + message[at]
    if message[end]:
        raise ValueError("a signature without its end")
    return message[at + 1 : end].decode(), end + 1


def _variant(order: str) -> Reader:
    def read(message: bytes, at: int) -> tuple[Any, int]:
        signature, at = _read_signature(message, at)
        [read_value] = _readers(order, signature)
        return read_value(message, at)

    return read


def _struct(members: list[Reader]) -> Reader:
    def read(message: bytes, at: int) -> tuple[list[Any], int]:
        at += -at % 8
        values = []
        for read_member in members:
            value, at = read_member(message, at)
            values.append(value)
        return values, at

    return read


def _array(order: str, rest: str) -> tuple[Reader, str]:
    """An array with the element type that `rest` begins with."""
    unpack = struct.Struct(f"{order}I").unpack_from
    code = rest[0]
    alignment = ALIGNMENT.get(code) or (struct.calcsize(f"={FIXED[code]}") if code in FIXED else 1)

    def bounds(message: bytes, at: int) -> tuple[int, int]:
        at += -at % 4
        begin = at + 4
        begin += -begin % alignment
        end: int = begin + unpack(message, at)[0]
        if end > len(message):
            raise ValueError("an array that is longer than its message")
        return begin, end

    if code == "y":

        def read_bytes(message: bytes, at: int) -> tuple[bytes, int]:
            at, end = bounds(message, at)
            return message[at:end], end

        return read_bytes, rest[1:]

    if code == "{":
        if rest[1] in "av({":
            raise ValueError("a dictionary whose keys are not simple")
        read_key, rest = _compile(order, rest[1:])
        read_value, rest = _compile(order, rest)
        if rest[0] != "}":
            raise ValueError("a dictionary's entry with more than two members")

        def read_dict(message: bytes, at: int) -> tuple[dict[Any, Any], int]:
            at, end = bounds(message, at)
            found = {}
            while at < end:
                key, at = read_key(message, at + -at % 8)
                found[key], at = read_value(message, at)
            return found, _exactly(at, end)

        return read_dict, rest[1:]

    read_item, rest = _compile(order, rest)

    def read_list(message: bytes, at: int) -> tuple[list[Any], int]:
        at, end = bounds(message, at)
        found = []
        while at < end:
            item, at = read_item(message, at)
            found.append(item)
        return found, _exactly(at, end)

    return read_list, rest


def _exactly(at: int, end: int) -> int:
    if at != end:
        raise ValueError("an array whose last element is cut off")
    return at
