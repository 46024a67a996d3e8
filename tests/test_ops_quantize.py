"""amax and quantize against numpy and Python integers: every dtype, layout, rounding, and the edges of a range."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subbyte import numerics, ops
from subbyte.numerics import RANGE_FLOOR, IntFormat

FORMATS = [IntFormat(bits, signed) for bits in range(2, 9) for signed in (True, False)]


@pytest.fixture(autouse=True, scope="module")
def _reference():
    with ops.use_backend("reference"):
        yield


def values(rng, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-20, 20, shape))).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- amax


def amax_model(x: np.ndarray, axis: int) -> np.ndarray:
    rest = tuple(i for i in range(x.ndim) if i != axis)
    r = np.abs(x).max(axis=rest, keepdims=True) if rest else np.abs(x)  # numpy's maximum propagates NaN
    r = np.where(np.isfinite(r), r, np.float32(np.nan))
    return np.where(r < RANGE_FLOOR, np.float32(0), r)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (2, 3, 5, 4), (1, 1, 1, 1), (33, 65)])
def test_amax_of_every_axis(shape):
    x = values(np.random.default_rng(0), *shape)
    for axis in (ops.WHOLE, *range(len(shape))):
        got = ops.amax(torch.from_numpy(np.asarray(x)), axis)
        assert ops.last_kernel["amax"] == "reference"
        assert got.dtype is torch.float32
        want = amax_model(np.asarray(x), axis)
        assert got.shape == want.shape
        assert np.array_equal(got.numpy(), want)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_amax_loses_no_nan_wherever_it_stands(bad):
    for at in range(40):
        x = torch.ones(2, 20)
        x.view(-1)[at] = bad
        assert ops.amax(x, ops.WHOLE).isnan().all()
        rows = ops.amax(x, 0).flatten()
        assert rows.isnan().tolist() == [at // 20 == 0, at // 20 == 1]


def test_amax_around_the_floor_and_at_the_top():
    below = float(np.nextafter(np.float32(RANGE_FLOOR), np.float32(0)))
    largest = float(np.finfo(np.float32).max)
    for x, want in ((RANGE_FLOOR, RANGE_FLOOR), (-RANGE_FLOOR, RANGE_FLOOR), (below, 0.0), (1e-45, 0.0), (-0.0, 0.0)):
        assert ops.amax(torch.tensor([x, 0.0]), ops.WHOLE).item() == want
    assert ops.amax(torch.tensor([1.0, -largest]), ops.WHOLE).item() == largest


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3, 4)])
def test_amax_of_nothing_is_zero(shape):
    for axis in (ops.WHOLE, *range(len(shape))):
        got = ops.amax(torch.empty(shape), axis)
        assert got.shape == tuple(n if i == axis else 1 for i, n in enumerate(shape))
        assert not got.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_amax_reads_other_floats_as_float32(dtype):
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 7))).to(dtype)
    for axis in (ops.WHOLE, 0, 1):
        assert np.array_equal(ops.amax(x, axis).numpy(), amax_model(x.to(torch.float32).numpy(), axis))


def test_amax_does_not_depend_on_the_layout():
    x = torch.from_numpy(values(np.random.default_rng(2), 3, 4, 5, 6))
    for view in (x.contiguous(memory_format=torch.channels_last), x.transpose(0, 3).contiguous().transpose(0, 3)):
        for axis in (ops.WHOLE, 0, 1, 2, 3):
            assert torch.equal(ops.amax(view, axis), ops.amax(x, axis))
    assert torch.equal(ops.amax(x[:, ::2], 1), ops.amax(x, 1)[:, ::2])


# ------------------------------------------------------------------------------------------------------- quantize


def quantize_model(x, r, shift, r16, fmt: IntFormat) -> np.ndarray:
    """numpy's float32, one operation at a time; r16 None: nearest."""
    with np.errstate(all="ignore"):
        usable = np.isfinite(r) & (r > 0)
        inv = np.where(usable, np.float32(fmt.qmax * 65536) / np.where(usable, r, np.float32(1)), np.float32(0))
        if shift is not None:
            inv = inv * np.exp2(shift.astype(np.float32))
        t = np.rint(x * inv)
    t = np.clip(np.where(np.isnan(t), np.float32(0), t), fmt.qmin * 65536, fmt.qmax * 65536).astype(np.int64)
    if r16 is not None:
        return (t + r16) // 65536
    return np.rint(t / 65536).astype(np.int64)  # exact: t has 24 bits


def check(x: np.ndarray, r: np.ndarray, shift, stream, fmt: IntFormat) -> None:
    e = None if shift is None else torch.from_numpy(shift)
    got = ops.quantize(torch.from_numpy(x), torch.from_numpy(r), e, stream, fmt.bits, fmt.signed)
    assert ops.last_kernel["quantize"] == "reference"
    assert got.dtype is fmt.dtype
    r16 = None if stream is None else numerics.random_bits16(stream, x.size).numpy().reshape(x.shape)
    assert np.array_equal(got.numpy(), quantize_model(x, r, shift, r16, fmt))


