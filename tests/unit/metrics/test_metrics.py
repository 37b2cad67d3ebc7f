# SPDX-License-Identifier: MIT
"""Instruments: what they say is true, for any values, from any thread, and they never grow."""

import math
import random
import sys
import threading
from collections.abc import Callable

import pytest

from joblet.metrics import BOUNDS, STEP, WINDOW_S, Histogram, Registry, Summary
from joblet.server.logs import GapKind, LogMetrics

SEEDS = range(30)

Shape = Callable[[], float]


def still() -> float:
    return 0.0


def exact(values: list[float], percent: int) -> float:
    """The smallest value that so many percent of all are not above."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def values_of(seed: int) -> list[float]:
    """Of one of several shapes, down to one value and up to what no bucket has."""
    random_ = random.Random(seed)
    shapes: tuple[Shape, ...] = (
        lambda: random_.uniform(1, 100),
        lambda: random_.lognormvariate(7, 3),
        lambda: float(random_.randint(1, 12)),
        lambda: random_.choice([3.0, 3.0, 3.0, 50_000.0]),
        lambda: random_.expovariate(1 / 2_000_000),
        lambda: random_.uniform(1e8, 1e10),
        lambda: random_.choice(BOUNDS),
    )
    shape = shapes[seed % len(shapes)]
    return [shape() for _ in range(random_.choice([1, 2, 3, 99, 100, 101, 5000]))]


@pytest.mark.parametrize("seed", SEEDS)
def test_quantiles_are_never_too_small_and_at_most_a_bucket_too_large(seed: int) -> None:
    values = values_of(seed)
    histogram = Histogram(still)
    for value in values:
        histogram.observe(value)
    seen = histogram.read()
    assert (seen.count, seen.most) == (len(values), max(values))
    for percent, found in ((50, seen.p50), (99, seen.p99)):
        true = exact(values, percent)
        assert true <= found <= max(values)
        # the first bucket has all up to 1; the last one, what is above all bounds
        assert found <= max(1.0, true * STEP * (1 + 1e-9)) or true > BOUNDS[-1]
    assert seen.p50 <= seen.p99 <= seen.most


def test_without_values_there_is_nothing_to_say() -> None:
    assert Histogram(still).read() == Summary(0, 0.0, 0.0, 0.0)


def test_what_is_old_is_forgotten_but_for_the_count() -> None:
    now = 1000.0
    histogram = Histogram(lambda: now)
    histogram.observe(10)
    now += WINDOW_S - 1
    histogram.observe(1000)
    assert histogram.read().most == 1000
    now += 2  # the second window: the first one still counts
    histogram.observe(20)
    assert (histogram.read().count, histogram.read().most) == (3, 1000)
    now += WINDOW_S  # the third: the first is forgotten
    assert histogram.read() == Summary(3, 20, 20, 20)
    now += WINDOW_S
    assert histogram.read() == Summary(3)
    histogram.observe(5)
    now += 10 * WINDOW_S  # nobody looked for long
    assert histogram.read() == Summary(4)
    histogram.observe(6)
    assert histogram.read() == Summary(5, 6, 6, 6)


def test_a_histogram_does_not_grow() -> None:
    now = 0.0
    histogram = Histogram(lambda: now)
    for number in range(10_000):
        now += 7
        histogram.observe(number * 1e6)
    kept = [value for value in vars(histogram).values() if isinstance(value, list)]
    assert [len(one) for one in kept] == [len(BOUNDS) + 1] * 2


def test_nothing_is_lost_between_threads() -> None:
    registry = Registry(still)
    counter, histogram = registry.counter("c"), registry.histogram("h")
    counters = registry.counters("k", ("a", "b"))

    def work() -> None:
        for number in range(2000):
            counter.add(2)
            counters["a"].add()
            histogram.observe(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    seen = registry.read()
    assert (seen["c"], seen["k"]) == (16_000, {"a": 8000})
    assert isinstance(seen["h"], Summary)
    assert (seen["h"].count, seen["h"].most) == (8000, 1999)


def test_a_registry_knows_its_instruments_by_name() -> None:
    registry = Registry(still)
    gauge, counter = registry.gauge("a_gauge"), registry.counter("a_counter")
    registry.counter("b")
    assert registry.read("a_") == {"gauge": 0, "counter": 0}
    gauge.watch(lambda: 7)
    counter.add(2)
    counter.watch(lambda: 40)
    counter.watch(lambda: 100)
    assert registry.read("a_") == {"gauge": 7, "counter": 142}
    with pytest.raises(ValueError, match="an instrument b already"):
        registry.gauge("b")


def test_a_label_that_nobody_knows_is_a_mistake() -> None:
    counters = Registry(still).counters("c", ("a",))
    with pytest.raises(KeyError):
        counters["b"].add()


def test_what_the_log_engine_does_is_in_its_instruments() -> None:
    registry = Registry(still)
    metrics = LogMetrics.of(registry)
    metrics.wrote(100, 6_400_000, 1500)
    metrics.wrote(50, 100, 900)
    metrics.gap(GapKind.SAMPLED, 10)
    metrics.gap(GapKind.SAMPLED, 5)
    metrics.gap(GapKind.LOST, None)
    seen = registry.read(LogMetrics.PREFIX)
    assert (seen["batches"], seen["chunks_out"], seen["bytes_out"]) == (2, 150, 6_400_100)
    assert (seen["gaps"], seen["gap_bytes"]) == ({"sampled": 2, "lost": 1}, {"sampled": 15})
    assert metrics.write_us.read().most == 1500
    assert metrics.batch_size.read().count == 2
