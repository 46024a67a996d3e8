"""Expected: a figure that a study should reach, and the verdict on what it did reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from subbyte.study.select import Row, differences, diverged, values, where
from subbyte.study.statistics import Interval, interval
from subbyte.study.tables import Table


@dataclass(frozen=True)
class Figure:
    """What is judged, half of its interval where it is a mean, and what is printed beside it. NaN: a run diverged."""

    value: float
    note: str = ""
    half: float | None = None


Measure = Callable[[list[Row]], Figure | None]
"""From a study's rows to the figure; None where the rows for it aren't there yet."""


@dataclass(frozen=True)
class Expected:
    """A claim about a figure: it is at_most or at_least a limit, both in the unit of the text (factor * figure)."""

    text: str
    measure: Measure
    at_most: float | None = None
    at_least: float | None = None
    factor: float = 1.0
    unit: str = ""
    digits: int = 2

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"expected '{self.text}': give at_most or at_least, one of them")

    @property
    def target(self) -> str:
        """The limit, for a table."""
        sign, limit = ("<=", self.at_most) if self.at_least is None else (">=", self.at_least)
        return f"{sign} {limit:g}{self._unit}"

    def judge(self, rows: list[Row]) -> Verdict:
        """What the rows say of it."""
        figure = self.measure(rows)
        if figure is None:
            return Verdict(self, "-", None)
        note = f" ({figure.note})" if figure.note else ""
        value = figure.value * self.factor
        if math.isnan(value):
            return Verdict(self, f"-{note}", -math.inf)
        half = "" if figure.half is None else f" ± {figure.half * self.factor:.{self.digits}f}"
        slack = self.at_most - value if self.at_most is not None else value - (self.at_least or 0.0)
        return Verdict(self, f"{value:.{self.digits}f}{half}{self._unit}{note}", slack)

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""


@dataclass(frozen=True)
class Verdict:
    """measured: the figure as text; slack: by how much it is on the right side of the limit, None if not measured."""

    expected: Expected
    measured: str
    slack: float | None

    @property
    def met(self) -> bool | None:
        """None: not measured yet."""
        return None if self.slack is None else self.slack >= 0

    @property
    def text(self) -> str:
        """met, missed, or not measured, and by how much."""
        if self.slack is None:
            return "not measured"
        if math.isinf(self.slack):
            return "missed: diverged"
        e = self.expected
        return f"{'met' if self.slack >= 0 else 'missed'} by {abs(self.slack):.{e.digits}f}{e._unit}"

    def cells(self) -> list[str]:
        """Its line of the table: what, target, measured, verdict."""
        return [self.expected.text, self.expected.target, self.measured, self.text]


def table(expected: Sequence[Expected], rows: list[Row]) -> Table:
    """Every claim with its verdict."""
    return Table(
        "Expected and measured", ("figure", "target", "measured", ""), [e.judge(rows).cells() for e in expected]
    )


# ------------------------------------------------------------------------------------------------------- measures


def _figure(found: list[Row], numbers: list[float], pick: Callable[[Interval], float] | None = None) -> Figure | None:
    """The mean of the numbers with its interval, or what `pick` takes from it."""
    if diverged(found):
        return Figure(math.nan, f"{diverged(found)} of {len(found)} runs diverged")
    if not numbers:
        return None
    i = interval(numbers)
    seeds = f"{i.n} seed{'s' if i.n > 1 else ''}"
    return Figure(i.mean, seeds, i.half) if pick is None else Figure(pick(i), seeds)


def mean(variant: str, field: str = "value", group: str = "") -> Measure:
    """The mean over seeds."""

    def measure(rows: list[Row]) -> Figure | None:
        found = where(rows, variant=variant, group=group)
        return _figure(found, values(found, field))

    return measure


def loss(variant: str, baseline: str = "float", group: str = "") -> Measure:
    """baseline - variant, the mean over paired seeds."""

    def measure(rows: list[Row]) -> Figure | None:
        found = where(rows, variant=variant, group=group)
        return _figure(found, [-d for d in differences(rows, variant, baseline, group)])

    return measure


def worst_loss(variant: str, baseline: str = "float", group: str = "") -> Measure:
    """baseline - variant of the seed where it is largest."""

    def measure(rows: list[Row]) -> Figure | None:
        found = where(rows, variant=variant, group=group)
        losses = [-d for d in differences(rows, variant, baseline, group)]
        return _figure(found, losses, lambda i: max(losses))

    return measure


def advantage(variant: str, other: str, group: str = "") -> Measure:
    """The upper end of the interval of variant - other: below 0, variant is worse beyond the interval."""

    def measure(rows: list[Row]) -> Figure | None:
        found = where(rows, variant=variant, group=group)
        return _figure(found, differences(rows, variant, other, group), lambda i: i.mean if i.high is None else i.high)

    return measure


def ratio(variant: str, other: str, field: str, group: str = "") -> Measure:
    """Mean of a field over that of another variant."""

    def measure(rows: list[Row]) -> Figure | None:
        a, b = (values(where(rows, variant=name, group=group), field) for name in (variant, other))
        return Figure(interval(a).mean / interval(b).mean) if a and b else None

    return measure


def largest(field: str, **fields: Any) -> Measure:
    """The largest value of a field over all rows that have it."""

    def measure(rows: list[Row]) -> Figure | None:
        numbers = values(where(rows, **fields), field)
        return Figure(max(numbers), f"{len(numbers)} tensors") if numbers else None

    return measure


def share_at_most(field: str, limit: float, **fields: Any) -> Measure:
    """The share of rows in which the field is at most the limit."""

    def measure(rows: list[Row]) -> Figure | None:
        numbers = values(where(rows, **fields), field)
        good = sum(v <= limit for v in numbers)
        return Figure(good / len(numbers), f"{good} of {len(numbers)} tensors") if numbers else None

    return measure
