"""What the resource table measures: one Case a row, each with the plain integer unit that it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import units
from .baselines import BaselineArray, FixedElement, FloatElement
from .baselines_dot import FusedFloatDot, ScaledDot
from .baselines_float import BF16, E4M3, E5M2, FP16, FP32, FloatFormat

GROUPS = 4
SIDE = 8
LANES = 32
PIPELINED = (0, 1, 2, 3)

Make = Callable[[], Any]

SECTIONS = {
    "array": f"{SIDE} x {SIDE} output-stationary array, LUT fabric only",
    "array-dsp": f"{SIDE} x {SIDE} array with DSP48E1",
    "element": "one processing element with input registers, LUT fabric only",
    "element-dsp": "one processing element with DSP48E1, left to the synthesiser",
    "dot": f"{LANES}-wide dot unit (one result), LUT fabric only",
}


@dataclass(frozen=True)
class Case:
    """One row. macs: multiply-accumulates a cycle; plain: the case that its overhead is counted over."""

    name: str
    label: str
    make: Make
    macs: int
    plain: str = ""
    dsp: bool = False
    delay: bool = True

    @property
    def section(self) -> str:
        """The part of the name before the first slash."""
        return self.name.split("/")[0]


FP8 = {"fp8-e4m3": E4M3, "fp8-e5m2": E5M2}

FP16_ROWS = {"fp16": ("fp16-fp16-serial", "fp16-fp16-pipelined"), "fp32": ("fp16-fp32-serial", "fp16-fp32-pipelined")}
"""Rows that "FP16 -> fp16" and "FP16 -> fp32" stand for; a comparison takes the one with fewer LUTs."""


def cases() -> dict[str, Case]:
    """All rows by name, in the table's order."""
    rows = [*_arrays(), *_tiles(), *_elements(), *_dsp_elements(), *_dots()]
    return {case.name: case for case in rows}


def _element(bits: int, variant: str, groups: int, lanes: int = 1, multiplier: str = "booth") -> Any:
    return units.element(units.spec_for(bits, groups, variant, lanes=lanes, multiplier=multiplier))


def _array(bits: int, variant: str, groups: int, multiplier: str = "booth") -> Any:
    return units.array(units.spec_for(bits, groups, variant, multiplier=multiplier), SIDE, SIDE)


def _tile(bits: int, variant: str, groups: int) -> Any:
    return units.dsp_tile(units.spec_for(bits, groups, variant), SIDE, SIDE)


def _float_array(operand: FloatFormat, total: FloatFormat, cuts: tuple[int, ...], fabric: bool) -> Any:
    return BaselineArray(partial(FloatElement, operand, total, cuts, fabric, registered=False), SIDE, SIDE)


def _integer_name(bits: int, variant: str, groups: int) -> str:
    return f"INT{bits} plain" if variant == "plain" else f"ShiftMM INT{bits} {variant}, {groups} groups"


def _suffix(variant: str) -> str:
    return "" if variant == "plain" else f"-{variant}"


def _groups(variant: str) -> int:
    return 1 if variant == "plain" else GROUPS


def _float_rows(
    section: str, make: Callable[..., Any], fabric: bool, formats: dict[str, FloatFormat], macs: int
) -> list[Case]:
    """A row for each operand format, accumulator and pipelining; make(operand, total, cuts, fabric)."""
    dsp = not fabric
    rows = []
    for name, operand in formats.items():
        totals = {"fp16": FP16, "fp32": FP32} if operand == FP16 else {"fp32": FP32}
        for total_name, total in totals.items():
            for form, cuts in (("serial", ()), ("pipelined", PIPELINED)):
                label = f"{name.upper()} → {total_name}, {form}" + ", 1 MAC a DSP" * (dsp and macs > 1)
                case = f"{section}/{name}-{total_name}-{form}"
                build = partial(make, operand, total, cuts, fabric)
                rows.append(Case(case, label, build, macs, f"{section}/int6", dsp, delay=macs == 1))
    return rows


