# SPDX-License-Identifier: MIT
"""Instruments: what a process counts and measures while it works, to be read at any moment.

A Registry makes them and knows them all by name; the composition root makes the registry, and hands
on to each part the instruments that it is to use. A name is the same word in the code, on the wire
and in the documentation.

Any thread may use an instrument at any time. An observation is a few hundred nanoseconds under a
lock of its own, and no instrument ever grows. What a part counts by itself anyway is not counted
twice: `watch` says where it stands.

Pure: no I/O, and no clock but the one that the registry was given.
"""

import bisect
import dataclasses
import threading
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

# Four buckets an octave: a quantile is at most a fifth too large. From 1 to 2^27, which is 134 s in
# microseconds; what is larger is in one bucket more, whose bound is the largest value seen.
STEP: Final = 2**0.25
BOUNDS: Final = tuple(STEP**power for power in range(27 * 4 + 1))
WINDOW_S: Final = 60.0


class Counter:
    """Goes up only. Its value: what was added, and what the watched sources stand at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._added = 0
        self._sources: list[Callable[[], int]] = []

    def add(self, count: int = 1) -> None:
        with self._lock:
            self._added += count

    def watch(self, source: Callable[[], int]) -> None:
        """source: a count that is kept elsewhere; called when the counter is read."""
        self._sources.append(source)

    def read(self) -> int:
        return self._added + sum(source() for source in self._sources)


class Gauge:
    """Goes up and down: what its source says when it is read; 0 until there is one."""

    def __init__(self) -> None:
        self._source: Callable[[], int] = int

    def watch(self, source: Callable[[], int]) -> None:
        self._source = source

    def read(self) -> int:
        return self._source()


class Counters:
    """A counter for each of a few labels, which are all known from the start."""

    def __init__(self, labels: Iterable[str]) -> None:
        self._counters = {label: Counter() for label in labels}

    def __getitem__(self, label: str) -> Counter:
        return self._counters[label]

    def read(self) -> dict[str, int]:
        """Those that are not 0."""
        values = {label: counter.read() for label, counter in self._counters.items()}
        return {label: value for label, value in values.items() if value}


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What a histogram says. `count` is since the beginning, the others of the last minute or two:
    half and 99 of 100 values were not above p50 and p99, none above `most`. 0 without values."""

    count: int = 0
    p50: float = 0.0
    p99: float = 0.0
    most: float = 0.0


class Histogram:
    """How values are distributed, recently: latencies in microseconds, or sizes from 1 on.

    There are two windows of WINDOW_S each, the one that is filled and the one before it, so that a
    quantile tells of the last one to two minutes, and not of last week.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, monotonic."""
        self._clock = clock
        self._lock = threading.Lock()
        self._count = 0
        self._counts, self._most = _empty(), 0.0
        self._old, self._old_most = _empty(), 0.0
        self._until = clock() + WINDOW_S

    def observe(self, value: float) -> None:
        bucket = bisect.bisect_left(BOUNDS, value)
        now = self._clock()
        with self._lock:
            if now >= self._until:
                self._turn(now)
            self._counts[bucket] += 1
            self._count += 1
            if value > self._most:
                self._most = value

    def read(self) -> Summary:
        with self._lock:
            self._turn(self._clock())
            counts = [new + old for new, old in zip(self._counts, self._old, strict=True)]
            most, count = max(self._most, self._old_most), self._count
        total = sum(counts)
        if not total:
            return Summary(count)
        p50, p99 = (_quantile(counts, total, most, percent) for percent in (50, 99))
        return Summary(count, p50, p99, most)

    def _turn(self, now: float) -> None:
        late = now - self._until
        if late < 0:
            return
        fresh = late < WINDOW_S  # else what was filled is too old by itself
        self._old, self._old_most = (self._counts, self._most) if fresh else (_empty(), 0.0)
        self._counts, self._most = _empty(), 0.0
        self._until = self._until + WINDOW_S if fresh else now + WINDOW_S


def _empty() -> list[int]:
    return [0] * (len(BOUNDS) + 1)


def _quantile(counts: list[int], total: int, most: float, percent: int) -> float:
    """The upper bound of the bucket that has it; never above the largest value seen."""
    rank = -(-total * percent // 100)
    for bucket, bound in enumerate(BOUNDS):
        rank -= counts[bucket]
        if rank <= 0:
            return min(bound, most)
    return most


Instrument = Counter | Gauge | Counters | Histogram
Value = int | Summary | dict[str, int]
Made = TypeVar("Made", Counter, Gauge, Counters, Histogram)


class Registry:
    """All instruments of a process, by name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, monotonic; called from any thread."""
        self._clock = clock
        self._instruments: dict[str, Instrument] = {}

    def counter(self, name: str) -> Counter:
        return self._keep(name, Counter())

    def gauge(self, name: str) -> Gauge:
        return self._keep(name, Gauge())

    def counters(self, name: str, labels: Iterable[str]) -> Counters:
        return self._keep(name, Counters(labels))

    def histogram(self, name: str) -> Histogram:
        return self._keep(name, Histogram(self._clock))

    def read(self, prefix: str = "") -> dict[str, Value]:
        """What all instruments whose name begins so stand at now, by the rest of the name."""
        return {
            name.removeprefix(prefix): instrument.read()
            for name, instrument in self._instruments.items()
            if name.startswith(prefix)
        }

    def _keep(self, name: str, instrument: Made) -> Made:
        """Raises ValueError for a name that there is."""
        if name in self._instruments:
            raise ValueError(f"there is an instrument {name} already")
        self._instruments[name] = instrument
        return instrument
