"""What synthesis made of a unit behaves as its source, cycle by cycle: mapped netlists in Icarus Verilog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from subbyte.rtl import baselines_models as models
from subbyte.rtl import units
from subbyte.rtl.baselines import BaselineArray, FixedElement, FloatElement
from subbyte.rtl.baselines_dot import FusedFloatDot, ScaledDot
from subbyte.rtl.baselines_float import E4M3, E5M2, FP16, FP32
from subbyte.rtl.gatesim import Ports, pack, random_steps, trace_netlist, trace_source
from subbyte.rtl.synth import netlist_xc7

pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")

RARE = {"drain": 0.02, "valid": 0.9, "double": 0.2}


def spec(bits: int, variant: str, **rest: Any) -> Any:
    return units.spec_for(bits, 1 if variant == "plain" else 4, variant, **rest)


INTEGER: dict[str, tuple[Callable[[], Any], bool]] = {
    **{
        f"element-int{bits}-{variant}": (lambda b=bits, v=variant: units.element(spec(b, v)), False)
        for bits in (4, 6, 8)
        for variant in ("plain", "horner", "folded", "product")
    },
    "element-int6-horner-dsp": (lambda: units.element(spec(6, "horner", multiplier="inferred")), True),
    "element-int6-folded-dsp": (lambda: units.element(spec(6, "folded", multiplier="inferred")), True),
    "dot4-int6-tree": (lambda: units.element(spec(6, "tree", lanes=4)), False),
    "array2x2-int6-horner": (lambda: units.array(spec(6, "horner"), 2, 2), False),
    "array2x2-int4-folded": (lambda: units.array(spec(4, "folded"), 2, 2), False),
}


@pytest.mark.parametrize("name", INTEGER)
def test_integer_units(name: str) -> None:
    make, dsp = INTEGER[name]
    steps = random_steps(make(), 2000, 7, RARE)
    assert trace_netlist(Ports.of(make()), netlist_xc7(make(), dsp), steps) == trace_source(make(), steps)


@pytest.mark.parametrize("variant", ["plain", "folded", "horner"])
def test_dsp_tiles(variant: str) -> None:
    """The netlist holds DSP48E1 primitives in yosys' model, the source our own model. Fields stay in range."""
    rng = np.random.default_rng(3)
    rows, cols, chunk, top = 4, 2, 20, 31
    tile = spec(6, variant)
    steps: list[dict[str, int]] = []

    def slot(**given: int) -> None:
        idle = {"a": 0, "b": 0, "valid": 0, "double": 0, "left": 0, "drain": 0, "fresh": 0, "last": 0}
        steps.append({**idle, **given})

    for n in range(20):
        for k in range(chunk):
            a, b = (rng.integers(-top, top + 1, size) if n else np.full(size, top) for size in (rows, cols))
            left = int(rng.integers(0, 4)) if variant == "folded" else 0
            slot(a=pack(a, 6), b=pack(b, 6), valid=1, left=left)
            if variant == "horner" and k in (5, 11, 12):
                slot(double=1)
        for _ in range(6):
            slot()
        for _ in range(rows // 2):
            slot(drain=1, fresh=int(n % 3 == 0), last=int(n % 3 == 2))
        for _ in range(3):
            slot()
    make = lambda primitive: units.dsp_tile(tile, rows, cols, primitive=primitive)  # noqa: E731
    source = trace_source(make(False), steps)
    gates = trace_netlist(Ports.of(make(True)), netlist_xc7(make(True), dsp=True), steps)
    # Until the first drain the accumulators' memory and P hold nothing yet; a result counts where out_valid says so.
    valid = [t for t, s in enumerate(source) if s["out_valid"]]
    assert len(valid) == 6 * (rows // 2)
    assert [gates[t] for t in valid] == [source[t] for t in valid]


FLOAT: dict[str, tuple[Callable[[], Any], bool]] = {
    "fp16-fp32": (lambda: FloatElement(FP16, FP32), False),
    "fp16-fp32-dsp": (lambda: FloatElement(FP16, FP32, fabric=False), True),
    "fp16-fp16-pipelined": (lambda: FloatElement(FP16, FP16, (0, 1, 2, 3)), False),
    "fp16-fp32-pipelined-dsp": (lambda: FloatElement(FP16, FP32, (0, 1, 2, 3), fabric=False), True),
    "e4m3-fp32": (lambda: FloatElement(E4M3, FP32), False),
    "e5m2-fixed": (lambda: FixedElement(E5M2, 78), False),
    "array2x1-fp16-fp16": (
        lambda: BaselineArray(lambda: FloatElement(FP16, FP16, registered=False), 2, 1),
        False,
    ),
    "dot4-mxint6": (lambda: ScaledDot(4, 6), False),
    "dot4-mxfp4": (lambda: ScaledDot(4, 4, "fp4"), False),
    "dot4-int6-scaled": (lambda: ScaledDot(4, 6, "int", "fp16"), False),
    "dot4-e4m3-fused": (lambda: FusedFloatDot(4, E4M3), False),
    "dot4-fp16-fused": (lambda: FusedFloatDot(4, FP16), False),
}


@pytest.mark.parametrize("name", FLOAT)
def test_float_units(name: str) -> None:
    """Any bit patterns: also those that stand for NaN elsewhere must come out alike."""
    make, dsp = FLOAT[name]
    steps = random_steps(make(), 1500, 11, RARE)
    assert trace_netlist(Ports.of(make()), netlist_xc7(make(), dsp), steps) == trace_source(make(), steps)


def test_the_fp16_netlist_equals_the_model_itself() -> None:
    rng = np.random.default_rng(5)
    a, b = (models.random_floats(rng, FP16, 1500, 5) for _ in range(2))
    unit = FloatElement(FP16, FP32)
    steps = [{"a": x, "b": y, "drain": int(t < 2), "d_in": 0} for t, (x, y) in enumerate(zip([0, *a], [0, *b]))]
    steps += [{"a": 0, "b": 0, "drain": 0, "d_in": 0}] * unit.latency
    gates = trace_netlist(Ports.of(unit), netlist_xc7(unit), steps)
    got = [g["acc"] for g in gates[unit.latency :] if g is not None]
    assert got[: len(a)] == models.float_mac_trace(a, b, FP16, FP32)
