"""What the resource table measures: one Case a row, each with the plain integer unit that it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import units
from .baselines import BaselineArray, FixedElement, FloatElement
from .baselines_dot import FusedFloatDot, ScaledDot
from .baselines_float import BF16, E4M3, E5M2, FP16, FP32, FloatFormat

GROUPS = 4
SIDE = 8
LANES = 32
PIPELINED = (0, 1, 2, 3)

SECTIONS = {
    "array": f"{SIDE} x {SIDE} output-stationary array, LUT fabric only",
    "array-dsp": f"{SIDE} x {SIDE} array with DSP48E1",
    "element": "one processing element with input registers, LUT fabric only",
    "element-dsp": "one processing element with DSP48E1, left to the synthesiser",
    "dot": f"{LANES}-wide dot unit (one result), LUT fabric only",
}


@dataclass(frozen=True)
class Case:
    """One row. plain: the case that its overhead is counted over; fp16, fp32: the FP16 units of the same section.

    quick: small enough for a test of seconds.
    """

    name: str
    label: str
    make: Callable[[], Any]
    macs: int
    plain: str = ""
    dsp: bool = False
    delay: bool = True
    quick: bool = False

    @property
    def section(self) -> str:
        """The part of the name before the first slash."""
        return self.name.split("/")[0]


FP16_ROWS = {"fp16": ("fp16-fp16-serial", "fp16-fp16-pipelined"), "fp32": ("fp16-fp32-serial", "fp16-fp32-pipelined")}
"""Rows that "FP16 -> fp16" and "FP16 -> fp32" stand for; a comparison takes the one with fewer LUTs."""


def cases() -> dict[str, Case]:
    """All rows by name, in the table's order."""
    rows = [*_arrays(), *_tiles(), *_elements(), *_dsp_elements(), *_dots()]
    return {case.name: case for case in rows}


def _float(operand: FloatFormat, total: FloatFormat, cuts: tuple[int, ...], fabric: bool, registered: bool) -> Any:
    return FloatElement(operand, total, cuts, fabric, registered)


def _float_rows(prefix: str, fabric: bool, formats: dict[str, FloatFormat]) -> list[tuple[str, str, Any]]:
    """(name, label, registered -> element) of each operand format, accumulator and pipelining."""
    rows: list[tuple[str, str, Any]] = []
    for name, operand in formats.items():
        totals = {"fp16": FP16, "fp32": FP32} if operand == FP16 else {"fp32": FP32}
        for total_name, total in totals.items():
            for form, cuts in (("serial", ()), ("pipelined", PIPELINED)):
                rows.append(
                    (
                        f"{prefix}/{name}-{total_name}-{form}",
                        f"{name.upper()} -> {total_name}, {form}",
                        lambda registered, o=operand, t=total, c=cuts: _float(o, t, c, fabric, registered),
                    )
                )
    return rows


def _arrays() -> list[Case]:
    rows = []
    for bits in (4, 6, 8):
        plain = f"array/int{bits}"
        rows.append(
            Case(plain, f"INT{bits} plain", lambda b=bits: units.array(units.spec_for(b), SIDE, SIDE), SIDE**2, plain)
        )
        for variant in ("horner", "folded", "product"):
            rows.append(
                Case(
                    f"{plain}-{variant}",
                    f"ShiftMM INT{bits} {variant}, {GROUPS} groups",
                    lambda b=bits, v=variant: units.array(units.spec_for(b, GROUPS, v), SIDE, SIDE),
                    SIDE**2,
                    plain,
                )
            )
    for name, label, make in _float_rows("array", True, {"fp16": FP16}):
        array = lambda make=make: BaselineArray(lambda: make(False), SIDE, SIDE)  # noqa: E731
        rows.append(Case(name, label, array, SIDE**2, "array/int6", delay=False))
    return rows


def _tiles() -> list[Case]:
    rows = []
    for bits in (4, 6):
        plain = f"array-dsp/int{bits}-tile"
        note = "2 MAC a DSP, int32 accumulators included"
        rows.append(
            Case(
                plain,
                f"INT{bits} plain, {note}",
                lambda b=bits: units.dsp_tile(units.spec_for(b), SIDE, SIDE),
                SIDE**2,
                plain,
                dsp=True,
            )
        )
        for variant in ("folded", "horner"):
            rows.append(
                Case(
                    f"{plain}-{variant}",
                    f"ShiftMM INT{bits} {variant}, {GROUPS} groups, {note}",
                    lambda b=bits, v=variant: units.dsp_tile(units.spec_for(b, GROUPS, v), SIDE, SIDE),
                    SIDE**2,
                    plain,
                    dsp=True,
                )
            )
    for variant in ("plain", "folded"):
        groups = 1 if variant == "plain" else GROUPS
        rows.append(
            Case(
                "array-dsp/int6" + ("" if variant == "plain" else "-folded"),
                ("INT6 plain" if variant == "plain" else f"ShiftMM INT6 folded, {GROUPS} groups") + ", 1 MAC a DSP",
                lambda g=groups, v=variant: units.array(units.spec_for(6, g, v, multiplier="inferred"), SIDE, SIDE),
                SIDE**2,
                "array-dsp/int6",
                dsp=True,
            )
        )
    for name, label, make in _float_rows("array-dsp", False, {"fp16": FP16}):
        array = lambda make=make: BaselineArray(lambda: make(False), SIDE, SIDE)  # noqa: E731
        rows.append(Case(name, label + ", 1 MAC a DSP", array, SIDE**2, "array-dsp/int6", dsp=True, delay=False))
    return rows


