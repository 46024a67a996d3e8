"""Which group a channel goes to: the definition in fractions, every choice against brute force, and the bounds.

K channels, r_k = max |x| in channel k, R = max_k r_k. The cost of a grouping is the sum over channels with r_k > 0 of
(range of k's group)^2: times M / 4 Q^2 it is the bound on the variance of stochastic rounding.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from subbyte import ops
from subbyte.numerics import MAX_EXPONENT, RANGE_FLOOR
from subbyte.quantizers import AbsMax, GroupOracle, PerChannel, Quantizer, ShiftQuant, oracle_ranges, variance_bound


@pytest.fixture(autouse=True, scope="module")
def _reference():
    with ops.use_backend("reference"):
        yield


def channel() -> st.SearchStrategy[float]:
    """A channel's range: exact powers of two and their neighbours, zeros, anything between."""
    power = st.integers(-26, 0).map(lambda e: 2.0**e)
    beside = st.tuples(power, st.sampled_from([0.0, 2.0])).map(
        lambda p: float(np.nextafter(np.float32(p[0]), np.float32(p[1])))
    )
    anything = st.floats(2.0**-26, 1.0, width=32)
    return st.one_of(power, beside, anything, anything, st.just(0.0))


ranges = st.lists(channel(), min_size=1, max_size=9)
few = settings(max_examples=25)  # for each row of parameters


def tensor_of(r: list[float]) -> torch.Tensor:
    """(2, K) with those ranges."""
    x = torch.tensor(r, dtype=torch.float32)
    return torch.stack((x, -x / 3))


def exact(r: list[float]) -> list[Fraction]:
    return [Fraction(float(np.float32(v))) for v in r]


def octave(r_k: Fraction, r: Fraction, top: int) -> int:
    """The largest e <= top with r_k <= r 2^-e; the last for a channel of zeros, none for a tensor of zeros."""
    return max(e for e in range(top + 1) if e == 0 or (r_k <= r / 2**e and r > 0))


def group_ranges(quantizer: Quantizer, x: torch.Tensor) -> list[Fraction]:
    """The range of each channel's group, exactly."""
    r, shift, _ = quantizer.ranges(x)
    fall = torch.zeros_like(r, dtype=torch.uint8) if shift is None else shift
    wide, fall = torch.broadcast_tensors(r, fall)
    rows = zip(wide.flatten().tolist(), fall.flatten().tolist(), strict=True)
    got = [Fraction(v) / 2**e for v, e in rows]
    return got if len(got) == x.shape[1] else got * x.shape[1]


def cost(groups: list[Fraction], r: list[float]) -> Fraction:
    return sum((g * g for g, v in zip(groups, r, strict=True) if v > 0), Fraction(0))


# ----------------------------------------------------------------------------------------------------- ShiftQuant


@pytest.mark.parametrize("groups", [1, 2, 4, 9, 24])
@few
@given(r=ranges)
def test_consecutive_exponents_are_the_definition(groups, r):
    _, shift, max_shift = ShiftQuant(4, groups=groups).ranges(tensor_of(r))
    values = exact(r)
    assert shift.dtype is torch.uint8
    assert max_shift == groups - 1
    assert shift.flatten().tolist() == [octave(v, max(values), groups - 1) for v in values]


@pytest.mark.parametrize("largest", [1.0, 1.7, float(np.float32(0.1)), 3e38, 2.0**-40])
def test_a_range_exactly_at_a_boundary_and_one_ulp_beside(largest):
    top = np.float32(largest)
    for e in range(1, MAX_EXPONENT + 1):
        at = top * np.float32(2.0**-e)
        above, below = np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(0))
        x = torch.tensor([[float(v) for v in (top, at, above, below)]])
        for kind in ({}, {"exponents": "chosen", "max_exponent": MAX_EXPONENT}):
            _, shift, _ = ShiftQuant(8, groups=MAX_EXPONENT + 1, **kind).ranges(x)
            assert shift.flatten().tolist() == [0, e, e - 1, e], (e, kind)


def best_exponents(r: list[float], groups: int, top: int) -> Fraction:
    """The least cost over every set of `groups` exponents that holds 0."""
    values = exact(r)
    octaves = [octave(v, max(values), top) for v in values]
    costs = []
    for more in itertools.combinations(range(1, top + 1), groups - 1):
        exponents = [max(e for e in (0, *more) if e <= o) for o in octaves]
        costs.append(cost([max(values) / 2**e for e in exponents], r))
    return min(costs)


