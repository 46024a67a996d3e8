"""The bars that `make rtl-bars` holds: ShiftMM against plain INT and against FP16, as counted by yosys for xc7."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .resources import Row, measure_all
from .resources_cases import cases

Rows = Mapping[str, Row]


@dataclass(frozen=True)
class Bar:
    """A figure and its limit. cases: the rows it is computed from."""

    what: str
    cases: tuple[str, ...]
    figure: Callable[[Rows], float]
    limit: float
    at_least: bool

    def met(self, figure: float) -> bool:
        """Whether the figure holds the bar."""
        return figure >= self.limit if self.at_least else figure <= self.limit

    def line(self, figure: float) -> str:
        """The result in words."""
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.met(figure) else "MISSED"
        return f"{verdict:6}  {100 * figure:6.2f} %  ({sign} {100 * self.limit:.0f} %)  {self.what}"


FP16_ARRAY = "array/fp16-{}-serial"
"""The FP16 array with that accumulator: the serial one has fewer LUTs than the pipelined one (the table has both)."""

FP16_DSP = "element-dsp/fp16-fp16-serial"
TILE = "array-dsp/int6-tile"


def _lut(rows: Rows, case: str) -> int:
    lut = rows[case].lut
    assert lut is not None
    return lut


def _over(case: str, plain: str) -> Callable[[Rows], float]:
    return lambda rows: _lut(rows, case) / _lut(rows, plain) - 1


def _fewer(case: str, other: str) -> Callable[[Rows], float]:
    return lambda rows: 1 - _lut(rows, case) / _lut(rows, other)


def _dsp_per_mac(row: Row) -> float:
    return (row.dsp or 0) / row.macs


def _fewer_dsp(case: str, other: str) -> Callable[[Rows], float]:
    return lambda rows: 1 - _dsp_per_mac(rows[case]) / _dsp_per_mac(rows[other])


def bars() -> list[Bar]:
    """All of them."""
    out = [
        Bar(
            "more LUTs: ShiftMM INT6 Horner over plain INT6, 8x8 array, int32 accumulators",
            ("array/int6-horner", "array/int6"),
            _over("array/int6-horner", "array/int6"),
            0.01,
            False,
        ),
        Bar(
            "more LUTs: ShiftMM INT6 folded (any order) over plain INT6, 8x8 DSP tile, accumulators included",
            (f"{TILE}-folded", TILE),
            _over(f"{TILE}-folded", TILE),
            0.10,
            False,
        ),
    ]
    for bits, total, limit in ((6, "fp16", 0.78), (6, "fp32", 0.87), (4, "fp16", 0.84), (4, "fp32", 0.91)):
        case, other = f"array/int{bits}-horner", FP16_ARRAY.format(total)
        out.append(
            Bar(
                f"fewer LUTs: ShiftMM INT{bits} Horner than FP16 -> {total}, 8x8 array",
                (case, other),
                _fewer(case, other),
                limit,
                True,
            )
        )
    for variant in ("folded", "horner"):
        out.append(
            Bar(
                f"fewer DSPs for each multiply-accumulate: ShiftMM INT6 {variant} tile than FP16",
                (f"{TILE}-{variant}", FP16_DSP),
                _fewer_dsp(f"{TILE}-{variant}", FP16_DSP),
                0.50,
                True,
            )
        )
    return out


def check(cache: Path | None, say: Callable[[str], None] = print) -> bool:
    """Measure what the bars need, say each result, and return whether all are met."""
    wanted, table = bars(), cases()
    names = sorted({name for bar in wanted for name in bar.cases}, key=list(table).index)
    rows = {row.case: row for row in measure_all([table[name] for name in names], cache)}
    for row in rows.values():
        say(f"        {row.lut:6} LUT {row.lc:6} LC {row.ff:6} FF {row.dsp:3} DSP  {row.case}")
    figures = [(bar, bar.figure(rows)) for bar in wanted]
    for bar, figure in figures:
        say(bar.line(figure))
    return all(bar.met(figure) for bar, figure in figures)
