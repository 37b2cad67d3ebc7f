# SPDX-License-Identifier: MIT
"""What to do with a job's output when the stage is nearly full, because the disk is slower.

A job has a Policy: a strategy, from where the stage is under pressure (stage.Room), and what to do
when the strategy's own room is full, too. One job's policy costs no other job a byte.

    compress    staged blocks are compressed where they lie           loses nothing
    spill       staged blocks are moved to a directory on a disk      loses nothing
    sample      of what comes only every Nth chunk is kept            a gap says what is missing
    alert       memory_limit is exceeded, as far as the stage's tmpfs goes, and people are told
    when that is full: block, the job waits, or drop, a gap says what is missing

Only readers ask, and only under pressure.

Must not import anything of joblet but its neighbours stage and, for its types, core.
"""

import collections
import contextlib
import dataclasses
import enum
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from joblet.server.logs.stage import Room, Shelf

if TYPE_CHECKING:
    from joblet.server.logs.core import LogCore

# Of a filesystem that is shared so much is left alone, at most: the stage's, the spill directory's.
_RESERVE_PART: Final = 16
_RESERVE_BYTES: Final = 1 << 30
# Leaving out needs room, too: for its records. Of memory_limit they get so much.
_RECORDS_PART: Final = 8
_RECORD_BYTES: Final = 32
# Kept under pressure: every 2nd chunk at first, every 16th shortly before the stage is full.
_SAMPLE_STEPS: Final = 4


class Verdict(enum.Enum):
    """On one chunk that a pipe may hold."""

    READ = enum.auto()
    WAIT = enum.auto()  # leave it in the pipe
    SAMPLE = enum.auto()  # read it and leave it out
    DROP = enum.auto()  # likewise


class Strategy(Protocol):
    """Any thread."""

    @property
    def name(self) -> str: ...

    def verdict(self, turn: int) -> Verdict | None:
        """On a stream's next chunk, its `turn`th under pressure; None: no room is left."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """What is done for one job."""

    strategy: Strategy
    drops: bool  # when the strategy has no room left
    room: Room

    def verdict(self, turn: int) -> Verdict:
        found = self.strategy.verdict(turn)
        if found is not None:
            return found
        bounds = self.room.bounds
        records = bounds.limit_chunks + bounds.limit_bytes // _RECORDS_PART // _RECORD_BYTES
        return Verdict.DROP if self.drops and self.room.chunks < records else Verdict.WAIT


class Packing:
    """`compress` and `spill`: a Packer makes room while it can, and readers wait for it.

    empty: it found nothing to pack since the stage is full; failing: it has nowhere to put it.
    """

    def __init__(self, name: str, shelf: Shelf, room: Room) -> None:
        self.name = name
        self.shelf = shelf
        self.empty = self.failing = False
        self._room = room

    @property
    def exhausted(self) -> bool:
        return self.empty or self.failing

    def verdict(self, turn: int) -> Verdict | None:
        if not self._room.is_full():
            self.empty = False
            return Verdict.READ
        return None if self.exhausted else Verdict.WAIT


class Sample:
    """Every Nth chunk; N doubles from quarter to quarter of what is left of the stage."""

    name: Final = "sample"

    def __init__(self, room: Room) -> None:
        self._room = room

    def verdict(self, turn: int) -> Verdict | None:
        if self._room.is_full():
            return None
        every = 2 << min(_SAMPLE_STEPS - 1, int(self._room.pressure * _SAMPLE_STEPS))
        return Verdict.SAMPLE if turn % every else Verdict.READ


class Alert:
    """`spare`: bytes that the stage's filesystem has left."""

    name: Final = "alert"

    def __init__(self, room: Room, spare: Callable[[], int]) -> None:
        self._room = room
        self._spare = spare

    def verdict(self, turn: int) -> Verdict | None:
        return Verdict.READ if not self._room.is_full() or self._spare() > 0 else None


class Overflow:
    """The strategies of a store, what they have done, and which logs have something staged.

    Called from any thread. `spill`: a directory that is made when it is needed, None: there is
    none, and who would spill waits. `spare`: bytes that the stage's filesystem has left.
    `on_episode(what, begun)`: from now on alert raises the limit, jobs wait (`block`), or output is
    left out (`sample`, `drop`); or, not `begun`: that is over, there is room again. It must not
    block.
    """

    def __init__(
        self,
        room: Room,
        *,
        spare: Callable[[], int],
        strategy: str = "compress",
        on_full: str = "block",
        spill: Path | None = None,
        on_episode: Callable[[str, bool], None] = lambda _what, _begun: None,
    ) -> None:
        self.room = room
        self.spill = spill
        self.logs: set[LogCore] = set()
        self.packing = {
            "compress": Packing("compress", Shelf.STAGE, room),
            "spill": Packing("spill", Shelf.SPILL, room),
        }
        self._strategies: dict[str, Strategy] = {
            **self.packing,
            "sample": Sample(room),
            "alert": Alert(room, spare),
        }
        self._default = strategy, on_full
        self._on_episode = on_episode
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self._left_out: collections.Counter[str] = collections.Counter()
        self._episode: set[str] = set()

    def policy(self, strategy: str = "", on_full: str = "") -> Policy:
        """ "": as is configured. Raises KeyError."""
        strategy, on_full = strategy or self._default[0], on_full or self._default[1]
        return Policy(self._strategies[strategy], on_full == "drop", self.room)

    def counts(self) -> dict[str, int]:
        """Chunks that each strategy had to take care of; block: pipes left unread."""
        with self._lock:
            return dict(self._counts)

    def count(self, what: str, number: int = 1, *, tell: bool = False) -> None:
        """Something was done; `tell`: people should hear of it, once."""
        with self._lock:
            self._counts[what] += number
            if tell and what not in self._episode and self.room.pressed:
                self._episode.add(what)
                self._on_episode(what, True)  # noqa: FBT003 - what it says is what it is

    def waits(self, policy: Policy, *, begun: bool) -> None:
        """A job's pipe is left unread; `begun`: since now."""
        packing = self.packing.get(policy.strategy.name)
        self.count("block", int(begun), tell=packing is None or packing.exhausted)

    def took(self, policy: Policy, verdict: Verdict) -> None:
        """A chunk was read under pressure, as the verdict said."""
        if verdict is not Verdict.READ:
            self.count("drop" if verdict is Verdict.DROP else "sample", tell=True)
        elif policy.strategy.name == "alert" and self.room.is_full():
            self.count("alert", tell=True)

    def left_out(self, kind: str, count: int) -> None:
        """A gap of so many bytes was entered."""
        with self._lock:
            self._left_out[f"{kind} gaps"] += 1
            self._left_out[f"{kind} bytes"] += count

    def gaps(self) -> dict[str, int]:
        """What was left out: "KIND gaps", "KIND bytes"."""
        with self._lock:
            return dict(self._left_out)

    def relieved(self) -> None:
        """The stage is under pressure no longer."""
        with self._lock:
            for what in sorted(self._episode):
                self._on_episode(what, False)  # noqa: FBT003 - what it says is what it is
            self._episode.clear()


def spare_bytes(path: Path) -> int:
    """What a filesystem has left, less a reserve; negative if that is in use. Raises OSError."""
    found = os.statvfs(path)
    reserve = min(_RESERVE_BYTES, found.f_blocks * found.f_frsize // _RESERVE_PART)
    return found.f_bavail * found.f_frsize - reserve


def spare_or_none(path: Path) -> int:
    """As spare_bytes; nothing where that cannot be said."""
    with contextlib.suppress(OSError):
        return spare_bytes(path)
    return 0
