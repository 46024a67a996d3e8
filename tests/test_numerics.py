"""numerics against Python's own integers and fractions; torch appears only as the thing under test."""

import itertools
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subbyte import numerics
from subbyte.numerics import IntFormat

FORMATS = [IntFormat(bits, signed) for bits in range(2, 9) for signed in (True, False)]
ALL_R16 = torch.arange(1 << 16, dtype=torch.int32)
FLOAT32_MAX = float(np.finfo(np.float32).max)


def int32(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def float32(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def bits_of(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def from_bits(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


# ------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_format_is_symmetric(bits):
    fmt = IntFormat(bits)
    assert (fmt.qmin, fmt.qmax) == (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    assert fmt.dtype is torch.int8
    assert str(fmt) == f"s{bits}"


@pytest.mark.parametrize("bits", range(2, 9))
def test_unsigned_format_uses_every_pattern(bits):
    fmt = IntFormat(bits, signed=False)
    assert (fmt.qmin, fmt.qmax) == (0, 2**bits - 1)
    assert fmt.dtype is torch.uint8
    assert str(fmt) == f"u{bits}"


@pytest.mark.parametrize("bits", [1, 9, 0, -4, "4", True, 4.0, None])
def test_format_rejects_other_widths(bits):
    with pytest.raises(ValueError, match="2 to 8 bits"):
        IntFormat(bits)


# ----------------------------------------------------------------------------------------------- ranges and steps


def test_range_bits_orders_as_absolute_values_do():
    values = [0.0, from_bits(1), 2.0**-126, 2.0**-80, 1.0, from_bits(bits_of(1.0) + 1), FLOAT32_MAX, math.inf]
    for sign in (1.0, -1.0):
        got = numerics.range_bits(float32([sign * v for v in values])).tolist()
        assert got == [bits_of(v) for v in values] == sorted(got)
    for nan in (0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF):
        x = torch.tensor([nan - (1 << 32) if nan >> 31 else nan], dtype=torch.int32).view(torch.float32)
        assert numerics.range_bits(x).item() > bits_of(math.inf)
    assert numerics.range_bits(float32([-0.0])).item() == 0


def test_range_from_bits_keeps_numbers_and_nothing_else():
    floor = numerics.RANGE_FLOOR
    below = from_bits(bits_of(floor) - 1)
    r = numerics.range_from_bits(
        int32([bits_of(v) for v in (0.0, from_bits(1), below, floor, FLOAT32_MAX, math.inf)] + [0x7FC00000])
    )
    assert r[:5].tolist() == [0.0, 0.0, 0.0, floor, FLOAT32_MAX]
    assert r[5:].isnan().all()


def log_uniform_ranges() -> np.ndarray:
    rng = np.random.default_rng(0)
    bits = rng.integers(bits_of(numerics.RANGE_FLOOR), bits_of(FLOAT32_MAX) + 1, size=4096, dtype=np.uint32)
    edges = np.array([numerics.RANGE_FLOOR, FLOAT32_MAX, 1.0, 7.0, 127.0], dtype=np.float32)
    return np.concatenate((bits.view(np.float32), edges))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_inverse_step_and_step_are_one_ieee_division(fmt):
    r = log_uniform_ranges()
    inverse = np.float32(fmt.qmax * 65536) / r
    assert np.isfinite(inverse).all()
    assert (inverse > 0).all()
    assert np.array_equal(numerics.inverse_step(torch.from_numpy(r), fmt).numpy(), inverse)
    assert np.array_equal(numerics.step(torch.from_numpy(r), fmt).numpy(), r / np.float32(fmt.qmax))


def test_steps_of_ranges_that_are_no_numbers():
    r = float32([0.0, math.nan, math.inf, -1.0])
    assert numerics.inverse_step(r, IntFormat(4)).tolist() == [0.0, 0.0, 0.0, 0.0]
    s = numerics.step(r, IntFormat(4))
    assert s[0] == 0
    assert s[1].isnan()


def test_power_of_two_for_every_exponent():
    exponents = list(range(-126, 128))
    assert numerics.power_of_two(int32(exponents)).tolist() == [math.ldexp(1.0, e) for e in exponents]
    assert numerics.power_of_two(torch.arange(24, dtype=torch.uint8)).tolist() == [2.0**e for e in range(24)]


def test_the_floor_leaves_every_factor_finite():
    worst = np.float32(255 * 65536) / np.float32(numerics.RANGE_FLOOR)
    assert math.isfinite(float(worst) * 2.0**numerics.MAX_EXPONENT)
    assert float(worst) * 2.0**numerics.MAX_EXPONENT < 2.0**127


# --------------------------------------------------------------------------------------------------- fixed point


def python_to_fixed(x: float, inv: float, fmt: IntFormat) -> int:
    """One float32 multiplication (24 x 24 bits are exact in a double), rint, clamp."""
    product = float(np.float32(np.float64(x) * np.float64(inv)))
    if math.isnan(product):
        return 0
    low, high = fmt.qmin * 65536, fmt.qmax * 65536
    if math.isinf(product):
        return high if product > 0 else low
    return min(max(round(Fraction(product)), low), high)


@given(
    st.sampled_from(FORMATS),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.floats(numerics.RANGE_FLOOR, FLOAT32_MAX, width=32),
    st.floats(-1, 1, width=32),
)
def test_to_fixed_against_python(fmt, anything, r, fraction):
    inv = float(np.float32(fmt.qmax * 65536) / np.float32(r))
    inside = float(np.float32(fraction) * np.float32(r))
    values = [anything, inside, r, -r, float(np.nextafter(np.float32(r), np.float32(0)))]
    got = numerics.to_fixed(float32(values), float32([inv]), fmt).tolist()
    with np.errstate(over="ignore"):
        assert got == [python_to_fixed(v, inv, fmt) for v in values]
    assert abs(got[2] - fmt.qmax * 65536) <= 1


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_to_fixed_at_the_edges_of_float32(fmt):
    floor = numerics.RANGE_FLOOR
    high, low = fmt.qmax * 65536, fmt.qmin * 65536
    inv = numerics.inverse_step(float32([floor]), fmt)
    x = float32([floor, -floor, math.inf, -math.inf, math.nan, FLOAT32_MAX, -FLOAT32_MAX, -0.0, from_bits(1)])
    assert numerics.to_fixed(x, inv, fmt).tolist() == [high, low, high, low, 0, high, low, 0, 0]
    zero = torch.zeros(1)
    assert numerics.to_fixed(x, zero, fmt).tolist() == [0] * len(x)


def test_to_fixed_reads_other_float_types_as_float32():
    x = [0.1, -0.7, 3.3, 1e-3]
    inv = float32([9362.2])
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        wide = torch.tensor(x, dtype=dtype)
        want = [python_to_fixed(v, inv.item(), IntFormat(4)) for v in wide.to(torch.float32).tolist()]
        assert numerics.to_fixed(wide, inv, IntFormat(4)).tolist() == want


# ------------------------------------------------------------------------------------------------------- rounding


def test_round_nearest_is_half_to_even_for_every_code_and_tie():
    near = [0, 1, -1, 2, 1 << 14, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, (1 << 16) - 1]
    t = [code * 65536 + d for code in range(-256, 257) for d in near]
    assert numerics.round_nearest(int32(t)).tolist() == [round(Fraction(v, 65536)) for v in t]


@pytest.mark.parametrize("fmt", [IntFormat(2), IntFormat(4), IntFormat(8), IntFormat(8, signed=False)], ids=str)
def test_round_stochastic_has_exactly_the_expectation_of_its_argument(fmt):
    rng = np.random.default_rng(1)
    low, high = fmt.qmin << 16, fmt.qmax << 16
    edges = [low, low + 1, -1, 0, 1, 1 << 15, high - 1, high, high - (1 << 15), 65535, 65536, 65537]
    for t in [v for v in edges if low <= v <= high] + rng.integers(low, high + 1, size=40).tolist():
        codes = numerics.round_stochastic(torch.full((1 << 16,), t, dtype=torch.int32), ALL_R16)
        assert int(codes.sum()) == t  # E[code] = t / 2^16 over 2^16 equally likely r
        assert {int(codes.min()), int(codes.max())} == {math.floor(t / 65536), math.ceil(t / 65536)}
        assert int(codes.min()) >= fmt.qmin
        assert int(codes.max()) <= fmt.qmax


WIDTHS = {torch.int8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}


def operands(width: int, n: int, headroom: int) -> list[int]:
    """Extremes, ties and random values that leave the headroom."""
    top = 2 ** (width - 1) - 1 - headroom
    rng = np.random.default_rng(n)
    unit = 1 << n
    ties = [k * unit // 2 + d for k in range(-9, 10) for d in (-1, 0, 1)]
    values = [0, 1, -1, top, -top, top - 1, *ties, *rng.integers(-top, top, size=200, dtype=np.int64).tolist()]
    return [v for v in values if -top <= v <= top]


@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
def test_shift_right_nearest_against_fractions(dtype):
    width = WIDTHS[dtype]
    for n in range(min(width - 1, 48)):
        v = operands(width, n, (1 << n) // 2)
        got = numerics.shift_right_nearest(torch.tensor(v, dtype=dtype), n)
        assert got.dtype is dtype
        assert got.tolist() == [round(Fraction(x, 1 << n)) for x in v], n


def test_shift_right_nearest_of_every_int8():
    for n in range(7):
        v = range(-127 + (1 << n) // 2, 128 - (1 << n) // 2)
        got = numerics.shift_right_nearest(torch.tensor(list(v), dtype=torch.int8), n).tolist()
        assert got == [round(Fraction(x, 1 << n)) for x in v]


@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
def test_shift_right_stochastic_has_exactly_the_expectation_of_the_quotient(dtype):
    width = WIDTHS[dtype]
    for n in range(0, min(width - 1, 17)):
        for v in operands(width, n, 1 << n)[::17]:
            got = numerics.shift_right_stochastic(torch.full((1 << 16,), v, dtype=dtype), n, ALL_R16)
            assert got.dtype is dtype
            up = got.long() - (v >> n)  # 0 or 1: a sum of the results themselves may not fit an int64
            assert (int(up.sum()) << n) + ((v >> n) << 16 + n) == v << 16, (n, v)


@pytest.mark.parametrize("n", [17, 20, 30, 40])
def test_shift_right_stochastic_drops_what_lies_below_the_16_bits_that_decide(n):
    for v in (0, 1, -1, (5 << n) + 12345, -(7 << n) - 54321, (3 << n) + (1 << (n - 1))):
        got = numerics.shift_right_stochastic(torch.full((1 << 16,), v, dtype=torch.int64), n, ALL_R16)
        assert int(got.sum()) == v >> (n - 16)


# ------------------------------------------------------------------------------------------------- random numbers

MASK = (1 << 32) - 1


def python_threefry(counter: tuple[int, int], key: tuple[int, int], rounds: int) -> tuple[int, int]:
    """Threefry-2x32 in Python's integers."""
    rotations = (13, 15, 26, 6, 17, 29, 16, 24)
    schedule = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)
    x = [(counter[0] + key[0]) & MASK, (counter[1] + key[1]) & MASK]
    for i in range(rounds):
        r = rotations[i % 8]
        x[0] = (x[0] + x[1]) & MASK
        x[1] = ((x[1] << r | x[1] >> (32 - r)) & MASK) ^ x[0]
        if (i + 1) % 4 == 0:
            s = (i + 1) // 4
            x[0] = (x[0] + schedule[s % 3]) & MASK
            x[1] = (x[1] + schedule[(s + 1) % 3] + s) & MASK
    return x[0], x[1]


def python_random_bits16(stream: int, numel: int, start: int) -> list[int]:
    out = []
    for i in range(start, start + numel):
        call, lane = divmod(i, 4)
        words = python_threefry((call & MASK, call >> 32), (stream & MASK, stream >> 32 & MASK), 13)
        out.append(words[lane // 2] >> 16 * (lane % 2) & 0xFFFF)
    return out


def word(v: int) -> torch.Tensor:
    return int32(v - (1 << 32) if v >> 31 else v)


KNOWN_ANSWERS = [  # Random123's kat_vectors: counter, key, rounds, result
    ((0, 0), (0, 0), 13, (0x9D1C5EC6, 0x8BD50731)),
    ((MASK, MASK), (MASK, MASK), 13, (0xFD36D048, 0x2D17272C)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), 13, (0xBA3E4725, 0xF27D669E)),
    ((0, 0), (0, 0), 20, (0x6B200159, 0x99BA4EFE)),
    ((MASK, MASK), (MASK, MASK), 20, (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), 20, (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("counter", "key", "rounds", "result"), KNOWN_ANSWERS)
def test_threefry_known_answers(counter, key, rounds, result):
    got = numerics.threefry2x32((word(counter[0]), word(counter[1])), (word(key[0]), word(key[1])), rounds)
    assert tuple(int(w) & MASK for w in got) == result
    assert python_threefry(counter, key, rounds) == result


@pytest.mark.parametrize("stream", [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF, -(2**32), 2**32 - 1])
@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, (1 << 34) - 3, (1 << 34) + 1, (1 << 40) + 5])
def test_random_bits16_against_python(stream, start):
    for numel in (0, 1, 2, 3, 4, 5, 11):
        got = numerics.random_bits16(torch.tensor(stream), numel, start)
        assert got.dtype is torch.int32
        assert got.tolist() == python_random_bits16(stream, numel, start)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**50), st.integers(0, 40))
def test_random_bits16_of_any_stream_and_place(stream, start, numel):
    got = numerics.random_bits16(torch.tensor(stream), numel, start)
    assert got.tolist() == python_random_bits16(stream, numel, start)


def test_random_bits16_does_not_depend_on_where_a_run_starts():
    stream = torch.tensor(20260101)
    whole = numerics.random_bits16(stream, 1000)
    for start, numel in ((1, 999), (2, 17), (3, 1), (997, 3), (500, 0)):
        assert torch.equal(numerics.random_bits16(stream, numel, start), whole[start : start + numel])


def test_random_bits16_is_uniform():
    draws, buckets = 1 << 20, 1 << 16
    seen = torch.bincount(numerics.random_bits16(torch.tensor(7), draws).long(), minlength=buckets)
    expected = draws / buckets
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    freedom = buckets - 1
    assert len(seen) == buckets
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)
    for lane in range(4):
        lanes = numerics.random_bits16(torch.tensor(7), draws).view(-1, 4)[:, lane]
        assert abs(float(lanes.double().mean()) - 32767.5) < 5 * 65536 / math.sqrt(12 * len(lanes))


def test_streams_and_neighbours_are_uncorrelated():
    n = 1 << 17
    streams = [numerics.random_bits16(torch.tensor(s), n).double() for s in (0, 1, 2, 1 << 32, -1)]
    pairs = list(itertools.combinations(streams, 2))
    pairs += [(s[:-lag], s[lag:]) for s in streams for lag in (1, 2, 3, 4, 8)]
    for a, b in pairs:
        correlation = float(torch.corrcoef(torch.stack((a, b)))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(n)


def test_draw_stream_follows_torch_generator_and_fills_64_bits():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = numerics.draw_stream(512)
    assert first.dtype is torch.int64
    assert first.shape == (512,)
    assert len(set(first.tolist())) == 512
    torch.set_rng_state(state)
    assert torch.equal(numerics.draw_stream(512), first)
    for bit in range(64):
        ones = int((first >> bit & 1).sum())
        assert 256 - 60 < ones < 256 + 60  # 5 sigma of a fair coin


# --------------------------------------------------------------------------------------------------- accumulators


def width_of(values) -> int:
    """The smallest signed width that holds them all, by trying."""
    low, high = min(values), max(values)
    return next(n for n in range(1, 200) if -(2 ** (n - 1)) <= low and high < 2 ** (n - 1))


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_accumulator_bits_by_brute_force(k, shift):
    for a, b in itertools.product([IntFormat(2), IntFormat(3), IntFormat(2, signed=False)], repeat=2):
        products = [x * y << s for x in (a.qmin, a.qmax) for y in (b.qmin, b.qmax) for s in (0, shift)]
        sums = [sum(c) for c in itertools.combinations_with_replacement(products, k)]
        # The bound is symmetric: the width also holds the negated sums.
        assert numerics.accumulator_bits(a, b, k, shift) == width_of([*sums, *(-s for s in sums)])


@pytest.mark.parametrize("a", FORMATS, ids=str)
def test_accumulator_bits_of_operands_filled_with_extremes(a):
    for b, k, shift in itertools.product(FORMATS, (1, 5, 9216), (0, 4)):
        extremes = [
            int((torch.full((k,), x) * torch.full((k,), y) << shift).sum())
            for x in (a.qmin, a.qmax)
            for y in (b.qmin, b.qmax)
        ]
        bits = numerics.accumulator_bits(a, b, k, shift)
        assert all(abs(v) < 2 ** (bits - 1) for v in extremes)
        assert any(abs(v) >= 2 ** (bits - 2) for v in extremes)  # one bit less would overflow


@pytest.mark.parametrize(
    ("a", "b", "longest"),
    [
        (IntFormat(8), IntFormat(8), 133_144),
        (IntFormat(8, signed=False), IntFormat(8), 66_311),
    ],
)
def test_the_longest_reductions_that_an_int32_holds(a, b, longest):
    assert longest * a.qmax * b.qmax <= 2**31 - 1 < (longest + 1) * a.qmax * b.qmax
    assert numerics.accumulator_bits(a, b, longest) == 32
    assert numerics.accumulator_bits(a, b, longest + 1) == 33
    filled = torch.full((longest,), a.qmax, dtype=torch.int32) * -b.qmax
    assert int(filled.sum(dtype=torch.int64)) >= -(2**31)
    assert int(filled.sum(dtype=torch.int64)) - a.qmax * b.qmax < -(2**31)
