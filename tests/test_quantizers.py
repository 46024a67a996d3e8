"""What every quantizer owes: codes in range, errors below a step, zeros, NaN, layouts, dtypes, serialisation."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subbyte import ops
from subbyte.numerics import RANGE_FLOOR, draw_stream
from subbyte.quantizers import (
    AbsMax,
    GroupOracle,
    PerChannel,
    Quantizer,
    ShiftQuant,
    from_dict,
    reject_unknown,
    to_dict,
)

EXAMPLES = [
    AbsMax(8),
    AbsMax(4, rounding="stochastic"),
    AbsMax(2),
    AbsMax(8, signed=False),
    AbsMax(4, signed=False, rounding="stochastic"),
    PerChannel(8),
    PerChannel(4, axis=1, rounding="stochastic"),
    ShiftQuant(4),
    ShiftQuant(4, groups=9, rounding="stochastic"),
    ShiftQuant(8, groups=24),
    ShiftQuant(4, groups=3, axis=0),
    ShiftQuant(6, groups=1),
    ShiftQuant(4, groups=4, exponents="chosen", rounding="stochastic"),
    ShiftQuant(6, groups=3, exponents="chosen", max_exponent=23),
    ShiftQuant(5, signed=False, groups=3),
    GroupOracle(4),
    GroupOracle(6, groups=2, axis=0, rounding="stochastic"),
]
SLACK = 2.0**-13  # of a step: 2^-17 from t's rounding and 255 x 3 x 2^-24 from the float32 operations before it

few = settings(max_examples=15)  # for each of the rows above
every = pytest.mark.parametrize("quantizer", EXAMPLES, ids=str)


@pytest.fixture(autouse=True, scope="module")
def _reference():
    with ops.use_backend("reference"):
        yield


def codes_of(quantizer: Quantizer, x: torch.Tensor, seed: int = 11):
    return quantizer(x, torch.tensor(seed) if quantizer.stochastic else None)


def sample(seed: int, *shape: int, spread: float = 3.0, signed: bool = True) -> torch.Tensor:
    """Normal values whose channels along axes 0 and 1 differ by octaves; a few exact zeros."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g)
    for axis in range(2):
        size = [n if i == axis else 1 for i, n in enumerate(shape)]
        x = x * torch.exp2(spread * torch.randn(size, generator=g))
    x = torch.where(torch.rand(shape, generator=g) < 0.05, torch.zeros(()), x)
    return x if signed else x.abs()


def test_every_quantizer_has_a_row_here():
    homes = {f"subbyte.quantizers.{m}" for m in ("absmax", "shift", "oracle")}  # the others: test_quantizers_more.py
    ours = {n for n, cls in Quantizer.registry.items() if cls.__module__ in homes}
    assert {type(q).__name__ for q in EXAMPLES} == ours


# ---------------------------------------------------------------------------------------------- codes and errors


@every
@few
@given(seed=st.integers(0, 10**6), m=st.integers(1, 6), k=st.integers(1, 12), spread=st.floats(0, 6))
def test_codes_in_range_error_below_a_step_nothing_clipped(quantizer, seed, m, k, spread):
    x = sample(seed, m, k, spread=spread, signed=quantizer.signed)
    ops.last_kernel.clear()
    q = codes_of(quantizer, x, seed)
    assert ops.last_kernel.keys() & {"quantize", "absmax_codes", "shift_codes"}
    assert set(ops.last_kernel.values()) == {"reference"}
    assert int(q.codes.min()) >= quantizer.format.qmin
    assert int(q.codes.max()) <= quantizer.format.qmax
    r, shift, max_shift = quantizer.ranges(x)
    fall = torch.zeros((), dtype=torch.float64) if shift is None else -shift.double()
    assert (x.abs().double() <= r.double() * torch.exp2(fall)).all()
    assert shift is None or int(shift.max()) <= max_shift == q.max_shift
    step = q.effective_scale().double()
    error = (x.double() - q.dequantize(torch.float64)).abs()
    assert (error <= step * ((1.0 if quantizer.stochastic else 0.5) + SLACK)).all()


