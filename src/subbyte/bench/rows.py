"""Rows of results/bench.jsonl: one measurement each, with all that is needed to judge it and to make it again.

All rows of a case that share `time` come from one process and took turns: only those are compared with each other.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One implementation in one case.

    seconds       median of `samples`, each the mean of the calls of one round; None where nothing was timed
    spread        interquartile range of the samples over their median
    ops, bytes    2 x multiply-accumulates of one call; bytes that must move (memory suite: bytes held)
    roofline      share of the measured int8 peak or of the copy bandwidth, whichever bounds the suite
    layout        which of several ways was the fastest (memory format, dtype of the input), "" if there was one
    part          share of the work that was timed: below 1 the seconds are a lower bound on the whole
    isa           the best instruction set of this library here, forced_isa: "" or what the whole process was limited to
    kernels       what ran, integer_share: of the multiply-accumulates, counted; error: relative, against float
    skipped       why there is no figure; refused: it was no integer implementation after all, or failed
    time          when the case began, the same in all its rows
    """

    bench: str
    case: str
    impl: str
    device: str
    threads: int
    commit: str
    machine: str
    torch: str
    time: str
    seed: int
    seconds: float | None = None
    spread: float | None = None
    bytes: int | None = None
    ops: int | None = None
    roofline: float | None = None
    samples: list[float] = field(default_factory=list)
    layout: str = ""
    part: float = 1.0
    isa: str = ""
    forced_isa: str = ""
    kernels: list[str] = field(default_factory=list)
    integer_share: float | None = None
    error: float | None = None
    skipped: str = ""
    refused: bool = False
    command: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What one table lists together."""
        return self.bench, self.case, self.forced_isa

    @property
    def measured(self) -> bool:
        return self.seconds is not None or (self.bench == "memory" and self.bytes is not None)

    def to_json(self) -> str:
        """One line; what has its default is left out."""
        plain = dataclasses.asdict(self)
        defaults = {f.name: f.default for f in dataclasses.fields(self)} | {"samples": [], "kernels": []}
        return json.dumps({k: v for k, v in plain.items() if v != defaults[k] or k in ("seconds", "bytes")})


_NAMES = {f.name for f in dataclasses.fields(Row)}


def from_dict(d: dict[str, Any]) -> Row:
    """The inverse of Row.to_json; fields that this version does not know are left out. ValueError if one is missing."""
    try:
        return Row(**{k: v for k, v in d.items() if k in _NAMES})
    except TypeError as error:
        raise ValueError(f"not a row of a benchmark: {error}") from error


def read(path: Path) -> list[Row]:
    """Every row of a file, oldest first. ValueError with the number of a line that is none; OSError without a file."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(from_dict(json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add the rows of a case at the end of the file, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(row.to_json() + "\n" for row in rows))


def latest(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """key -> for each implementation its newest row, in the order of the newest run and then of older ones."""
    newest: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in sorted(rows, key=lambda r: r.time):
        found = newest.setdefault(row.key, {})
        if row.measured or row.impl not in found or not found[row.impl].measured:
            found.pop(row.impl, None)  # so that it moves to the end
            found[row.impl] = row
    return {key: list(found.values()) for key, found in newest.items()}


def together(rows: Iterable[Row], key: tuple[str, str, str], ours: str, peer: str) -> tuple[Row, Row] | None:
    """The newest rows of both implementations that were measured in one run, or None."""
    by_time: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.key == key and row.measured and row.impl in (ours, peer):
            by_time.setdefault(row.time, {})[row.impl] = row
    both = [time for time, found in by_time.items() if len(found) == 2]
    return (by_time[max(both)][ours], by_time[max(both)][peer]) if both else None


@dataclass(frozen=True)
class Ratio:
    """A median with its quartiles."""

    median: float
    low: float
    high: float


def ratio(ours: Row, peer: Row, what: str = "seconds") -> Ratio:
    """How much better ours is. Times: peer / ours round by round, so that what slows a round down slows both.

    what: "seconds" (speed), "bandwidth" (bytes a second) or "bytes" (memory). A peer that ran on part of the work has
    the lower bound of its time here.
    """
    if what == "bytes":
        value = (peer.bytes or 0) / (ours.bytes or 1)
        return Ratio(value, value, value)
    pairs = [p / o for o, p in zip(ours.samples, peer.samples)]  # one that is slow takes part in fewer rounds
    factor = (ours.bytes or 0) / (peer.bytes or 1) if what == "bandwidth" else 1.0
    low, middle, high = quartiles([factor * p for p in pairs])
    return Ratio(middle, low, high)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """(first quartile, median, third quartile)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, middle, third
