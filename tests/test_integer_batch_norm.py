"""integer.batch_norm against fractions and the float64 formulas; tolerances are steps of the codes involved."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from subbyte import integer
from subbyte.integer import batch_norm as bn
from subbyte.numerics import IntFormat
from subbyte.ops.norm import norm_stats

S8 = IntFormat(8)


def batch(q: Tensor) -> bn.Statistics:
    """q (N, C)."""
    n = q.shape[0]
    total, spread, least, greatest = (t.flatten() for t in norm_stats(q, [0], False))
    return bn.batch_statistics(total, spread, torch.maximum(n * greatest - total, total - n * least), n)


def codes(n: int, channels: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    spread = torch.tensor([40.0, 3.0, 100.0, 0.6])[:channels]
    return (torch.randn(n, channels, generator=g) * spread + 5).round().clamp(-127, 127).to(torch.int8)


def float_norm(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(xhat, mu, D) in float64."""
    x = q.double()
    mu = x.mean(0)
    d = math.sqrt(math.pi / 2) * (x - mu).abs().mean(0)
    return (x - mu) / d, mu, d


def reciprocal_error(q: Tensor) -> Tensor:
    """The relative error of 2^16 / D as an integer, and of c in 14 bits."""
    return float_norm(q)[2] * 2**-16 + 2**-13


@pytest.mark.parametrize("n", [2, 7, 1000, 4096])
def test_xhat_is_the_float_formula_within_half_a_step(n: int) -> None:
    q = codes(n, 4)
    keep = float_norm(q)[2] > 0.05  # below, the floor of a deviation is at work
    table = bn.normalized_table(batch(q), S8, S8)
    k = table.k.gather(1, q.T.long() + 128).T.double()
    xhat = float_norm(q)[0]
    step = torch.exp2(-table.fraction.double())
    error = (k * step - xhat).abs() / step
    assert (error <= 0.5 + k.abs() * reciprocal_error(q))[:, keep].all()
    fine = table.fraction < bn.FINEST
    assert (k.abs().amax(0) >= 63)[keep & fine].all()  # the fraction is as fine as it can be


def test_the_inverse_deviation() -> None:
    q = codes(500, 4)
    stats = batch(q)
    d = float_norm(q)[2]
    got = stats.inverse.double() * torch.exp2(stats.inverse_exponent.double())
    assert ((got * d - 1).abs() <= reciprocal_error(q) + 2**-16).all()
    assert stats.inverse.max() < 1 << 17


def test_the_widest_sums_stay_in_their_widths() -> None:
    n = 1 << 12  # S, A and M of n = MAX_COUNT are made by hand below: no such tensor is needed
    q = torch.full((n, 1), 127, dtype=torch.int8)
    q[::2] = -127
    table = bn.normalized_table(batch(q), S8, S8)
    assert table.k[0, 255].item() == -table.k[0, 1].item() == round(2 ** table.fraction.item() / math.sqrt(math.pi / 2))
    n = integer.MAX_COUNT
    for total, spread, largest in (
        (0, 127 * n * n, 127 * n),  # the largest spread
        (127 * n - 254, 4 * 127 * (n - 1), 254 * (n - 1)),  # one code against all others: the largest deviation
        (127 * n, 0, 0),  # a constant channel
    ):
        stats = bn.batch_statistics(*(torch.tensor([v]) for v in (total, spread, largest)), n)
        assert 0 < stats.reciprocal.item() < 1 << 24 + 19
        assert stats.largest.item() < 1 << 61
        raw = [(n * v - total) * stats.reciprocal.item() for v in (-128, 127)]
        assert max(map(abs, raw)) < 1 << 61
        assert abs(stats.inverse.item()) < 1 << 17
        table = bn.normalized_table(stats, S8, S8)
        gamma, zero = torch.tensor([127], dtype=torch.int8), torch.tensor(0, dtype=torch.int32)
        beta = torch.tensor([(1 << 24) - 1], dtype=torch.int32)
        y, _ = bn.affine_table(table, gamma, zero, beta, zero)
        assert y.abs().max() < 1 << 24
        sums = tuple(torch.tensor([v]) for v in (127 * n, 127 * 127 * n, n))
        inverse = stats.inverse, stats.inverse_exponent
        c = bn.coefficients(*inverse, table.fraction, gamma, zero, torch.zeros(1, dtype=torch.int32), sums, n)
        bracket = (127 << 8) + abs(c.u.item()) + abs(c.v.item())
        assert bracket < 1 << 31
        assert bracket * abs(c.a.item()) < 1 << 62
        assert bracket * abs(c.a.item()) >> c.shift.item() <= 1 << 30


@pytest.mark.parametrize(("gamma_e", "beta_e"), [(0, -20), (0, 0), (-10, 5), (30, -40)])
def test_the_affine_table_is_gamma_xhat_plus_beta(gamma_e: int, beta_e: int) -> None:
    table = bn.normalized_table(batch(codes(300, 3)), S8, S8)
    gamma = torch.tensor([127, -3, 0], dtype=torch.int8)
    beta = torch.tensor([(1 << 24) - 1, -12345, 7], dtype=torch.int32)
    exponents = torch.tensor(gamma_e, dtype=torch.int32), torch.tensor(beta_e, dtype=torch.int32)
    y, e = bn.affine_table(table, gamma, exponents[0], beta, exponents[1])
    unit = Fraction(2) ** e.item()
    for c in range(3):
        for i in (0, 1, 127, 128, 200, 255):
            xhat = Fraction(int(table.k[c, i])) / Fraction(2) ** int(table.fraction[c])
            exact = int(gamma[c]) * Fraction(2) ** gamma_e * xhat + int(beta[c]) * Fraction(2) ** beta_e
            assert abs(int(y[c, i]) * unit - exact) <= unit  # two roundings of half a unit
    assert y.abs().max() < 1 << 24


