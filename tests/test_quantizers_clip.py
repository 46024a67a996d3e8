"""SAWB and MSEClip: the coefficients fitted again, moments without order, the search against brute force."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subbyte import ops
from subbyte.numerics import RANGE_FLOOR
from subbyte.quantizers import SAWB, AbsMax, MSEClip, PerChannel, Quantizer, ShiftQuant
from subbyte.quantizers.clip import BINS, SAWB_COEFFICIENTS
from test_quantizers import sample


@pytest.fixture(autouse=True, scope="module")
def _reference():
    with ops.use_backend("reference"):
        yield


def error(x: torch.Tensor, r: float, qmax: int, signed: bool = True) -> float:
    """Sum of squared errors of nearest rounding on {-Q..Q} r / Q."""
    s = r / qmax
    code = (x.double() / s).round().clamp(-qmax if signed else 0, qmax)
    return float((x.double() - code * s).square().sum())


# ----------------------------------------------------------------------------------------------------------- SAWB

POINTS = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * 40
DENSITIES = {
    "Gaussian": torch.exp(-POINTS.square() / 2),
    "Laplace": torch.exp(-POINTS),
    "logistic": 1 / torch.cosh(POINTS / 2).square(),
    "uniform": (POINTS < 1).double(),
    "triangle": (1 - POINTS).clamp(min=0),
    "von Mises": torch.where(POINTS.le(math.pi), torch.exp(torch.cos(POINTS)), 0.0),
}


def best_range(p: torch.Tensor, qmax: int) -> float:
    """The range of least squared error for a density, by a coarse search and a fine one around it."""

    def cost(r: torch.Tensor) -> torch.Tensor:
        s = (r / qmax).unsqueeze(1)
        return (p * (POINTS - (POINTS / s).round().clamp(max=qmax) * s).square()).sum(1)

    top = float(POINTS[p > 1e-12].max())
    grid = torch.linspace(0.02, 1, 50, dtype=torch.float64) * top
    at = int(cost(grid).argmin())
    fine = torch.linspace(float(grid[max(at - 1, 0)]), float(grid[min(at + 1, 49)]), 31, dtype=torch.float64)
    return float(fine[cost(fine).argmin()])


@pytest.mark.parametrize("qmax", [1, 3, 7, 15])
def test_the_coefficients_are_the_fit_over_six_densities(qmax):
    ratio, best = [], []
    for p in DENSITIES.values():
        mean = float((p * POINTS).sum() / p.sum())
        ratio.append(math.sqrt(float((p * POINTS.square()).sum() / p.sum())) / mean)
        best.append(best_range(p / p.sum(), qmax) / mean)
    a = torch.tensor([[r, -1.0] for r in ratio], dtype=torch.float64)
    c = torch.linalg.lstsq(a, torch.tensor(best, dtype=torch.float64).unsqueeze(1)).solution.flatten()
    assert torch.allclose(c, torch.tensor(SAWB_COEFFICIENTS[qmax], dtype=torch.float64), rtol=0.02)


def test_there_are_coefficients_for_every_format():
    formats = {AbsMax(b, signed=s).format.qmax for b in range(2, 9) for s in (True, False)}
    assert set(SAWB_COEFFICIENTS) == formats


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), signed=st.booleans())
def test_the_range_lies_between_the_mean_and_the_maximum(seed, bits, signed):
    x = sample(seed, 5, 9, spread=1, signed=signed)
    r = float(SAWB(bits, signed).ranges(x)[0])
    present = x[x != 0].double().abs()
    assert float(x.abs().max()) * (1 + 2.0**-20) >= r >= float(present.mean()) * (1 - 2.0**-10)


def test_the_formula_and_that_zeros_do_not_count():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    c1, c2 = SAWB_COEFFICIENTS[7]
    want = c1 * float(x.double().square().mean().sqrt()) - c2 * float(x.double().abs().mean())
    assert math.isclose(float(SAWB(4).ranges(x)[0]), want, rel_tol=1e-3)
    padded = torch.cat((x, torch.zeros(3000)))
    assert torch.equal(SAWB(4).ranges(padded)[0], SAWB(4).ranges(x)[0])


def test_the_range_is_the_same_in_any_order_and_scales_by_powers_of_two():
    x = torch.randn(4001, generator=torch.Generator().manual_seed(4))
    r = SAWB(4).ranges(x)[0]
    assert torch.equal(SAWB(4).ranges(x.flip(0))[0], r)
    assert torch.equal(SAWB(4).ranges(x[torch.randperm(4001)])[0], r)
    assert torch.equal(SAWB(4).ranges(x * 2.0**-30)[0], r * 2.0**-30)


@pytest.mark.parametrize("clip", [SAWB, MSEClip])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_gaussian_is_represented_better_than_by_its_maximum(clip, bits):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(5))
    r = float(clip(bits).ranges(x)[0])
    least = min(error(x, i / 200 * float(x.abs().max()), 2 ** (bits - 1) - 1) for i in range(1, 201))
    assert error(x, r, clip(bits).format.qmax) <= min(
        1.1 * least, 0.9 * error(x, float(x.abs().max()), 2 ** (bits - 1) - 1)
    )


# -------------------------------------------------------------------------------------------------------- MSEClip


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 8),
    signed=st.booleans(),
    spread=st.floats(0, 3),
    candidates=st.sampled_from([1, 7, 64]),
)
def test_no_candidate_is_better_by_more_than_the_histogram_blurs(seed, bits, signed, spread, candidates):
    x = sample(seed, 6, 9, spread=spread, signed=signed)
    quantizer = MSEClip(bits, signed, candidates=candidates)
    r, top, qmax = float(quantizer.ranges(x)[0]), float(x.abs().max()), quantizer.format.qmax
    assert any(math.isclose(r, i * top / candidates, rel_tol=1e-6) for i in range(1, candidates + 1))
    roots = [math.sqrt(error(x, i * top / candidates, qmax, signed)) for i in range(1, candidates + 1)]
    blur = 2 * math.sqrt(x.numel()) * top / (2 * BINS)
    assert math.sqrt(error(x, r, qmax, signed)) <= min(roots) + blur + 1e-6 * top


def test_one_candidate_is_the_maximum():
    x = sample(3, 5, 6)
    assert torch.equal(MSEClip(4, candidates=1)(x).codes, AbsMax(4)(x).codes)


def test_an_outlier_is_clipped():
    x = torch.cat((torch.randn(2000, generator=torch.Generator().manual_seed(1)), torch.tensor([30.0])))
    r = float(MSEClip(3).ranges(x)[0])
    assert 1 < r < 8
    assert MSEClip(3)(x).codes[-1] == 3


def test_negative_values_do_not_count_in_an_unsigned_format():
    x = torch.tensor([-8.0, 1.0, 2.0, 3.0])
    for clip in (SAWB, MSEClip):
        assert clip(4, signed=False)(x).codes[0] == 0
    assert error(x[1:], float(MSEClip(4, signed=False).ranges(x)[0]), 15) < 0.01
    assert torch.equal(SAWB(4, signed=False).ranges(x)[0], SAWB(4, signed=False).ranges(x[1:])[0])


# ------------------------------------------------------------------------------------------- a clip of the largest

CLIPPED = [
    AbsMax(4, clip=0.5),
    AbsMax(4, signed=False, clip=0.3),
    AbsMax(8, rounding="stochastic", clip=0.9),
    ShiftQuant(4, groups=9, rounding="stochastic", clip=0.5),
    ShiftQuant(3, groups=3, clip=0.7, axis=0),
    PerChannel(4, axis=1, clip=0.6),
]


@pytest.mark.parametrize("quantizer", CLIPPED, ids=str)
@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 6), k=st.integers(1, 12))
def test_codes_end_at_the_clip_and_are_as_fine_as_its_range_allows(quantizer: Quantizer, seed: int, m: int, k: int):
    x = sample(seed, m, k, signed=quantizer.signed)
    stream = torch.tensor(seed) if quantizer.stochastic else None
    r, shift, _ = quantizer.ranges(x)
    whole, same_shift, _ = dataclasses.replace(quantizer, clip=1.0).ranges(x)
    assert torch.equal(r, torch.where(whole > 0, (whole * quantizer.clip).clamp(min=RANGE_FLOOR), whole))
    assert shift is same_shift is None or torch.equal(shift, same_shift)
    q = quantizer(x, stream)
    reach = q.effective_scale().double() * quantizer.format.qmax
    beyond = x.abs().double() > reach * (1 + 2.0**-20)
    assert torch.equal(q.codes[beyond].abs(), torch.full_like(q.codes[beyond], quantizer.format.qmax))
    inside = x.abs().double() <= reach
    error = (x.double() - q.dequantize(torch.float64)).abs() / q.effective_scale().double().clamp(min=1e-300)
    assert (error[inside & (x != 0)] <= (1.0 if quantizer.stochastic else 0.5) + 2.0**-13).all()
    if x.abs().max() > 0:
        assert beyond.any()


def test_a_clip_makes_the_error_of_a_bell_smaller_and_of_a_uniform_tensor_larger():
    g = torch.Generator().manual_seed(0)
    bell, flat = torch.randn(50_000, generator=g), torch.rand(50_000, generator=g) * 2 - 1
    for x, better in ((bell, True), (flat, False)):
        whole, cut = ((x - AbsMax(4, clip=c)(x).dequantize()).square().sum() for c in (1.0, 0.6))
        assert (cut < whole * 0.6) if better else (cut > whole * 2)


@pytest.mark.parametrize("quantizer", CLIPPED, ids=str)
def test_a_clip_of_zeros_of_the_smallest_and_of_no_numbers(quantizer: Quantizer):
    stream = torch.tensor(1) if quantizer.stochastic else None
    assert not quantizer(torch.zeros(2, 3), stream).codes.any()
    assert quantizer(torch.zeros(0, 3), stream).codes.numel() == 0
    tiny = torch.full((2, 3), RANGE_FLOOR)
    assert (quantizer(tiny, stream).codes == quantizer.format.qmax).all()
    for bad in (torch.nan, torch.inf):
        assert quantizer(torch.tensor([[1.0, bad, 2.0]]), stream).dequantize().isnan().any()


@pytest.mark.parametrize("clip", [0.0, -0.5, 1.5, math.nan])
def test_a_clip_is_a_share(clip: float):
    for kind in (AbsMax, PerChannel, ShiftQuant):
        with pytest.raises(ValueError, match="clip is a share of the largest magnitude"):
            kind(4, clip=clip)