def on_one_grid(q) -> torch.Tensor:
    """Codes in units of the finest step of the tensor."""
    if q.shift is None:
        return q.codes.to(torch.int64)
    return q.codes.to(torch.int64) << (q.max_shift - q.shift.to(torch.int64))


FIXED_GRID = [q for q in EXAMPLES if not isinstance(q, GroupOracle) and getattr(q, "exponents", "") != "chosen"]


@pytest.mark.parametrize("quantizer", FIXED_GRID, ids=str)
@few
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_nearest_is_idempotent(quantizer, seed, k):
    nearest = quantizer.nearest()
    q = nearest(sample(seed, 4, k, signed=quantizer.signed))
    again = nearest(q.dequantize())
    assert torch.equal(on_one_grid(again), on_one_grid(q))
    assert torch.allclose(again.scale, q.scale, rtol=2.0**-22, atol=0)


@every
@few
@given(seed=st.integers(0, 10**6))
def test_a_value_on_its_own_grid_keeps_its_code(quantizer, seed):
    x = sample(seed, 4, 6, signed=quantizer.signed)
    q = codes_of(quantizer, x, seed)
    r, shift, _ = quantizer.ranges(x)
    fmt = quantizer.format
    assert torch.equal(ops.quantize(q.dequantize(), r, shift, None, fmt.bits, fmt.signed), q.codes)
    if fmt.qmax <= 31:  # beyond, the three float32 roundings before t may move t itself by one 2^16th of a step
        stream = torch.tensor(seed)
        assert torch.equal(ops.quantize(q.dequantize(), r, shift, stream, fmt.bits, fmt.signed), q.codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_stochastic_quantizer_is_unbiased(bits):
    x = torch.tensor([[1.0, 0.3137, -0.7701, 0.111, -0.002]])
    trials = 1 << 15
    quantizer = ShiftQuant(bits, groups=1, rounding="stochastic")
    mean = quantizer(x.expand(trials, -1), torch.tensor(5)).codes.double().mean(0)
    exact = x[0].double() * quantizer.format.qmax  # R = 1
    p = exact - exact.floor()
    sigma = (p * (1 - p) / trials).sqrt()
    assert ((mean - exact).abs() <= 5 * sigma + 2.0**-15).all()


def test_a_negative_value_in_an_unsigned_format_becomes_zero():
    q = AbsMax(4, signed=False)(torch.tensor([-3.0, 0.0, 1.5, 3.0]))
    assert q.codes.tolist() == [0, 0, 8, 15]


# -------------------------------------------------------------------------------------- zeros, NaN, tiny and empty


@every
def test_a_zero_tensor(quantizer):
    for tiny in (0.0, -0.0, 1e-45, -1e-40, float(np.nextafter(np.float32(RANGE_FLOOR), np.float32(0)))):
        q = codes_of(quantizer, torch.full((3, 5), tiny))
        assert not q.codes.any()
        assert not q.scale.any()
        assert torch.equal(q.dequantize(), torch.zeros(3, 5))


@every
def test_zero_channels_stay_zero_and_disturb_nobody(quantizer):
    x = sample(5, 6, 8, signed=quantizer.signed)
    x[:, 3] = 0
    x[2] = 0
    q = codes_of(quantizer, x)
    assert not q.codes[:, 3].any()
    assert not q.codes[2].any()
    kept = q.dequantize(torch.float64)
    error = (x.double() - kept).abs()
    assert (error <= q.effective_scale().double() * (1 + SLACK)).all()


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_surface_as_nan(quantizer, bad):
    x = sample(6, 4, 5, signed=quantizer.signed)
    clean = codes_of(quantizer, x)
    x[1, 2] = bad
    q = codes_of(quantizer, x)
    values = q.dequantize()
    if isinstance(quantizer, PerChannel):  # what shares a scale with it is lost, the rest is as before
        lost = torch.zeros(4, 5, dtype=torch.bool)
        lost.select(quantizer.axis, (1, 2)[quantizer.axis]).fill_(True)
        assert torch.equal(q.codes[~lost], clean.codes[~lost])
        assert torch.equal(values[~lost], clean.dequantize()[~lost])
    else:
        lost = torch.ones(4, 5, dtype=torch.bool)
    assert values[lost].isnan().all()
    assert not q.codes[lost].any()


@every
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0, 3, 2, 2), (2, 3, 0, 2)])
def test_empty_tensors(quantizer, shape):
    q = codes_of(quantizer, torch.empty(shape))
    assert q.codes.shape == shape
    assert q.dequantize().shape == shape
    assert not q.scale.any()


