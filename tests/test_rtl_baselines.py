"""The floating-point and MX baselines, in Amaranth's simulator, equal their models in Python integers bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="pip install subbyte[rtl]")

from amaranth.sim import Simulator

from subbyte.rtl import baselines_models as models
from subbyte.rtl.baselines import BaselineArray, FixedElement, FloatElement
from subbyte.rtl.baselines_dot import GUARD_BITS, FusedFloatDot, ScaledDot
from subbyte.rtl.baselines_float import BF16, E4M3, E5M2, FP16, FP32, FloatFormat

PIPELINED = (0, 1, 2, 3)
pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")


def rng_for(*key: int) -> np.random.Generator:
    return np.random.default_rng([20, *key])


def pack(values: Sequence[int], bits: int) -> int:
    """Lane 0 lowest, each value in two's complement."""
    return sum((int(v) & ((1 << bits) - 1)) << (i * bits) for i, v in enumerate(values))


def run_element(unit: Any, steps: Sequence[dict[str, int]]) -> list[int]:
    """acc after each step, from an accumulator of zero; `unit` has a latency, drain and d_in."""
    trace: list[int] = []

    async def bench(ctx: Any) -> None:
        ctx.set(unit.d_in, 0)
        for t in range(-2 * unit.latency, len(steps) + unit.latency):
            ctx.set(unit.drain, int(t < unit.latency - 1))
            for name in steps[0]:
                ctx.set(getattr(unit, name), steps[t][name] if 0 <= t < len(steps) else 0)
            await ctx.tick()
            trace.append(ctx.get(unit.acc))

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return trace[3 * unit.latency - 1 :][: len(steps)]


def signed(values: Sequence[int], bits: int) -> list[int]:
    return [v - (1 << bits) if v >> (bits - 1) else v for v in values]


# ------------------------------------------------------------------------------------------------------ the models


@pytest.mark.parametrize(("fmt", "dtype", "spread"), [(FP32, np.float32, 30), (FP16, np.float16, 6)])
def test_the_adders_model_is_numpys_addition(fmt: FloatFormat, dtype: type, spread: int) -> None:
    rng = rng_for(fmt.width)
    x, y = (models.random_floats(rng, fmt, 2000, spread) for _ in range(2))
    y[:100] = [v ^ 1 << (fmt.width - 1) for v in x[:100]]  # exact cancellation
    expected = (models.to_numpy(x, fmt).astype(dtype) + models.to_numpy(y, fmt).astype(dtype)).astype(dtype)
    keep = (np.abs(expected) >= np.finfo(dtype).tiny) | (expected == 0)
    got = models.to_numpy([models.float_add(a, b, fmt) for a, b in zip(x, y)], fmt)
    assert keep.sum() > 1900
    assert np.array_equal(got[keep], expected[keep].astype(np.float64))


def test_the_mac_model_is_numpys_float32_accumulation() -> None:
    rng = rng_for(1)
    a, b = (models.random_floats(rng, FP16, 500, 7) for _ in range(2))
    acc = np.float32(0)
    for x, y in zip(models.to_numpy(a, FP16), models.to_numpy(b, FP16)):
        acc = np.float32(acc + np.float32(x * y))
    assert models.float_mac_trace(a, b, FP16, FP32)[-1] == int(acc.view(np.uint32))


def test_fp4_values_are_those_of_the_ocp_table() -> None:
    assert [models.mxfp4_integer(c) / 2 for c in range(8)] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


# ----------------------------------------------------------------------------------------- multiply-accumulate units