def float_dx(q: Tensor, g: Tensor, gamma: Tensor, codes_of_xhat: bool) -> Tensor:
    """METHOD's formula for L1 in float64, by the statistics of q; xhat and its sign exact or of the codes."""
    xhat, mu, d = float_norm(q)
    t = torch.sign(q.double() - mu)
    if codes_of_xhat:
        table = bn.normalized_table(batch(q), S8, S8)
        xhat = table.k.gather(1, q.T.long() + 128).T.double() * torch.exp2(-table.fraction.double())
        t = xhat.sign()
    mean = (g * xhat).mean(0)
    return gamma / d * (g - g.mean(0) - math.sqrt(math.pi / 2) * (t - t.mean(0)) * mean)


def integer_dx(q: Tensor, qg: Tensor, gamma: Tensor, frozen: bool = False, wrong: int = 0) -> Tensor:
    stats = batch(q)
    table = bn.normalized_table(stats, S8, S8)
    k = table.k.gather(1, q.T.long() + 128).T.long()
    g = qg.long()
    sums = None if frozen else (g.sum(0), (g * k).sum(0) + wrong, k.sign().sum(0))
    zero = torch.zeros((), dtype=torch.int32)
    inverse, g_e = (stats.inverse, stats.inverse_exponent), torch.zeros(q.shape[1], dtype=torch.int32)
    c = bn.coefficients(*inverse, table.fraction, gamma, zero, g_e, sums, q.shape[0])
    dx = torch.ops.subbyte.int_norm_grad(qg, k.to(torch.int8), c.u, c.v, c.a, c.shift, bn.GRADIENT_FRACTION)
    return dx.double() * 2.0 ** c.exponent.item()


def test_dx_is_the_float_formula() -> None:
    q, qg = codes(2000, 3), codes(2000, 3, seed=1)
    gamma = torch.tensor([100, -7, 50], dtype=torch.int8)
    got = integer_dx(q, qg, gamma)
    want = float_dx(q, qg.double(), gamma.double(), codes_of_xhat=True)
    # Three roundings of half of 2^-8, the largest of the channels at 31 bits, and 1 / D as exact as its integer.
    slack = gamma.abs() / float_norm(q)[2] * 1.5 * 2**-8 + want.abs() * (reciprocal_error(q) + 2**-13)
    assert ((got - want).abs() <= slack).all()
    # A small error of one sum is seen: 16 codes of xhat, a deviation, in the mean of g xhat.
    wrong = integer_dx(q, qg, gamma, wrong=16 * 2000)
    assert ((wrong - want).abs() > slack).double().mean() > 0.9
    exact = float_dx(q, qg.double(), gamma.double(), codes_of_xhat=False)
    assert (got - exact).norm() < 0.01 * exact.norm()


def test_constant_statistics_scale_alone() -> None:
    q, qg = codes(500, 3), codes(500, 3, seed=1)
    gamma = torch.tensor([100, -7, 50], dtype=torch.int8)
    want = gamma.double() / float_norm(q)[2] * qg.double()
    slack = want.abs() * (reciprocal_error(q) + 2**-13) + 1e-6
    assert ((integer_dx(q, qg, gamma, frozen=True) - want).abs() <= slack).all()


def test_the_statistics_of_buffers() -> None:
    mean, var = torch.tensor([0.3, -20.0, 0.0]), torch.tensor([0.01, 400.0, 0.0])
    step = torch.tensor([-5, -1, 3], dtype=torch.int32)
    fraction, e = math.frexp(1e-5)
    eps = round(fraction * 2**24), e - 24
    stats = bn.buffer_statistics(*integer.mantissas(mean), *integer.mantissas(var), eps, step)
    table = bn.normalized_table(stats, S8, S8)
    code = torch.arange(256.0, dtype=torch.float64) - 128
    x = code * torch.exp2(step.double())[:, None]
    xhat = (x - mean.double()[:, None]) / torch.sqrt(var.double()[:, None] + 1e-5)
    unit = torch.exp2(-table.fraction.double())[:, None]
    want = (xhat / unit).clamp(-127, 127)
    assert ((table.k.double() - want).abs() <= 0.5 + want.abs() * 2**-12).all()


@pytest.mark.parametrize("v", [0, 1, 2, 3, 99, 1 << 46, (1 << 48) - 1, (1 << 50) - 1])
def test_integer_sqrt(v: int) -> None:
    assert bn.integer_sqrt(torch.tensor([v])).item() == math.isqrt(v)


def test_blend_is_the_exact_mean_to_24_bits() -> None:
    for old, old_e, new, new_e in (
        (1 << 23, -20, -(1 << 20), -22),
        (0, -149, 12345, 3),
        (77, 0, 1, -60),
        (5, -40, 9, 2),
    ):
        tensors = [torch.tensor([v]) for v in (old, old_e, new, new_e)]
        tensors[1], tensors[3] = tensors[1].int(), tensors[3].int()
        m, e = bn.blend(*tensors, weight=6554)
        exact = Fraction(old) * Fraction(2) ** old_e * Fraction(58982, 65536)
        exact += Fraction(new) * Fraction(2) ** new_e * Fraction(6554, 65536)
        unit = max(Fraction(2) ** e.item(), Fraction(2) ** (max(old_e, new_e) - 18))
        assert abs(m.item() * Fraction(2) ** e.item() - exact) <= 2 * unit
        assert abs(m.item()) <= 1 << 24
