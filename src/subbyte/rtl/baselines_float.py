"""Floating point in gates: formats, adder, exact product, and the conversion from integers. Baselines to compare with.

The arithmetic favours floating point: round to nearest even, but neither NaN nor infinity, and results below the
smallest normal number become zero (tininess is decided before rounding). A product hits an exact integer multiplier,
Booth-recoded like that of the integer units, so that no side has the better multiplier.

Functions take the module `m` that they add logic to, and return values. The same arithmetic in Python integers is in
baselines_models.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed

from .multiplier import booth

ADDER_STAGES = 4
"""Places where a register may cut the adder: after ordering, alignment, addition, normalization."""


@dataclass(frozen=True)
class FloatFormat:
    """One sign bit, `exponent` bits, `fraction` bits; bias 2^(exponent-1) - 1.

    >>> FP16.width, FP16.bias, FP32.width
    (16, 15, 32)
    """

    exponent: int
    fraction: int

    @property
    def width(self) -> int:
        """Bits of a number."""
        return 1 + self.exponent + self.fraction

    @property
    def bias(self) -> int:
        """What the stored exponent of 1.0 is."""
        return (1 << (self.exponent - 1)) - 1


FP32, FP16, BF16 = FloatFormat(8, 23), FloatFormat(5, 10), FloatFormat(8, 7)
E4M3, E5M2 = FloatFormat(4, 3), FloatFormat(5, 2)


@dataclass(frozen=True)
class Fields:
    """A number taken apart: sign, stored exponent, fraction."""

    sign: Value
    exponent: Value
    fraction: Value


def fields(x: Value, fmt: FloatFormat) -> Fields:
    """The fields of a number's bits."""
    f, e = fmt.fraction, fmt.exponent
    return Fields(x[f + e], x[f : f + e], x[:f])


def named(m: Module, value: Value, width: int | None = None) -> Signal:
    """The value as a wire of its own (unsigned, `width` bits), so that it is computed once."""
    out = Signal(len(value) if width is None else width)
    m.d.comb += out.eq(value)
    return out


def registers(m: Module, values: Sequence[Value], on: bool = True) -> list[Value]:
    """The values one cycle later, or unchanged when `on` is false."""
    if not on:
        return list(values)
    out: list[Value] = []
    for value in values:
        register = Signal(Value.cast(value).shape())
        m.d.sync += register.eq(value)
        out.append(register)
    return out


def delayed(m: Module, value: Value, cycles: int) -> Value:
    """The value `cycles` later."""
    for _ in range(cycles):
        (value,) = registers(m, [value])
    return value


def add_with_carry(a: Value, b: Value, carry: Value) -> Value:
    """a + b + carry (len(a) + 1 bits) on one carry chain: the carry enters through an extra lowest bit."""
    return (Cat(Const(1, 1), a) + Cat(carry, b))[1:]


def leading_zeros(x: Value) -> Value:
    """How many zeros stand above the highest one; all ones when x is 0. A tree of multiplexers, log2 deep."""
    n = 1 << max(1, (len(x) - 1).bit_length())
    padding = n - len(x)
    bits = list(reversed(list(Cat(Const((1 << padding) - 1, padding), x)))) if padding else list(reversed(list(x)))
    nodes = [([~bits[i]], bits[i] | bits[i + 1]) for i in range(0, n, 2)]
    while len(nodes) > 1:
        nodes = [
            ([Mux(high_any, h, low) for h, low in zip(high, low_bits)] + [~high_any], high_any | low_any)
            for (high, high_any), (low_bits, low_any) in zip(nodes[::2], nodes[1::2])
        ]
    return Cat(*nodes[0][0])


def shift_left(m: Module, x: Value, amount: Value) -> Value:
    """x << amount within its width, a stage of multiplexers for each bit of `amount`, the largest first."""
    for k in reversed(range(len(amount))):
        x = named(m, Mux(amount[k], (x << (1 << k))[: len(x)], x))
    return x


def shift_right_sticky(m: Module, x: Value, amount: Value) -> tuple[Value, Value]:
    """x >> amount and whether a one fell out; any amount, also beyond the width."""
    stages = (len(x) - 1).bit_length()
    far = amount[stages:].any() if len(amount) > stages else Const(0, 1)
    everything = x.any()
    sticky: Value = Const(0, 1)
    for k in range(min(stages, len(amount))):
        lost = x[: 1 << k].any()
        sticky = named(m, sticky | (amount[k] & lost))
        x = named(m, Mux(amount[k], x >> (1 << k), x), len(x))
    return Mux(far, 0, x), Mux(far, everything, sticky)


def round_nearest_even(m: Module, leading: Value, exponent: Value, fmt: FloatFormat) -> tuple[Value, Value]:
    """A number with its leading one at the top of `leading`: (fraction, exponent) rounded to the format's fraction.

    exponent: signed, wide enough for one more; a carry out of the fraction increments it.
    """
    f = fmt.fraction
    fraction, rest = leading[-(f + 1) : -1], leading[: -(f + 1)]
    half, below = rest[-1], rest[:-1].any() if len(rest) > 1 else Const(0, 1)
    up = half & (below | fraction[0])
    total = named(m, add_with_carry(Cat(fraction, exponent), Const(0, f + len(exponent)), up))
    return total[:f], total[f : f + len(exponent)].as_signed()


