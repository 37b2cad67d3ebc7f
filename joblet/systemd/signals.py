# SPDX-License-Identifier: MIT
"""Who wants which signals of the bus, and who may send them. No I/O; must not import dbus_next.

Invariants:
- A signal reaches a callback only if its sender owns the well-known name that was subscribed to. A
  match rule alone does not see to that: any user of the bus can send us a signal directly.
- Callbacks run one after the other, in the order of the bus. They must be quick, must not block,
  and bound what they keep; what they raise is logged and concerns nobody else.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Final, TypeVarTuple

# The bus itself; it owns its name for ever, and nobody else can send in it.
DRIVER: Final = "org.freedesktop.DBus"
DRIVER_PATH: Final = "/org/freedesktop/DBus"

Args = TypeVarTuple("Args")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Signal:
    path: str
    interface: str
    member: str
    body: list[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """Which signals. `sender` is a well-known name; an empty field matches everything.

    glimpse: text that is somewhere in the message. The bus does not know it: it keeps what nobody
    wants from being decoded. A callback may still be given messages without it.
    """

    sender: str
    interface: str
    member: str = ""
    path: str = ""
    path_namespace: str = ""
    arg0: str = ""
    glimpse: str = ""

    @property
    def rule(self) -> str:
        names = (field.name for field in dataclasses.fields(self) if field.name != "glimpse")
        fields = ((name, getattr(self, name)) for name in names)
        return ",".join(["type='signal'", *(f"{key}='{value}'" for key, value in fields if value)])

    def takes(self, signal: Signal) -> bool:
        """Whether the signal fits, its sender aside."""
        return (
            self.interface == signal.interface
            and self.member in ("", signal.member)
            and self.path in ("", signal.path)
            and (
                self.path_namespace in ("", signal.path)
                or signal.path.startswith(f"{self.path_namespace}/")
            )
            and (not self.arg0 or signal.body[:1] == [self.arg0])
        )


def owner_changes(name: str) -> Match:
    return Match(DRIVER, DRIVER, "NameOwnerChanged", DRIVER_PATH, arg0=name)


Callback = Callable[[Signal], None]


class Subscriptions:
    """The matches of one bus with their callbacks, and the owners of the names in them."""

    def __init__(self) -> None:
        self._callbacks: dict[Match, list[Callback]] = {}
        # member and glimpse of every match, as they stand in a message
        self._glimpses: frozenset[tuple[bytes, bytes]] = frozenset()
        # Well-known name -> unique name, "" for nobody; only what has been learnt is in it.
        self._owners: dict[str, str] = {}
        self._owner_callbacks: dict[str, list[Callable[[str], None]]] = {}

    @property
    def matches(self) -> list[Match]:
        return list(self._callbacks)

    def add(self, match: Match, callback: Callback) -> bool:
        """False if the pair is there already."""
        callbacks = self._callbacks.setdefault(match, [])
        if callback in callbacks:
            return False
        callbacks.append(callback)
        self._look()
        return True

    def remove(self, match: Match, callback: Callback) -> None:
        self._callbacks[match].remove(callback)
        if not self._callbacks[match]:
            del self._callbacks[match]
        self._look()

    def _look(self) -> None:
        found = {(match.member.encode(), match.glimpse.encode()) for match in self._callbacks}
        self._glimpses = frozenset(found)

    def may_want(self, message: bytes) -> bool:
        """Whether a signal is worth decoding: a quick look, which never passes over a wanted one.

        A server gets several signals of every unit that changes, and acts on hardly any.
        """
        return b"NameOwnerChanged" in message or any(
            member in message and glimpse in message for member, glimpse in self._glimpses
        )

    def owner(self, name: str) -> str | None:
        """The unique name of who owns `name`; "" for nobody, None if that is not known yet."""
        return DRIVER if name == DRIVER else self._owners.get(name)

    def learn_owner(self, name: str, owner: str) -> None:
        """From an answer: whatever a signal has said meanwhile is newer."""
        self._owners.setdefault(name, owner)

    def forget_owners(self) -> None:
        """On a new connection unique names mean nothing any more."""
        self._owners.clear()

    def on_owner(self, name: str, callback: Callable[[str], None]) -> None:
        self._owner_callbacks.setdefault(name, []).append(callback)

    def deliver(self, sender: str, signal: Signal) -> None:
        if sender == DRIVER and signal.member == "NameOwnerChanged":
            name, _, owner = signal.body
            known = self._owners.get(name)
            self._owners[name] = owner
            if known is not None and known != owner:
                for changed in self._owner_callbacks.get(name, []):
                    run(changed, owner)
        for match, callbacks in list(self._callbacks.items()):
            if match.takes(signal) and self.owner(match.sender) == sender:
                for callback in list(callbacks):
                    run(callback, signal)


def run(callback: Callable[[*Args], None], *args: *Args) -> None:
    """A callback's bug is logged and must not end the connection of everybody else."""
    try:
        callback(*args)
    except Exception:
        log.exception("A callback of the bus failed")
