"""Means over a step: numerators and denominators summed once, never means of means."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsFloat


class Tally:
    """Sums by metric key; a mean that nothing was counted for is left out."""

    def __init__(self) -> None:
        self._total: dict[str, float] = defaultdict(float)
        self._count: dict[str, float] = defaultdict(float)
        self._value: dict[str, float] = {}

    def add(self, key: str, total: SupportsFloat, count: SupportsFloat) -> None:
        """Adds to a mean's numerator and denominator."""
        self._total[key] += float(total)
        self._count[key] += float(count)

    def sum(self, key: str, amount: SupportsFloat) -> None:
        """Adds to a sum."""
        self._value[key] = self._value.get(key, 0.0) + float(amount)

    def put(self, key: str, value: SupportsFloat) -> None:
        """Sets a value that is not a mean."""
        self._value[key] = float(value)

    def largest(self, key: str, value: SupportsFloat) -> None:
        """Keeps the largest value seen."""
        self._value[key] = max(self._value.get(key, float("-inf")), float(value))

    @contextmanager
    def timed(self, key: str) -> Iterator[None]:
        """Adds the seconds spent inside."""
        start = time.perf_counter()
        yield
        self.sum(key, time.perf_counter() - start)

    def rate(self, key: str, amount: SupportsFloat, seconds: str) -> None:
        """Sets a value to an amount for each second that was spent under another key."""
        self.put(key, float(amount) / self._value[seconds])

    def metrics(self) -> dict[str, float]:
        """Every mean, sum and value, by key."""
        means = {k: t / self._count[k] for k, t in self._total.items() if self._count[k] > 0}
        return dict(sorted({**means, **self._value}.items()))
