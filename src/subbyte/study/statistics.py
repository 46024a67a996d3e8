"""Means over seeds and their 95 % confidence intervals, by Student's t: for few runs, each an independent draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """mean +- half: the interval that holds the true mean with probability CONFIDENCE. half is None for one value."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """The lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The upper end."""
        return None if self.half is None else self.mean + self.half

    def text(self, factor: float = 1.0, digits: int = 2) -> str:
        """The interval times `factor`, for a table.

        >>> Interval(0.9123, 0.0042, 3).text(100)
        '91.23 ± 0.42'
        """
        half = "" if self.half is None else f" ± {self.half * factor:.{digits}f}"
        return f"{self.mean * factor:.{digits}f}{half}"


def interval(values: Sequence[float]) -> Interval:
    """The mean of n values and t s / sqrt(n), with t of n - 1 degrees of freedom and s the sample's deviation.

    >>> i = interval([1.0, 2.0, 3.0])
    >>> round(i.mean, 3), round(i.half, 3)
    (2.0, 2.484)
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Interval(mean, student_quantile(0.5 + CONFIDENCE / 2, n - 1) * deviation / math.sqrt(n), n)


def student_probability(t: float, freedom: int) -> float:
    """P(T <= t) for Student's t with whole degrees of freedom, by its finite series.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if freedom < 1:
        raise ValueError(f"Student's t has 1 degree of freedom or more, not {freedom}")
    theta = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(theta) ** 2
    odd = freedom % 2
    total, term = 0.0, math.cos(theta) if odd else 1.0
    for k in range(1 + odd, freedom, 2):  # k = 2, 4, ... (odd) or 1, 3, ... (even): the term of power k - 1
        total += term
        term *= cos2 * k / (k + 1)
    inside = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
    return 0.5 + inside / 2


def student_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability, by bisection.

    >>> round(student_quantile(0.975, 2), 4)
    4.3027
    """
    if not 0.5 <= probability < 1:
        raise ValueError(f"a quantile is asked for a probability in [0.5, 1), not {probability}")
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if student_probability(middle, freedom) < probability else (low, middle)
    return high