def float_add(m: Module, x: Value, y: Value, fmt: FloatFormat, cuts: Sequence[int] = ()) -> Value:
    """x + y, rounded to nearest even; a register at each of `cuts` (0..ADDER_STAGES - 1), no others."""
    f, width = fmt.fraction, fmt.fraction + 4  # significand, guard, round, sticky
    fx, fy = fields(x, fmt), fields(y, fmt)
    magnitude = f + fmt.exponent
    swap = named(m, x[:magnitude] < y[:magnitude])
    big = named(m, Mux(swap, y, x))
    small = named(m, Mux(swap, x, y))
    fb, fs = fields(big, fmt), fields(small, fmt)
    distance = named(m, fb.exponent - fs.exponent, fmt.exponent)
    stage = [
        big[:magnitude],
        fb.sign,
        named(m, Cat(fs.fraction, 1) & fs.exponent.any().replicate(f + 1)),
        fb.exponent.any(),
        distance,
        fx.sign ^ fy.sign,
    ]
    low, sign, significand, nonzero, distance, differ = registers(m, stage, 0 in cuts)
    # Align the smaller number; what falls out below three bits counts as one sticky bit.
    moved, sticky = shift_right_sticky(m, Cat(Const(0, 3), significand), distance)
    aligned = named(m, Cat(moved[0] | sticky, moved[1:]))
    low, sign, nonzero, differ, aligned = registers(m, [low, sign, nonzero, differ, aligned], 1 in cuts)
    # Add or subtract: the larger magnitude comes first, so that the result is not negative.
    wide = Cat(Const(0, 3), low[:f], nonzero, Const(0, 1))
    total = named(m, add_with_carry(wide, Cat(aligned ^ differ.replicate(width), differ), differ), width + 1)
    low, sign, total = registers(m, [low, sign, total], 2 in cuts)
    # Normalize, round.
    zeros = named(m, leading_zeros(total))
    leading = shift_left(m, total, zeros)
    exponent = Signal(signed(fmt.exponent + 2))
    m.d.comb += exponent.eq(low[f:] + 1 - zeros)
    alive, exponent, leading, sign = registers(m, [total.any(), exponent, leading, sign], 3 in cuts)
    fraction, rounded = round_nearest_even(m, leading, exponent, fmt)
    zero = ~alive | (exponent <= 0)
    return named(m, Mux(zero, 0, Cat(fraction, rounded[: fmt.exponent], sign)))


def lookup(index: Value, table: Sequence[int], width: int) -> Value:
    """table[index] as logic: with at most six index bits each result bit is one LUT6."""
    columns = (sum(((entry >> bit) & 1) << i for i, entry in enumerate(table)) for bit in range(width))
    return Cat(*[Const(column, len(table)).bit_select(index, 1) for column in columns])


def multiply_unsigned(m: Module, a: Value, b: Value, fabric: bool) -> Value:
    """a * b in the cheapest form measured: tables up to 4 x 4 bits, else Booth rows; `*` for a DSP (fabric=False)."""
    width = len(a) + len(b)
    if width <= 6:
        table = [(i % (1 << len(a))) * (i >> len(a)) for i in range(1 << width)]
        return named(m, lookup(named(m, Cat(a, b)), table, width))
    if not fabric:
        return named(m, a * b, width)
    if max(len(a), len(b)) <= 4:
        low, high = (multiply_unsigned(m, a, part, fabric) for part in (b[:2], b[2:]))
        return named(m, low + (high << 2), width)
    sa, sb = Signal(signed(len(a) + 1)), Signal(signed(len(b) + 1))
    m.d.comb += [sa.eq(a), sb.eq(b)]
    return named(m, booth(m, sa, sb)[:width])


@dataclass(frozen=True)
class ExactProduct:
    """A product before rounding: significand of 2 fraction + 2 bits, sum of the stored exponents.

    alive: neither operand was taken as zero; where it is low the significand means nothing.
    """

    sign: Value
    exponent: Value
    significand: Value
    alive: Value


def float_product(m: Module, a: Value, b: Value, fmt: FloatFormat, fabric: bool, subnormals: bool) -> ExactProduct:
    """a * b exactly. subnormals=False takes what is below the smallest normal number as zero.

    With subnormals the leading bit is 0 and the exponent counts as 1 where the stored exponent is 0, and the
    significand is valid throughout.
    """
    fa, fb = fields(a, fmt), fields(b, fmt)
    na, nb = named(m, fa.exponent.any()), named(m, fb.exponent.any())
    if subnormals:
        left, right, alive = Cat(fa.fraction, na), Cat(fb.fraction, nb), Const(1, 1)
        ea, eb = (Cat(f.exponent[0] | ~n, f.exponent[1:]) for f, n in ((fa, na), (fb, nb)))
    else:
        left, right, alive = Cat(fa.fraction, Const(1, 1)), Cat(fb.fraction, Const(1, 1)), na & nb
        ea, eb = fa.exponent, fb.exponent
    significand = multiply_unsigned(m, left, right, fabric)
    return ExactProduct(fa.sign ^ fb.sign, named(m, ea + eb), significand, alive)


def integer_to_float(m: Module, x: Value, exponent: Value) -> Value:
    """x * 2^exponent as FP32: x signed; magnitudes beyond 24 bits are truncated towards zero, which favours it.

    exponent: signed. Neither overflow nor underflow is looked for.
    """
    n = len(x)
    sign = x[-1]
    magnitude = named(m, add_with_carry(x ^ sign.replicate(n), Const(0, n), sign), n)
    zeros = named(m, leading_zeros(magnitude))
    leading = shift_left(m, magnitude, zeros)
    stored = Signal(FP32.exponent)
    m.d.comb += stored.eq((exponent + (FP32.bias + n - 1)) - zeros)
    fraction = Cat(Const(0, max(0, FP32.fraction - (n - 1))), leading[:-1])[-FP32.fraction :]
    return named(m, Mux(magnitude.any(), Cat(fraction, stored, sign), 0))