def _elements() -> list[Case]:
    rows = []
    for bits in (4, 6, 8):
        plain = f"element/int{bits}"
        rows.append(
            Case(plain, f"INT{bits} plain", lambda b=bits: units.element(units.spec_for(b)), 1, plain, quick=bits == 6)
        )
        for variant, groups in (("horner", 4), ("folded", 4), ("product", 4), ("product", 2), ("product", 8)):
            if groups != 4 and bits != 6:
                continue
            rows.append(
                Case(
                    f"{plain}-{variant}" + ("" if groups == 4 else f"-g{groups}"),
                    f"ShiftMM INT{bits} {variant}, {groups} groups"
                    + (", shifter at the edge not counted" if variant == "folded" else ""),
                    lambda b=bits, v=variant, g=groups: units.element(units.spec_for(b, g, v)),
                    1,
                    plain,
                    quick=bits == 6 and variant == "horner",
                )
            )
    formats = {"fp16": FP16, "bf16": BF16, "fp8-e4m3": E4M3, "fp8-e5m2": E5M2}
    for name, label, make in _float_rows("element", True, formats):
        rows.append(Case(name, label, lambda make=make: make(True), 1, "element/int6"))
    for label, fmt, bits in (("E4M3", E4M3, 48), ("E5M2", E5M2, 78)):
        rows.append(
            Case(
                f"element/fp8-{label.lower()}-fixed",
                f"FP8-{label} -> exact {bits}-bit fixed point",
                lambda f=fmt, b=bits: FixedElement(f, b),
                1,
                "element/int6",
            )
        )
    return rows


def _dsp_elements() -> list[Case]:
    rows = []
    for variant in ("plain", "horner", "folded", "product"):
        groups = 1 if variant == "plain" else GROUPS
        rows.append(
            Case(
                "element-dsp/int6" + ("" if variant == "plain" else f"-{variant}"),
                "INT6 plain" if variant == "plain" else f"ShiftMM INT6 {variant}, {groups} groups",
                lambda g=groups, v=variant: units.element(units.spec_for(6, g, v, multiplier="inferred")),
                1,
                "element-dsp/int6",
                dsp=True,
            )
        )
    for name, label, make in _float_rows("element-dsp", False, {"fp16": FP16, "bf16": BF16}):
        rows.append(Case(name, label, lambda make=make: make(True), 1, "element-dsp/int6", dsp=True))
    return rows


def _dots() -> list[Case]:
    rows = []
    for bits in (4, 6, 8):
        plain = f"dot/int{bits}"
        for variant in ("plain", "horner", "tree"):
            groups = 1 if variant == "plain" else GROUPS
            rows.append(
                Case(
                    plain + ("" if variant == "plain" else f"-{variant}"),
                    f"INT{bits} plain" if variant == "plain" else f"ShiftMM INT{bits} {variant}, {groups} groups",
                    lambda b=bits, v=variant, g=groups: units.dot(units.spec_for(b, g, v, lanes=LANES)),
                    LANES,
                    plain,
                )
            )
    scaled: list[tuple[str, str, Callable[[], Any], int]] = [
        ("mxint6", "MXINT6 (block scale 2^n) -> fp32", lambda: ScaledDot(LANES, 6), 6),
        ("mxint8", "MXINT8 (block scale 2^n) -> fp32", lambda: ScaledDot(LANES, 8), 8),
        ("mxfp4", "MXFP4 E2M1 (block scale 2^n) -> fp32", lambda: ScaledDot(LANES, 4, "fp4"), 4),
        ("int4-fp16", "INT4, an FP16 scale for each group -> fp32", lambda: ScaledDot(LANES, 4, "int", "fp16"), 4),
        ("int6-fp16", "INT6, an FP16 scale for each group -> fp32", lambda: ScaledDot(LANES, 6, "int", "fp16"), 6),
    ]
    rows += [Case(f"dot/{name}", label, make, LANES, f"dot/int{bits}") for name, label, make, bits in scaled]
    fused = {"fp8-e4m3": E4M3, "fp8-e5m2": E5M2, "bf16": BF16, "fp16": FP16}
    for name, fmt in fused.items():
        make = lambda f=fmt: FusedFloatDot(LANES, f)  # noqa: E731
        rows.append(Case(f"dot/{name}-fused", f"{name.upper()} fused -> fp32", make, LANES, "dot/int6"))
    return rows