@pytest.mark.parametrize(("groups", "top"), [(1, 5), (2, 8), (3, 8), (4, 8), (3, 15), (9, 8)])
@few
@given(r=ranges)
@example(r=[1.0])
@example(r=[0.0, 0.0])
@example(r=[1.0, 0.0, 2.0**-8])
@example(r=[1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])  # zeros do not vote
@example(r=[2.0**-e for e in range(9)])
def test_chosen_exponents_are_the_best_of_all_sets(groups, top, r):
    quantizer = ShiftQuant(4, groups=groups, exponents="chosen", max_exponent=top)
    x = tensor_of(r)
    _, shift, max_shift = quantizer.ranges(x)
    used, values = sorted({0, *shift.flatten().tolist()}), exact(r)
    assert max_shift == top
    assert len(used) <= groups
    for v, e in zip(values, shift.flatten().tolist(), strict=True):
        assert e == max(s for s in used if s <= octave(v, max(values), top))
    assert cost(group_ranges(quantizer, x), r) == best_exponents(r, groups, top)


def test_chosen_exponents_over_many_channels():
    """Histograms of thousands of channels: the brute force runs over octaves alone."""
    g = torch.Generator().manual_seed(2)
    x = torch.exp2(-(torch.rand(1, 3000, generator=g) * 14)) * torch.rand(1, 3000, generator=g)
    quantizer = ShiftQuant(4, groups=4, exponents="chosen", max_exponent=12)
    r, shift, _ = quantizer.ranges(x)
    octaves = [octave(Fraction(v), Fraction(r.item()), 12) for v in x.flatten().tolist()]
    count = [octaves.count(o) for o in range(13)]
    least = min(
        sum(Fraction(n, 4 ** max(e for e in (0, *more) if e <= o)) for o, n in enumerate(count))
        for more in itertools.combinations(range(1, 13), 3)
    )
    assert sum(Fraction(1, 4**e) for e in shift.flatten().tolist()) == least


@pytest.mark.parametrize("above", range(7))
@pytest.mark.parametrize(
    "kind", [{}, {"exponents": "chosen", "max_exponent": MAX_EXPONENT}], ids=["consecutive", "chosen"]
)
def test_near_the_floor_nothing_is_clipped_and_no_group_lies_below_it(above, kind):
    r = [RANGE_FLOOR * 1.5 * 2.0 ** (above - e) for e in range(12)]
    quantizer = ShiftQuant(8, groups=12, **kind)
    x = tensor_of(r)
    limits = group_ranges(quantizer, x)
    assert all(v <= limit for v, limit in zip(exact(r), limits, strict=True))
    assert min(limits) >= Fraction(RANGE_FLOOR)
    q = quantizer(x)
    step = q.effective_scale().double()
    assert ((x.double() - q.dequantize(torch.float64)).abs() <= step * (0.5 + 2.0**-13)).all()


def test_the_last_group_takes_whatever_is_smaller():
    q = ShiftQuant(4, groups=3)(torch.tensor([[1.0, 2.0**-2, 2.0**-9, 0.0]]))
    assert q.shift.tolist() == [[0, 2, 2, 2]]
    assert q.codes.tolist() == [[7, 7, 0, 0]]


def test_groups_along_another_axis():
    x = tensor_of([1.0, 0.4, 0.2, 0.0])
    _, shift, _ = ShiftQuant(4, axis=0).ranges(x.T.contiguous())
    assert shift.shape == (4, 1)
    assert torch.equal(shift.T, ShiftQuant(4).ranges(x)[1])


def test_image_channels_are_axis_1():
    x = torch.ones(2, 3, 4, 5) * torch.tensor([1.0, 0.5, 0.1]).view(1, 3, 1, 1)
    q = ShiftQuant(4)(x)
    assert q.shift.shape == (1, 3, 1, 1)
    assert q.shift.flatten().tolist() == [0, 1, 3]


# ---------------------------------------------------------------------------------------------------- GroupOracle


def best_split(r: list[float], groups: int) -> Fraction:
    """The least cost over every split of the sorted ranges into at most `groups` runs."""
    ordered = sorted((v for v in exact(r) if v > 0), reverse=True)
    if not ordered:
        return Fraction(0)
    costs = []
    for n in range(min(groups, len(ordered))):
        for cuts in itertools.combinations(range(1, len(ordered)), n):
            ends = (0, *cuts, len(ordered))
            costs.append(sum(ordered[a] ** 2 * (b - a) for a, b in itertools.pairwise(ends)))
    return min(costs)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 12])
