# SPDX-License-Identifier: MIT
"""Messages as they come in: dbus-next, whose code it is not, wrote them."""

import struct
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant
from hypothesis import given
from hypothesis import strategies as st

from joblet.systemd import unmarshal
from joblet.systemd.unmarshal import decode

# No NUL and no surrogate is ever in a string of D-Bus.
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)
PATHS = st.lists(st.text("abcXYZ019_", min_size=1, max_size=5), max_size=3).map(
    lambda parts: f"/{'/'.join(parts)}"
)
BASIC: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 2**8 - 1),
    "b": st.booleans(),
    "n": st.integers(-(2**15), 2**15 - 1),
    "q": st.integers(0, 2**16 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "u": st.integers(0, 2**32 - 1),
    "x": st.integers(-(2**63) + 1, 2**63 - 1),
    "t": st.integers(0, 2**64 - 1),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "o": PATHS,
    "g": st.sampled_from(["", "s", "a{sv}", "(ii)ay"]),
}

# What is sent, and what must come out.
Value = tuple[Any, Any]
Typed = tuple[str, Value]


def same(signature: str) -> st.SearchStrategy[Typed]:
    return BASIC[signature].map(lambda value: (signature, (value, value)))


basic = st.sampled_from(sorted(BASIC)).flatmap(same)


def array(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    """Of one element as often as is drawn: arrays have one type."""

    def make(drawn: tuple[Typed, int]) -> Typed:
        (signature, (sent, plain)), count = drawn
        if signature == "y":
            return "ay", (bytes([sent]) * count, bytes([plain]) * count)
        return f"a{signature}", ([sent] * count, [plain] * count)

    return st.tuples(inner, st.integers(0, 3)).map(make)


def dictionary(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    def make(drawn: tuple[Typed, Typed]) -> Typed:
        (key_signature, (key, _)), (signature, (sent, plain)) = drawn
        return f"a{{{key_signature}{signature}}}", ({key: sent}, {key: plain})

    return st.tuples(basic, inner).map(make)


def structure(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    def make(members: list[Typed]) -> Typed:
        signature = "".join(member for member, _ in members)
        values = [value for _, value in members]
        return f"({signature})", ([sent for sent, _ in values], [plain for _, plain in values])

    return st.lists(inner, min_size=1, max_size=3).map(make)


def variant(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    return inner.map(lambda typed: ("v", (Variant(typed[0], typed[1][0]), typed[1][1])))


typed = st.recursive(
    basic,
    lambda inner: array(inner) | dictionary(inner) | structure(inner) | variant(inner),
    max_leaves=6,
)


def marshalled(message: Message, serial: int = 7) -> bytes:
    message.serial = serial
    return bytes(message._marshall())


@given(st.lists(typed, max_size=4))
def test_every_value_comes_out_as_it_went_in(values: list[Typed]) -> None:
    signature = "".join(one for one, _ in values)
    if len(signature) > 255:
        return
    message = Message.new_signal("/a", "b.c", "D", signature, [sent for _, (sent, _) in values])
    assert decode(marshalled(message)).body == [plain for _, (_, plain) in values]


def test_fields_of_the_header() -> None:
    signal = Message.new_signal("/a/b", "c.d", "E", "s", ["f"])
    signal.sender = ":1.9"
    found = decode(marshalled(signal))
    assert found.kind == unmarshal.SIGNAL
    assert (found.path, found.interface, found.member) == ("/a/b", "c.d", "E")
    assert (found.sender, found.body, found.serial) == ("", ["f"], 7)  # the bus adds the sender

    error = Message(
        message_type=MessageType.ERROR,
        error_name="a.b.C",
        reply_serial=2**32 - 1,
        signature="s",
        body=["no"],
    )
    found = decode(marshalled(error))
    assert found.kind == unmarshal.ERROR
    assert (found.error_name, found.reply_serial, found.path) == ("a.b.C", 2**32 - 1, "")

    call = Message("a.b", "/c", "d.e", "F", flags=MessageFlag.NO_REPLY_EXPECTED)
    found = decode(marshalled(call))
    assert found.kind == unmarshal.METHOD_CALL
    assert found.flags & unmarshal.NO_REPLY_EXPECTED


def test_the_other_byte_order() -> None:
    def text(code: int, kind: str, value: bytes) -> bytes:
        head = struct.pack(">B2sBI", code, b"\1" + kind.encode(), 0, len(value))
        whole = head + value + b"\0"
        return whole + bytes(-len(whole) % 8)

    fields = text(1, "o", b"/a") + text(2, "s", b"b.c") + text(3, "s", b"D")
    fields += struct.pack(">B2sB", 8, b"\1g", 0) + b"\2qt\0"
    body = struct.pack(">H6xQ", 258, 2**40 + 1)
    head = struct.pack(">BBBBIII", ord("B"), 4, 1, 1, len(body), 66, len(fields))
    message = head + fields + bytes(-(len(head) + len(fields)) % 8) + body
    found = decode(message)
    assert (found.path, found.interface, found.member) == ("/a", "b.c", "D")
    assert (found.serial, found.body) == (66, [258, 2**40 + 1])


SAMPLE = marshalled(
    Message.new_signal(
        "/org/freedesktop/systemd1/unit/a",
        "org.freedesktop.DBus.Properties",
        "PropertiesChanged",
        "sa{sv}as",
        [
            "org.freedesktop.systemd1.Unit",
            {
                "ActiveState": Variant("s", "active"),
                "Job": Variant("(uo)", [7, "/org/freedesktop/systemd1/job/7"]),
                "Mask": Variant("ay", b"\1\2"),
                "Many": Variant("a(st)", [["a", 1], ["b", 2]]),
            },
            ["Invalid"],
        ],
    )
)


@given(st.data())
def test_damaged_messages_are_refused_or_read(data: st.DataObject) -> None:
    damaged = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(SAMPLE) - 1))] = data.draw(st.integers(0, 255))
    for message in (bytes(damaged), bytes(damaged[: data.draw(st.integers(0, len(SAMPLE)))])):
        try:
            found = decode(message)
        except ValueError:
            continue
        assert isinstance(found.body, list)


@pytest.mark.parametrize(
    "signature", ["z", "a", "(", "(s", "a{s", "a{ss", "a{sss}", "a{avs}", "a{vs}", "a()", "()", "r"]
)
def test_signatures_that_are_none(signature: str) -> None:
    good = marshalled(
        Message.new_signal("/a", "b.c", "D", "x" * len(signature), [0] * len(signature))
    )
    place = good.index(b"x" * len(signature) + b"\0")
    bad = good[:place] + signature.encode() + good[place + len(signature) :]
    with pytest.raises(ValueError, match=r"KeyError|IndexError|struct|dictionary"):
        decode(bad)


def test_nesting_without_end() -> None:
    depth = 50_000
    body = b"\1v\0" * depth + b"\1y\0" + b"\5"
    good = marshalled(Message.new_signal("/a", "b.c", "D", "v", [Variant("y", 5)]))
    head = bytearray(good[: -len(b"\1y\0\5")])
    head[4:8] = len(body).to_bytes(4, "little")
    with pytest.raises(ValueError, match="Recursion"):
        decode(bytes(head) + body)