@given(
    fmt=st.sampled_from(FORMATS),
    seed=st.integers(0, 10**6),
    m=st.integers(0, 5),
    k=st.integers(0, 9),
    stochastic=st.booleans(),
    shifted=st.booleans(),
    scale=st.floats(-70, 100),
)
def test_quantize_against_numpy(fmt, seed, m, k, stochastic, shifted, scale):
    rng = np.random.default_rng(seed)
    top = np.float32(2.0**scale)
    x = (rng.uniform(-1, 1, (m, k)) * top).astype(np.float32)
    for r in (np.full((1, 1), top), rng.uniform(0.1, 1, (m, 1)).astype(np.float32) * top, np.full((1, k), top)):
        shift = rng.integers(0, 9, (1, k)).astype(np.uint8) if shifted else None
        check(x, r.astype(np.float32), shift, torch.tensor(seed) if stochastic else None, fmt)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_quantize_every_tie_and_the_ends(fmt):
    """With r = qmax the step is 1: the codes of halves are Python's round."""
    halves = np.arange(2 * fmt.qmin - 3, 2 * fmt.qmax + 4, dtype=np.float32) / 2
    beside = [np.nextafter(halves, np.float32(s)) for s in (-np.inf, np.inf)]
    for x in (halves, *beside):
        got = ops.quantize(torch.from_numpy(x), torch.tensor([float(fmt.qmax)]), None, None, fmt.bits, fmt.signed)
        inside = np.clip(x, fmt.qmin, fmt.qmax)
        # t has 16 fractional bits: one ulp beside a half below 2^7 is the half again.
        want = [round(float(np.rint(v * np.float32(65536))) / 65536) for v in inside]
        assert got.tolist() == want


@pytest.mark.parametrize("fmt", [IntFormat(2), IntFormat(4), IntFormat(8), IntFormat(8, signed=False)], ids=str)
def test_quantize_of_numbers_that_are_none(fmt):
    x = np.array([math.nan, math.inf, -math.inf, 1.0, -1.0, 1e-45, 3e38, -3e38], dtype=np.float32)
    for r in (0.0, math.nan, math.inf, RANGE_FLOOR, 1.0, 3e38):
        for stream in (None, torch.tensor(3)):
            check(x, np.array([r], dtype=np.float32), None, stream, fmt)
    for r in (0.0, math.nan, math.inf):
        got = ops.quantize(torch.from_numpy(x), torch.tensor([r]), None, None, fmt.bits, fmt.signed)
        assert not got.any()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_range_itself_takes_the_largest_code(fmt):
    rng = np.random.default_rng(3)
    r = np.exp2(rng.uniform(-80, 127, 2000)).astype(np.float32)
    r = np.maximum(r, np.float32(RANGE_FLOOR))
    for stream in (None, torch.tensor(1)):
        top = ops.quantize(torch.from_numpy(r), torch.from_numpy(r), None, stream, fmt.bits, fmt.signed)
        low = ops.quantize(torch.from_numpy(-r), torch.from_numpy(r), None, stream, fmt.bits, fmt.signed)
        if stream is None:
            assert (top == fmt.qmax).all()
            assert (low == fmt.qmin).all()
        assert (top >= fmt.qmax - 1).all()
        assert int(low.min()) >= fmt.qmin


@pytest.mark.parametrize("exponent", [0, 1, 7, 23])
def test_a_shift_is_an_exact_power_of_two(exponent):
    x = torch.from_numpy(values(np.random.default_rng(4), 4, 6))
    r = ops.amax(x, ops.WHOLE)
    e = torch.full((1, 6), exponent, dtype=torch.uint8)
    finer = ops.quantize(x * 2.0**-exponent, r, e, None, 4, True)
    assert torch.equal(finer, ops.quantize(x, r, None, None, 4, True))


@pytest.mark.parametrize("stochastic", [False, True])
def test_quantize_keeps_the_layout_and_ignores_it(stochastic):
    x = torch.from_numpy(values(np.random.default_rng(5), 2, 3, 5, 4))
    stream = torch.tensor(-(2**62)) if stochastic else None
    r = ops.amax(x, 1)
    want = ops.quantize(x, r, None, stream, 4, True)
    last = x.contiguous(memory_format=torch.channels_last)
    for view in (last, x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0), x.transpose(2, 3).contiguous().mT):
        got = ops.quantize(view, r, None, stream, 4, True)
        assert torch.equal(got, want)
        assert got.stride() == view.stride()
    holes = torch.zeros(2, 3, 10, 4)
    holes[:, :, ::2] = x
    got = ops.quantize(holes[:, :, ::2], r, None, stream, 4, True)
    assert torch.equal(got, want)


def test_a_stream_may_be_any_64_bits_and_changes_with_each():
    x = torch.full((64,), 0.5)
    r = torch.tensor([7.0])
    seen = {
        tuple(ops.quantize(x, r, None, torch.tensor(s), 4, True).tolist())
        for s in (0, 1, -1, 2**63 - 1, -(2**63), 1 << 32, -(1 << 32))
    }
    assert len(seen) == 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_quantize_reads_other_floats_as_float32(dtype):
    x = torch.from_numpy(np.random.default_rng(6).standard_normal((5, 7))).to(dtype)
    r = ops.amax(x, ops.WHOLE)
    for stream in (None, torch.tensor(2)):
        got = ops.quantize(x, r, None, stream, 6, True)
        assert torch.equal(got, ops.quantize(x.to(torch.float32), r, None, stream, 6, True))


def test_autocast_changes_nothing():
    x = torch.from_numpy(values(np.random.default_rng(7), 30, 40))
    r = ops.amax(x, 1)
    want = ops.quantize(x, r, None, torch.tensor(3), 4, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.amax(x, 1), r)
        assert torch.equal(ops.quantize(x, r, None, torch.tensor(3), 4, True), want)