@every
def test_ranges_from_the_floor_to_the_largest_float(quantizer):
    for r in (RANGE_FLOOR, 1.5 * RANGE_FLOOR, 2.0**-60, 1.0, 3e38):
        x = r * sample(9, 3, 8, spread=0, signed=quantizer.signed).clamp(-1, 1)
        x[0, 0] = r
        q = codes_of(quantizer, x)
        error = (x.double() - q.dequantize(torch.float64)).abs()
        # A row or channel whose own range is below the floor counts as zero: that is its error.
        assert (error <= (q.effective_scale().double() * (1 + SLACK)).clamp(min=RANGE_FLOOR)).all()
        assert q.codes.abs().max() == quantizer.format.qmax


# --------------------------------------------------------------------------------------------- layouts and dtypes


@every
def test_codes_do_not_depend_on_the_layout(quantizer):
    x = sample(7, 3, 4, 5, 6, signed=quantizer.signed)
    want = codes_of(quantizer, x)
    wide = torch.zeros(3, 8, 5, 6)
    wide[:, ::2] = x
    views = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": wide[:, ::2],
    }
    for name, view in views.items():
        got = codes_of(quantizer, view)
        assert torch.equal(got.codes, want.codes), name
        assert torch.equal(got.scale, want.scale), name
        if name != "sliced":
            assert got.codes.stride() == view.stride(), name
    expanded = codes_of(quantizer, x[:, :1].expand(3, 4, 5, 6))
    assert torch.equal(expanded.codes, codes_of(quantizer, x[:, :1].expand(3, 4, 5, 6).contiguous()).codes)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_read_as_float32(quantizer, dtype):
    x = sample(8, 4, 6, spread=1, signed=quantizer.signed).to(dtype)
    got, want = codes_of(quantizer, x), codes_of(quantizer, x.to(torch.float32))
    assert torch.equal(got.codes, want.codes)
    assert torch.equal(got.scale, want.scale)
    assert got.scale.dtype is torch.float32


def test_a_float64_beyond_float32_is_no_number():
    assert AbsMax(8)(torch.tensor([1e300, 1.0], dtype=torch.float64)).scale.isnan()


def test_the_graph_ends_at_a_quantizer():
    x = torch.randn(3, 4, requires_grad=True)
    q = AbsMax(4)(x)
    assert not q.codes.requires_grad
    assert not q.scale.requires_grad


def test_scalars_and_vectors():
    assert AbsMax(4)(torch.tensor(-3.0)).codes.item() == -7
    assert PerChannel(4)(torch.tensor([1.0, -2.0])).codes.tolist() == [7, -7]


# ------------------------------------------------------------------------------------------------------ randomness


def test_a_stream_gives_the_same_codes_and_another_gives_others():
    x = sample(10, 40, 50)
    a, b = draw_stream(2)
    quantizer = AbsMax(4, rounding="stochastic")
    assert torch.equal(quantizer(x, a).codes, quantizer(x, a).codes)
    assert not torch.equal(quantizer(x, a).codes, quantizer(x, b).codes)


def test_stochastic_needs_a_stream_and_nearest_ignores_it():
    x = torch.tensor([0.3, 1.0])
    with pytest.raises(ValueError, match=r"AbsMax rounds stochastically: it needs a stream"):
        AbsMax(4, rounding="stochastic")(x)
    x = sample(12, 40, 50)
    assert torch.equal(AbsMax(4)(x, torch.tensor(1)).codes, AbsMax(4)(x).codes)


@every
def test_nearest_changes_the_rounding_alone(quantizer):
    nearest = quantizer.nearest()
    assert not nearest.stochastic
    assert dataclasses.replace(nearest, rounding=quantizer.rounding) == quantizer


# ---------------------------------------------------------------------------------------- settings, serialisation


@every
def test_json_round_trip(quantizer):
    assert from_dict(json.loads(json.dumps(to_dict(quantizer)))) == quantizer


