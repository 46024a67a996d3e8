"""subbyte.integer against Python's own integers and fractions: shifts, the bits of floats, and their widths."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from subbyte import integer, numerics

EDGES = [0, 1, -1, 2, 3, -3, 5, 127, -128, (1 << 24) - 1, 1 << 24, (1 << 30) - 1, -(1 << 30), (1 << 60) - 1, -(1 << 60)]


def half_even(v: Fraction) -> int:
    return round(v)  # Python rounds a Fraction half to even


def test_shift_by_is_a_rounded_quotient() -> None:
    for n in range(-30, 66):
        for v in EDGES:
            if n < 0 and abs(v) << -n >= 1 << 61:
                continue
            want = half_even(Fraction(v) / Fraction(2) ** n) if n <= 62 else 0
            assert integer.shift_by(torch.tensor([v]), torch.tensor(n)).item() == want, (v, n)


def test_a_left_shift_saturates() -> None:
    got = integer.shift_by(torch.tensor([1 << 40, -(1 << 40), 0]), torch.tensor(-50))
    assert got.tolist() == [1 << 61, -(1 << 61), 0]


def test_shifts_by_a_tensor_are_those_by_a_number() -> None:
    v = torch.tensor([x for x in EDGES if abs(x) <= 1 << 30], dtype=torch.int32)
    r16 = numerics.random_bits16(torch.tensor(3), v.numel())
    for n in range(31):
        wide, shift = v.to(torch.int64), torch.tensor(n, dtype=torch.int32)
        assert torch.equal(integer.right_nearest(v, shift).long(), numerics.shift_right_nearest(wide, n))
        assert torch.equal(
            integer.right_stochastic(v, shift, r16).long(), numerics.shift_right_stochastic(wide, n, r16)
        )


def test_stochastic_rounding_is_unbiased_over_all_numbers() -> None:
    r16 = torch.arange(1 << 16, dtype=torch.int32)
    v = torch.full_like(r16, -12345)
    for n in (1, 8, 16):
        assert integer.right_stochastic(v, torch.tensor(n), r16).sum().item() * 2**n == -12345 * (1 << 16)


def test_shift_to_bits_is_the_smallest_that_fits() -> None:
    for bits in (2, 8, 16, 25, 32):
        for v in (abs(e) for e in EDGES):
            n = integer.shift_to_bits(torch.tensor(v), bits).item()
            q = (1 << (bits - 1)) - 1
            assert v <= q << n
            assert n == 0 or v > q << (n - 1)


FLOATS = [0.0, -0.0, 1.0, -1.5, 3.1415927, 1e-38, 1e-45, -1e-42, 3.4e38, 2.0**-126, 65504.0, 1 + 2.0**-23]


def test_mantissas_are_the_value() -> None:
    x = torch.tensor(FLOATS)
    m, e = integer.mantissas(x)
    for value, mi, ei in zip(x.tolist(), m.tolist(), e.tolist()):
        assert Fraction(value) == Fraction(mi) * Fraction(2) ** ei
        assert abs(mi) < 1 << 24


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_survives_sums_and_products_and_comes_back_as_nan(bad: float) -> None:
    codes, e = integer.from_float(torch.tensor([1.0, bad]))
    one, one_e = integer.from_float(torch.tensor([2.0, 3.0]))
    assert integer.to_float(codes, e).isnan().all()
    assert integer.to_float(one, torch.maximum(e, one_e) - 20).isnan().all()
    assert integer.round_to_float(one.long() * 3, e + one_e - 40).isnan().all()


def test_to_float_is_exact() -> None:
    for v in (0, 1, -1, 3, (1 << 24) - 1, 1 << 24, -(1 << 24)):
        for e in (-149, -126, -60, -1, 0, 7, 100, 103):
            got = integer.to_float(torch.tensor([v], dtype=torch.int32), torch.tensor(e, dtype=torch.int32)).item()
            exact = math.ldexp(v, e)
            if 0 < abs(exact) < 2.0**-126:
                assert got == 0.0
            else:
                assert got == (exact if abs(exact) < 2.0**128 else math.copysign(math.inf, v))


def test_from_float_keeps_24_bits_below_the_largest() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=g) * torch.exp2(torch.randint(-30, 30, (1000,), generator=g))
    codes, e = integer.from_float(x)
    assert 1 << 23 <= codes.abs().max() < 1 << 24
    for value, code in zip(x.double().tolist(), codes.tolist()):
        assert code == half_even(Fraction(value) / Fraction(2) ** e.item())


def test_a_grid_of_16_bits_goes_through_unchanged() -> None:
    codes = torch.arange(-32767, 32768, dtype=torch.int32)
    x = integer.to_float(codes, torch.tensor(-17, dtype=torch.int32))
    again, e = integer.from_float(x)
    assert torch.equal(again >> (-17 - e), codes)
    assert torch.equal(integer.to_float(again, e), x)


def test_round_to_float_rounds_to_24_bits_once() -> None:
    v = torch.tensor([(1 << 60) - 1, -(1 << 40) - 1, 12345])
    got = integer.round_to_float(v, torch.tensor(-60, dtype=torch.int32))
    unit = Fraction(2) ** (60 + 1 - 24 - 60 - 1 + 1)
    for value, exact in zip(got.tolist(), v.tolist()):
        assert abs(Fraction(value) - Fraction(exact, 1 << 60)) <= unit / 2


def test_a_bf16_tensor_is_taken_as_it_is() -> None:
    x = torch.tensor([1.5, -0.25], dtype=torch.bfloat16)
    assert integer.to_float(*integer.from_float(x)).tolist() == [1.5, -0.25]


def test_no_elements() -> None:
    codes, e = integer.from_float(torch.zeros(0, 3))
    assert codes.shape == (0, 3)
    assert integer.to_float(codes, e).shape == integer.round_to_float(codes.long(), e).shape == (0, 3)