@pytest.mark.parametrize("fabric", [True, False], ids=["booth", "dsp"])
@pytest.mark.parametrize(
    ("operand", "total", "spread"),
    [(FP16, FP32, 7), (FP16, FP16, 2), (BF16, FP32, 5), (E4M3, FP32, 5), (E5M2, FP32, 5)],
    ids=["fp16-fp32", "fp16-fp16", "bf16-fp32", "e4m3-fp32", "e5m2-fp32"],
)
def test_serial_float_elements(operand: FloatFormat, total: FloatFormat, spread: int, fabric: bool) -> None:
    rng = rng_for(2, operand.width, total.width)
    a, b = (models.random_floats(rng, operand, 250, spread) for _ in range(2))
    unit = FloatElement(operand, total, fabric=fabric)
    got = run_element(unit, [{"a": x, "b": y} for x, y in zip(a, b)])
    assert without_minus_zero(got, total) == without_minus_zero(models.float_mac_trace(a, b, operand, total), total)
    assert len(set(got)) > 200


def without_minus_zero(trace: Sequence[int], fmt: FloatFormat) -> list[int]:
    """Zero has two patterns; the units make no promise about its sign."""
    return [0 if v == 1 << (fmt.width - 1) else v for v in trace]


@pytest.mark.parametrize("cuts", [(1,), (0, 2), PIPELINED], ids=str)
@pytest.mark.parametrize("total", [FP32, FP16], ids=["fp32", "fp16"])
def test_a_pipelined_adder_holds_sums_that_take_turns(total: FloatFormat, cuts: tuple[int, ...]) -> None:
    rng = rng_for(3, total.width, len(cuts))
    a, b = (models.random_floats(rng, FP16, 200, 2) for _ in range(2))
    got = run_element(FloatElement(FP16, total, cuts), [{"a": x, "b": y} for x, y in zip(a, b)])
    turns = len(cuts) + 1
    traces = [models.float_mac_trace(a[i::turns], b[i::turns], FP16, total) for i in range(turns)]
    expected = models.circulating_trace(traces, len(a))
    assert without_minus_zero(got, total) == without_minus_zero(expected, total)


@pytest.mark.parametrize(("fmt", "acc_bits"), [(E4M3, 48), (E5M2, 78)], ids=["e4m3", "e5m2"])
def test_fp8_in_fixed_point_is_exact_for_all_pairs_of_extremes(fmt: FloatFormat, acc_bits: int) -> None:
    rng = rng_for(4, fmt.fraction)
    extremes = [0, 1, (1 << fmt.fraction) - 1, 1 << fmt.fraction, (1 << (fmt.width - 1)) - 1 - (1 << fmt.fraction)]
    extremes += [v | 1 << (fmt.width - 1) for v in extremes]
    pairs = [(x, y) for x in extremes for y in extremes] + [tuple(p) for p in rng.integers(0, 256, (150, 2)).tolist()]
    got = run_element(FixedElement(fmt, acc_bits), [{"a": x, "b": y} for x, y in pairs])
    expected = np.cumsum(np.array([models.fixed_product(x, y, fmt) for x, y in pairs], dtype=object))
    assert signed(got, acc_bits) == expected.tolist()


def test_an_array_of_float_elements() -> None:
    rows, cols, depth = 2, 3, 20
    rng = rng_for(5)
    a = [models.random_floats(rng, FP16, depth, 4) for _ in range(rows)]
    b = [models.random_floats(rng, FP16, depth, 4) for _ in range(cols)]
    unit = BaselineArray(lambda: FloatElement(FP16, FP32, registered=False), rows, cols)
    drained: list[list[int]] = []

    async def bench(ctx: Any) -> None:
        for t in range(depth + unit.stages + 1):
            ctx.set(unit.valid, int(t < depth))
            k = min(t, depth - 1)
            ctx.set(unit.a, pack([row[k] for row in a], 16))
            ctx.set(unit.b, pack([col[k] for col in b], 16))
            await ctx.tick()
        ctx.set(unit.drain, 1)
        await ctx.tick()
        for _ in range(rows):
            out = ctx.get(unit.out)
            drained.append([out >> (32 * c) & 0xFFFFFFFF for c in range(cols)])
            await ctx.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    expected = [[models.float_mac_trace(row, col, FP16, FP32)[-1] for col in b] for row in a]
    assert drained[::-1] == expected