@few
@given(r=ranges)
@example(r=[0.0, 0.0, 0.0])
@example(r=[1.0, 1.0, 0.0, 0.5, 0.5])
def test_the_oracle_is_the_best_of_all_splits(groups, r):
    x = tensor_of(r)
    got, values = group_ranges(GroupOracle(4, groups=groups), x), exact(r)
    assert len({g for g in got if g > 0}) <= groups
    for g, v in zip(got, values, strict=True):
        assert g >= v
        assert g in values
        assert (g == 0) == (v == 0)
    best = best_split(r, groups)
    assert best <= cost(got, r) <= best * (1 + Fraction(1, 10**12))  # the program adds in float64


def test_the_oracle_with_a_group_for_each_channel_is_per_channel():
    r = torch.tensor([0.3, 0.0, 2.0, 1e-9, 0.7, 0.3])
    assert torch.equal(oracle_ranges(r, 6), r)
    assert torch.equal(oracle_ranges(r, 100), r)
    assert torch.equal(oracle_ranges(r, 1), torch.where(r > 0, 2.0, 0.0))


# --------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("groups", [1, 2, 4, 9])
@few
@given(r=ranges)
def test_the_order_of_the_bounds(groups, r):
    """PerChannel <= oracle <= chosen <= consecutive <= one scale, with the same number of groups."""
    x = tensor_of(r)
    ladder: list[Quantizer] = [
        PerChannel(4, axis=1),
        GroupOracle(4, groups=groups),
        ShiftQuant(4, groups=groups, exponents="chosen"),
        ShiftQuant(4, groups=groups),
        AbsMax(4),
    ]
    costs = [cost(group_ranges(q, x), r) for q in ladder]
    costs[1] /= 1 + Fraction(1, 10**12)
    costs[0] /= 1 + Fraction(1, 10**11)
    assert costs == sorted(costs)


@pytest.mark.parametrize("groups", [2, 4, 9])
@few
@given(r=ranges)
def test_shift_costs_less_than_four_times_per_channel_and_its_last_group(groups, r):
    values = exact(r)
    largest, last = max(values), max(values) / 2 ** (groups - 1)
    got = group_ranges(ShiftQuant(4, groups=groups), tensor_of(r))
    above = [(g, v) for g, v in zip(got, values, strict=True) if v > last / 2]
    assert all(g < 2 * v for g, v in above)
    assert not above or sum(g * g for g, _ in above) < 4 * sum(v * v for _, v in above)
    rest = [g for g, v in zip(got, values, strict=True) if v <= last / 2]
    assert sum(g * g for g in rest) <= len(rest) * largest**2 / 4 ** (groups - 1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@few
@given(r=ranges)
def test_variance_bound_is_the_sum_of_squared_steps_over_four(bits, r):
    x = tensor_of(r)
    for quantizer in (AbsMax(bits), PerChannel(bits, axis=1), ShiftQuant(bits), GroupOracle(bits)):
        q = quantizer(x)
        want = sum(2 * float(g) ** 2 for g in group_ranges(quantizer, x)) / (4 * q.format.qmax**2)
        assert math.isclose(variance_bound(q).item(), want, rel_tol=2.0**-22)


@pytest.mark.parametrize("quantizer", [AbsMax(4), ShiftQuant(4), GroupOracle(4), PerChannel(4, axis=1)], ids=str)
def test_the_variance_of_stochastic_rounding_stays_below_its_bound(quantizer):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(64, 40, generator=g) * torch.exp2(3 * torch.randn(1, 40, generator=g))
    q = quantizer(x)
    s = q.effective_scale().double()
    t = x.double() / s
    p = t - t.floor()
    variance = (s.square() * p * (1 - p)).sum()
    bound = variance_bound(q)
    assert 0 < variance <= bound
    trials = [type(quantizer)(**{**vars(quantizer), "rounding": "stochastic"})(x, torch.tensor(i)) for i in range(64)]
    measured = sum((v.dequantize(torch.float64) - x.double()).square().sum() for v in trials) / len(trials)
    assert abs(measured / variance - 1) < 0.1


def test_log_uniform_channels_cost_about_1_85_times_per_channel():
    """Over an octave, r from 1 down to 1/2 with log r uniform: 1 / mean(r^2) = ln 4 / (3/4) = 1.848."""
    u = (torch.arange(20_000) + 0.5) / 20_000 * 8
    x = torch.exp2(-u)[None]
    bounds = [variance_bound(q(x)) for q in (ShiftQuant(8, groups=9), PerChannel(8, axis=1))]
    assert abs(float(bounds[0] / bounds[1]) - math.log(4) / 0.75) < 0.01
