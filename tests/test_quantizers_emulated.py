"""LogUnbiased, BlockHouseholder, ZeroPoint, MXInt: levels, reflections, exact unbiasedness, bounds.

"Exact": a mean over all 65,536 random numbers that can meet a value, not a mean of a sample.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subbyte import numerics, ops
from subbyte.quantizers import AbsMax, BlockHouseholder, LogUnbiased, MXInt, PerChannel, ZeroPoint
from subbyte.quantizers import householder as bhq
from subbyte.quantizers import logarithmic as luq
from test_quantizers import sample

ALL_R16 = torch.arange(1 << 16, dtype=torch.int32)
some = settings(max_examples=25)


@pytest.fixture(autouse=True, scope="module")
def _reference():
    with ops.use_backend("reference"):
        yield


# ------------------------------------------------------------------------------------------------------------ LUQ


def levels(bits: int, r: float) -> torch.Tensor:
    n = 2 ** (bits - 1) - 1
    return torch.tensor([0.0, *(r * 2.0 ** (i + 1 - n) for i in range(n))], dtype=torch.float64)


@pytest.mark.parametrize("bits", range(2, 7))
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@some
@given(seed=st.integers(0, 10**6), spread=st.floats(0, 6))
def test_luq_gives_a_neighbouring_level(bits, rounding, seed, spread):
    x = sample(seed, 4, 9, spread=spread)
    grid = levels(bits, float(x.abs().max()))
    v = LogUnbiased(bits, rounding=rounding)(x, torch.tensor(seed)).values.abs().double()
    a = x.abs().double()
    at = torch.searchsorted(grid, a, right=True) - 1
    low, high = grid[at], grid[(at + 1).clamp(max=grid.numel() - 1)]
    slack = 2.0**-16 * (high - low)  # what lies that near a level may be rounded as the level itself
    assert ((v == low) | (v == high)).all()
    if rounding == "nearest":
        assert ((v - a).abs() <= (high - low) / 2 + slack).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_luq_is_unbiased_exactly(bits, monkeypatch):
    """Each value with every r16: the mean is the value, rounded to 2^-16 of the gap between its two levels."""
    values = [1.0, -0.9, 0.51, 0.5, 0.3137, -0.26, 0.1, 0.02, -0.013, 1e-3, 3e-9]
    x = torch.tensor(values).unsqueeze(0).expand(1 << 16, -1)
    r16 = ALL_R16.unsqueeze(1).expand_as(x).flatten()
    monkeypatch.setattr(luq, "random_bits16", lambda stream, numel: r16)
    mean = LogUnbiased(bits)(x, torch.tensor(0)).values.double().mean(0)
    grid = levels(bits, 1.0)
    for v, m in zip(values, mean.tolist(), strict=True):
        v = float(torch.tensor(v))
        at = int(torch.searchsorted(grid, torch.tensor(abs(v), dtype=torch.float64), right=True)) - 1
        gap = float(grid[min(at + 1, grid.numel() - 1)] - grid[at])
        assert abs(m - v) <= gap * 2.0**-17 * (1 + 1e-6)


def test_luq_variance_is_that_of_two_levels():
    x = torch.full((1 << 14,), 0.75)
    x[0] = 1.0
    v = LogUnbiased(4)(x, torch.tensor(3)).values[1:].double()
    assert math.isclose(float(v.var()), 0.25 * 0.25, rel_tol=0.05)  # 0.5 or 1, each with probability 1/2


def test_luq_at_the_floor_of_float32():
    x = torch.tensor([2.0**-80, 2.0**-110, -(2.0**-95)])
    v = LogUnbiased(6, rounding="nearest")(x).values
    assert v.tolist() == x.tolist()  # all of them levels, 30 octaves apart


# ------------------------------------------------------------------------------------------------------------ BHQ


def rows(seed: int, n: int, d: int, spread: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) * torch.exp2(spread * torch.randn(n, 1, generator=g))
    return torch.where(torch.rand(n, 1, generator=g) < 0.1, 0.0, x)


@some
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), spread=st.floats(0, 8))
def test_bhq_groups_have_one_first_row_the_largest(seed, n, spread):
    r = rows(seed, n, 5, spread).double().abs().amax(1)
    group, first, s = bhq.row_groups(r)
    assert int(group.max()) < n
    for name in group.unique():
        members = group == name
        assert int((first & members).sum()) == 1
        assert float(r[first & members]) == float(r[members].max())
        assert (r[members] > 0).all() or int(members.sum()) == 1
    assert torch.allclose(s[first & (r > 0)], r[first & (r > 0)] ** (-1 / 3))


@some
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), spread=st.floats(0, 8))
def test_bhq_reflection_is_its_own_inverse_and_spreads_the_first_row(seed, n, spread):
    x = rows(seed, n, 5, spread).double()
    group, first, _ = bhq.row_groups(x.abs().amax(1))
    once = bhq.reflect(x, group, first)
    assert torch.allclose(bhq.reflect(once, group, first), x, rtol=0, atol=1e-12 * float(x.abs().max() + 1e-30))
    assert torch.allclose(once.square().sum(), x.square().sum())
    alone = bhq.reflect(torch.where(first.unsqueeze(1), 1.0, 0.0).double(), group, first)
    size = torch.bincount(group, minlength=n)[group].double()
    assert torch.allclose(alone.flatten(), size.rsqrt())


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@some
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), spread=st.floats(0, 5), bits=st.integers(2, 8))
def test_bhq_error_is_at_most_what_a_step_in_each_row_of_a_group_gives(rounding, seed, n, spread, bits):
    """|x - v| of row j <= step / s_j times the sum over the group of |H_ji|, which is at most sqrt(k)."""
    x = rows(seed, n, 6, spread)
    v = BlockHouseholder(bits, rounding=rounding)(x, torch.tensor(seed)).values.double()
    group, first, s = bhq.row_groups(x.double().abs().amax(1))
    mixed = bhq.reflect(x.double() * s.unsqueeze(1), group, first).abs().amax(1)
    step = torch.zeros(n, dtype=torch.float64).scatter_reduce(0, group, mixed, "amax")[group] / (2 ** (bits - 1) - 1)
    size = torch.bincount(group, minlength=n)[group].double()
    bound = step / s * size.sqrt() * (1 if rounding == "stochastic" else 0.5)
    assert ((x.double() - v).abs() <= bound.unsqueeze(1) * (1 + 1e-3) + 1e-12).all()
    assert not v[x.abs().amax(1) == 0].any()


def test_bhq_is_unbiased_exactly(monkeypatch):
    """Every code's mean over all r16 is t / 2^16 (numerics): the mean of the values is then x but for t's rounding."""
    x = rows(3, 6, 4, 3.0)
    quantizer = BlockHouseholder(4, rounding="stochastic")
    seen = {}

    def mean_code(mixed, r, shift, stream, bits, signed):
        inv = numerics.inverse_step(r, quantizer.format)
        seen["t"] = numerics.to_fixed(mixed, inv, quantizer.format)
        return seen["t"].double() / 65536

    monkeypatch.setattr(bhq.ops, "quantize", mean_code)
    mean = quantizer(x, torch.tensor(1)).values.double()
    assert seen["t"].abs().max() == 7 << 16
    group, first, s = bhq.row_groups(x.double().abs().amax(1))
    mixed = bhq.reflect(x.double() * s.unsqueeze(1), group, first).abs().max()
    slack = mixed / 7 / s * math.sqrt(6) * 2.0**-15
    assert ((mean - x.double()).abs() <= slack.unsqueeze(1) + 2.0**-22 * x.abs()).all()


def test_bhq_beats_one_scale_and_a_scale_for_each_row_on_one_large_row():
    """The case it is made for (StatQuant): one sample holds nearly all of the gradient."""
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)) * 1e-3
    x[5] *= 1e3

    def mse(quantizer) -> float:
        trials = [quantizer(x, torch.tensor(i)).dequantize(torch.float64) for i in range(8)]
        return float(sum((v - x.double()).square().sum() for v in trials))

    b, one, each = (mse(c(4, rounding="stochastic")) for c in (BlockHouseholder, AbsMax, PerChannel))
    assert b < 0.2 * one
    assert b < 0.6 * each


def test_bhq_on_images_reflects_samples():
    x = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    want = BlockHouseholder(4)(x.flatten(1)).values.view_as(x)
    assert torch.equal(BlockHouseholder(4)(x).values, want)


# ------------------------------------------------------------------------------------------------------ zero points


@pytest.mark.parametrize("axis", [None, 0, 1])
@some
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), shift=st.floats(-10, 10))
def test_a_zero_point_reaches_both_ends_and_errs_by_half_a_step(axis, seed, bits, shift):
    x = sample(seed, 4, 7, spread=1) + shift
    v = ZeroPoint(bits, axis=axis)(x).values.double()
    rest = [i for i in range(2) if i != axis]
    low, high = x.double().amin(rest, keepdim=True), x.double().amax(rest, keepdim=True)
    step, noise = (high - low) / (2**bits - 1), 2.0**-21 * float(x.abs().max())
    assert ((v - x.double()).abs() <= step * (0.5 + 2.0**-13) + noise).all()
    assert torch.allclose(v.amin(rest, keepdim=True), low, rtol=0, atol=noise)
    assert torch.allclose(v.amax(rest, keepdim=True), high, rtol=0, atol=noise)


def test_a_constant_tensor_is_exact_and_shifted_codes_are_finer_than_symmetric_ones():
    x = torch.full((3, 4), 0.1)
    assert torch.equal(ZeroPoint(2)(x).values, x)
    y = torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 1
    errors = [float((q(y).dequantize() - y).abs().mean()) for q in (ZeroPoint(4), AbsMax(4))]
    assert 3 < errors[1] / errors[0] < 6  # steps 1/15 and 2/7


@pytest.mark.parametrize(
    "quantizer", [ZeroPoint(3, rounding="stochastic"), MXInt(3, rounding="stochastic", scale="ceil")], ids=str
)
def test_unbiased_within_the_error_of_a_mean(quantizer):
    x = torch.tensor([[1.0, 0.3137, -0.7701, 0.111, -0.002]])
    trials = 1 << 13
    mean = quantizer(x.expand(trials, -1), torch.tensor(5)).dequantize(torch.float64).mean(0)
    step = 0.5  # the larger of the two, 1.77 / 7 and 1/2
    assert ((mean - x[0].double()).abs() <= 5 * step / 2 / trials**0.5).all()


# ------------------------------------------------------------------------------------------------------------- MX


@some
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), block=st.integers(1, 9), spread=st.floats(0, 6))
@pytest.mark.parametrize("scale", ["floor", "ceil"])
@pytest.mark.parametrize("axis", [0, 1])
def test_mx_scales_are_powers_of_two_of_each_block(scale, axis, seed, bits, block, spread):
    x = sample(seed, 5, 8, spread=spread)
    q = MXInt(bits, block=block, axis=axis, scale=scale)(x)
    qmax = q.format.qmax
    for chunk, s in zip(x.split(block, axis), q.scale.split(block, axis), strict=True):
        top = chunk.double().abs().amax(axis)
        mine = s.double().amax(axis)
        assert torch.equal(s.double().amin(axis), mine)
        assert (torch.frexp(mine[top > 0])[0] == 0.5).all()
        assert (mine[top == 0] == 0).all()
        top, mine = top[top > 0], mine[top > 0]
        if scale == "ceil":
            assert (top <= qmax * mine).all()
            assert (top > qmax * mine / 2).all()
        else:
            assert (top < (qmax + 1) * mine).all()
            assert (top >= (qmax + 1) * mine / 2).all()


def test_mx_blocks_of_an_image_run_along_channels():
    x = torch.randn(2, 40, 3, 3, generator=torch.Generator().manual_seed(0))
    s = MXInt(8)(x).scale
    assert s.shape == x.shape
    assert torch.equal(s[:, :32], s[:, :1].expand(-1, 32, -1, -1))
    assert torch.equal(s[:, 32:], s[:, 32:33].expand(-1, 8, -1, -1))


def test_mx_a_nan_is_lost_with_its_block_alone():
    x = torch.ones(1, 8)
    x[0, 1] = float("nan")
    v = MXInt(4, block=4)(x).dequantize()
    assert v[0, :4].isnan().all()
    assert v[0, 4:].eq(1).all()