def _arrays() -> list[Case]:
    rows = []
    for bits in (4, 6, 8):
        plain = f"array/int{bits}"
        for variant in ("plain", "horner", "folded", "product"):
            groups = _groups(variant)
            build = partial(_array, bits, variant, groups)
            rows.append(Case(plain + _suffix(variant), _integer_name(bits, variant, groups), build, SIDE**2, plain))
    return rows + _float_rows("array", _float_array, True, {"fp16": FP16}, SIDE**2)


def _tiles() -> list[Case]:
    rows = []
    for bits in (4, 6):
        plain = f"array-dsp/int{bits}-tile"
        for variant in ("plain", "folded", "horner"):
            groups = _groups(variant)
            label = f"{_integer_name(bits, variant, groups)}, 2 MAC a DSP, int32 accumulators included"
            build = partial(_tile, bits, variant, groups)
            rows.append(Case(plain + _suffix(variant), label, build, SIDE**2, plain, dsp=True))
    plain = "array-dsp/int6"
    for variant in ("plain", "folded"):
        groups = _groups(variant)
        label = f"{_integer_name(6, variant, groups)}, 1 MAC a DSP"
        build = partial(_array, 6, variant, groups, "inferred")
        rows.append(Case(plain + _suffix(variant), label, build, SIDE**2, plain, dsp=True))
    return rows + _float_rows("array-dsp", _float_array, False, {"fp16": FP16}, SIDE**2)


def _elements() -> list[Case]:
    rows = []
    for bits in (4, 6, 8):
        plain = f"element/int{bits}"
        for variant in ("plain", "horner", "folded", "product"):
            groups = _groups(variant)
            label = _integer_name(bits, variant, groups) + ", edge shifter not counted" * (variant == "folded")
            rows.append(Case(plain + _suffix(variant), label, partial(_element, bits, variant, groups), 1, plain))
    for groups in (2, 8):
        build, label = partial(_element, 6, "product", groups), _integer_name(6, "product", groups)
        rows.append(Case(f"element/int6-product-g{groups}", label, build, 1, "element/int6"))
    rows += _float_rows("element", FloatElement, True, {"fp16": FP16, "bf16": BF16, **FP8}, 1)
    for (name, fmt), bits in zip(FP8.items(), (48, 78)):
        label = f"{name.upper()} → exact {bits}-bit fixed point"
        rows.append(Case(f"element/{name}-fixed", label, partial(FixedElement, fmt, bits), 1, "element/int6"))
    return rows


def _dsp_elements() -> list[Case]:
    rows = []
    for variant in ("plain", "horner", "folded", "product"):
        groups = _groups(variant)
        build = partial(_element, 6, variant, groups, multiplier="inferred")
        case, label = "element-dsp/int6" + _suffix(variant), _integer_name(6, variant, groups)
        rows.append(Case(case, label, build, 1, "element-dsp/int6", dsp=True))
    return rows + _float_rows("element-dsp", FloatElement, False, {"fp16": FP16, "bf16": BF16}, 1)


def _dots() -> list[Case]:
    rows = []
    for bits in (4, 6, 8):
        plain = f"dot/int{bits}"
        for variant in ("plain", "horner", "tree"):
            groups = _groups(variant)
            build = partial(_element, bits, variant, groups, LANES)
            rows.append(Case(plain + _suffix(variant), _integer_name(bits, variant, groups), build, LANES, plain))
    for bits in (6, 8):
        build = partial(ScaledDot, LANES, bits)
        rows.append(Case(f"dot/mxint{bits}", f"MXINT{bits} (block scale 2^n) → fp32", build, LANES, f"dot/int{bits}"))
    build = partial(ScaledDot, LANES, 4, "fp4")
    rows.append(Case("dot/mxfp4", "MXFP4 E2M1 (block scale 2^n) → fp32", build, LANES, "dot/int4"))
    for bits in (4, 6):
        build = partial(ScaledDot, LANES, bits, "int", "fp16")
        label = f"INT{bits}, FP16 scales for each group → fp32"
        rows.append(Case(f"dot/int{bits}-scaled", label, build, LANES, f"dot/int{bits}"))
    for name, fmt in {**FP8, "bf16": BF16, "fp16": FP16}.items():
        label = f"{name.upper()} fused → fp32"
        rows.append(Case(f"dot/{name}-fused", label, partial(FusedFloatDot, LANES, fmt), LANES, "dot/int6"))
    return rows