def test_none_is_a_quantizer_too():
    assert to_dict(None) is None
    assert from_dict(None) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "ShiftQaunt"}, r"unknown quantizer 'ShiftQaunt' \(did you mean 'ShiftQuant'\?\)"),
        ({"type": None}, r"unknown quantizer None; known are AbsMax, BlockHouseholder, BlockShiftQuant"),
        ({}, r"unknown quantizer None"),
        ({"type": "AbsMax", "bit": 4}, r"AbsMax has no field 'bit' \(did you mean 'bits'\?\)"),
        ({"type": "AbsMax", "groups": 4}, r"AbsMax has no field 'groups'; it has: bits, signed, rounding"),
        ({"type": "AbsMax", "bits": 9}, r"2 to 8 bits, not 9"),
        ({"type": "AbsMax", "bits": 1}, r"2 to 8 bits, not 1"),
        ({"type": "AbsMax", "bits": "4"}, r"2 to 8 bits, not '4'"),
        ({"type": "AbsMax", "signed": "no"}, r"AbsMax takes bool as signed, not 'no'"),
        ({"type": "AbsMax", "rounding": None}, r"AbsMax takes str as rounding, not None"),
        ({"type": "AbsMax", "rounding": "stocastic"}, r"not 'stocastic' \(did you mean 'stochastic'\?\)"),
        ({"type": "PerChannel", "axis": 1.0}, r"PerChannel takes int as axis, not 1.0"),
        ({"type": "ShiftQuant", "groups": "4"}, r"ShiftQuant takes int as groups, not '4'"),
        ({"type": "ShiftQuant", "groups": 0}, r"1 to 24 groups, not 0"),
        ({"type": "ShiftQuant", "groups": 25}, r"1 to 24 groups, not 25"),
        ({"type": "ShiftQuant", "exponents": "choosen"}, r"not 'choosen' \(did you mean 'chosen'\?\)"),
        ({"type": "ShiftQuant", "max_exponent": 5}, r"max_exponent belongs to chosen exponents"),
        ({"type": "ShiftQuant", "exponents": "chosen", "max_exponent": 24}, r"must be 3..23 for 4 groups, not 24"),
        ({"type": "ShiftQuant", "exponents": "chosen", "max_exponent": 2}, r"must be 3..23 for 4 groups, not 2"),
        ({"type": "ShiftQuant", "bits": 7, "exponents": "chosen"}, r"must be 3..23 for 4 groups, not 2"),
        ({"type": "GroupOracle", "groups": 0}, r"1 group or more, not 0"),
    ],
)
def test_bad_settings_say_what_and_offer_the_closest(data, message):
    with pytest.raises(ValueError, match=message):
        from_dict(data)


def test_from_dict_leaves_its_argument_alone():
    data = {"type": "AbsMax", "bits": 4}
    from_dict(data)
    assert data == {"type": "AbsMax", "bits": 4}


def test_reject_unknown_names_the_closest():
    reject_unknown(["bits"], ["bits"], "it")
    with pytest.raises(ValueError, match=r"it has no field 'bist' \(did you mean 'bits'\?\); it has: bits"):
        reject_unknown(["bits", "bist"], ["bits"], "it")


@pytest.mark.parametrize(
    ("quantizer", "shape"),
    [
        *((PerChannel(4, axis=-1), (3, 4)), (PerChannel(4, axis=2), (3, 4)), (ShiftQuant(4), (5,))),
        *((ShiftQuant(4, axis=-1), (3, 4)), (ShiftQuant(4, axis=-1, exponents="chosen"), (3, 4))),
    ],
)
def test_an_axis_that_the_tensor_lacks(quantizer, shape):
    with pytest.raises(ValueError, match=r"a range for each index of axis"):
        quantizer(torch.ones(shape))


def test_one_line_of_text():
    assert str(AbsMax(8)) == "s8 AbsMax"
    assert str(PerChannel(4, axis=1, rounding="stochastic")) == "s4 PerChannel(axis 1, stochastic)"
    assert str(ShiftQuant(4, exponents="chosen", axis=0)) == "s4 ShiftQuant(4 groups chosen up to 8, axis 0)"
    assert str(GroupOracle(4, signed=False)) == "u4 GroupOracle(4 free groups)"