def test_an_array_wants_unregistered_elements_and_a_format_that_holds_the_product() -> None:
    with pytest.raises(ValueError, match="registered=False"):
        BaselineArray(lambda: FloatElement(FP16, FP32))
    with pytest.raises(ValueError, match="exact"):
        FloatElement(FP16, BF16)


# ------------------------------------------------------------------------------------------------------- dot units


@pytest.mark.parametrize(("bits", "elements"), [(6, "int"), (8, "int"), (4, "fp4")], ids=["mxint6", "mxint8", "mxfp4"])
def test_mx_blocks(bits: int, elements: str) -> None:
    lanes, n = 8, 40
    rng = rng_for(6, bits)
    unit = ScaledDot(lanes, bits, elements)
    top = (1 << (bits - 1)) - 1
    if elements == "fp4":
        a, b = rng.integers(0, 16, (2, n, lanes))
        values = np.vectorize(models.mxfp4_integer)
    else:
        a, b = rng.integers(-top, top + 1, (2, n, lanes))
        a[0], b[0], b[1] = top, -top, top
        values = np.asarray
    scales = rng.integers(120, 134, (n, 2))
    steps = [
        {"a": pack(x, bits), "b": pack(y, bits), "scale_a": int(s[0]), "scale_b": int(s[1])}
        for x, y, s in zip(a, b, scales)
    ]
    terms = [models.block_term(values(x), values(y), s[0], s[1], unit.point) for x, y, s in zip(a, b, scales)]
    got = run_element(unit, steps)
    assert got == [models.accumulate_fp32(terms[: i + 1]) for i in range(n)]


def test_one_float_scale_for_each_group() -> None:
    lanes, n, bits = 8, 40, 6
    rng = rng_for(7)
    a, b = rng.integers(-31, 32, (2, n, lanes))
    scales = rng.uniform(0.01, 0.2, (n, 2)).astype(np.float16).view(np.uint16).astype(int).tolist()
    steps = [
        {"a": pack(x, bits), "b": pack(y, bits), "scale_a": s[0], "scale_b": s[1]} for x, y, s in zip(a, b, scales)
    ]
    terms = [models.group_term(int(x @ y), s[0], s[1], FP16) for x, y, s in zip(a, b, scales)]
    assert run_element(ScaledDot(lanes, bits, "int", "fp16"), steps) == [
        models.accumulate_fp32(terms[: i + 1]) for i in range(n)
    ]


@pytest.mark.parametrize("fmt", [FP16, BF16, E4M3, E5M2], ids=["fp16", "bf16", "e4m3", "e5m2"])
def test_fused_float_dots(fmt: FloatFormat) -> None:
    lanes, n = 8, 30
    rng = rng_for(8, fmt.exponent, fmt.fraction)
    a, b = (np.array(models.random_floats(rng, fmt, n * lanes, 6)).reshape(n, lanes) for _ in range(2))
    if fmt in (E4M3, E5M2):
        a[1] = rng.integers(0, 1 << fmt.fraction, lanes)  # subnormals
    steps = [{"a": pack(x, fmt.width), "b": pack(y, fmt.width)} for x, y in zip(a, b)]
    terms = [models.fused_dot(x, y, fmt, GUARD_BITS) for x, y in zip(a, b)]
    assert run_element(FusedFloatDot(lanes, fmt), steps) == [models.accumulate_fp32(terms[: i + 1]) for i in range(n)]


def test_a_fused_dot_loses_at_most_its_guard_bits() -> None:
    rng = rng_for(9)
    a, b = (models.random_floats(rng, FP16, 32, 4, zeros=0) for _ in range(2))
    exact = float(np.dot(models.to_numpy(a, FP16), models.to_numpy(b, FP16)))
    fused = models.fused_dot(a, b, FP16, GUARD_BITS)
    unit = 2.0**fused.exponent
    assert abs(fused.integer * unit - exact) <= 32 * unit


def test_unknown_units_are_refused() -> None:
    with pytest.raises(ValueError, match="no unit"):
        ScaledDot(8, 6, "fp4")
