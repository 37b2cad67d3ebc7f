# SPDX-License-Identifier: MIT
"""The log engine's instruments, made at one place, used where things happen.

Must not import anything of joblet but joblet.metrics and its neighbour format.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar, Self

from joblet.metrics import Counter, Counters, Gauge, Histogram, Registry
from joblet.server.logs.format import GapKind


@dataclasses.dataclass(frozen=True, slots=True)
class LogMetrics:
    """Chunks are entries of arrival indexes; bytes are bytes of output. Counters are since the
    server's start. A field's name, with PREFIX before it, is the instrument's in the registry."""

    PREFIX: ClassVar = "log_"
    # `block`: a pipe was left unread because there was no room
    STRATEGIES: ClassVar = ("compress", "spill", "sample", "alert", "drop", "block")

    queue_chunks: Gauge  # staged, not yet in the store
    queue_bytes: Gauge
    queue_limit_bytes: Gauge  # memory_limit, as it is now
    bytes_in: Counter  # read from jobs' pipes
    chunks_in: Counter
    bytes_out: Counter  # written to the store
    chunks_out: Counter
    batches: Counter  # writes to the store
    batch_size: Histogram  # chunks in a batch
    write_us: Histogram  # how long a write to the store took
    overflow: Counters  # chunks that a strategy had to take care of, by its name
    gaps: Counters  # entered, by kind
    gap_bytes: Counters  # what is missing there, as far as it is known
    followers: Gauge  # clients that read a log now
    follower_lag_bytes: Gauge  # of the one that is furthest behind the end of its log
    followers_removed: Counter  # for having stalled
    pauses: Counter  # of reading or storing a log, because the stage or the disk refused
    logs_open: Gauge
    _lags: dict[object, Callable[[], int]]

    @classmethod
    def of(cls, registry: Registry) -> Self:
        lags: dict[object, Callable[[], int]] = {}
        made = cls(
            queue_chunks=registry.gauge(f"{cls.PREFIX}queue_chunks"),
            queue_bytes=registry.gauge(f"{cls.PREFIX}queue_bytes"),
            queue_limit_bytes=registry.gauge(f"{cls.PREFIX}queue_limit_bytes"),
            bytes_in=registry.counter(f"{cls.PREFIX}bytes_in"),
            chunks_in=registry.counter(f"{cls.PREFIX}chunks_in"),
            bytes_out=registry.counter(f"{cls.PREFIX}bytes_out"),
            chunks_out=registry.counter(f"{cls.PREFIX}chunks_out"),
            batches=registry.counter(f"{cls.PREFIX}batches"),
            batch_size=registry.histogram(f"{cls.PREFIX}batch_size"),
            write_us=registry.histogram(f"{cls.PREFIX}write_us"),
            overflow=registry.counters(f"{cls.PREFIX}overflow", cls.STRATEGIES),
            gaps=registry.counters(f"{cls.PREFIX}gaps", map(str, GapKind)),
            gap_bytes=registry.counters(f"{cls.PREFIX}gap_bytes", map(str, GapKind)),
            followers=registry.gauge(f"{cls.PREFIX}followers"),
            follower_lag_bytes=registry.gauge(f"{cls.PREFIX}follower_lag_bytes"),
            followers_removed=registry.counter(f"{cls.PREFIX}followers_removed"),
            pauses=registry.counter(f"{cls.PREFIX}pauses"),
            logs_open=registry.gauge(f"{cls.PREFIX}logs_open"),
            _lags=lags,
        )
        made.followers.watch(lambda: len(lags))
        made.follower_lag_bytes.watch(lambda: max((lag() for lag in lags.values()), default=0))
        return made

    def wrote(self, chunks: int, count: int, took_us: float) -> None:
        """A batch of so many chunks with `count` bytes is in the store."""
        self.batches.add()
        self.chunks_out.add(chunks)
        self.bytes_out.add(count)
        self.batch_size.observe(chunks)
        self.write_us.observe(took_us)

    def gap(self, kind: GapKind, count: int | None) -> None:
        """A gap was entered; None: nobody knows how many bytes are missing."""
        self.gaps[kind].add()
        self.gap_bytes[kind].add(count or 0)

    @contextlib.contextmanager
    def following(self, lag: Callable[[], int]) -> Iterator[None]:
        """A client reads a log. lag: how many bytes it is behind. On the event loop, where the
        gauges are read, too."""
        key = object()
        self._lags[key] = lag
        try:
            yield
        finally:
            del self._lags[key]
