"""The baselines in Python integers and numpy: what each circuit of baselines*.py must equal, bit for bit.

Floating-point numbers are their bit patterns. Rules as in baselines_float.py: round to nearest even, no NaN and no
infinity, tiny results become zero before rounding. Where numpy has the format (float32, float16) the tests compare
these models with numpy as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .baselines_float import FP32, FloatFormat


@dataclass(frozen=True)
class Exact:
    """integer * 2^exponent: any finite binary number."""

    integer: int
    exponent: int

    def __add__(self, other: Exact) -> Exact:
        low = min(self.exponent, other.exponent)
        return Exact((self.integer << (self.exponent - low)) + (other.integer << (other.exponent - low)), low)

    def __mul__(self, other: Exact) -> Exact:
        return Exact(self.integer * other.integer, self.exponent + other.exponent)


def decode(bits: int, fmt: FloatFormat, subnormals: bool = False) -> Exact:
    """The number behind a bit pattern; with subnormals=False anything below the smallest normal number is 0."""
    fraction, exponent = bits & ((1 << fmt.fraction) - 1), (bits >> fmt.fraction) & ((1 << fmt.exponent) - 1)
    if exponent == 0 and not subnormals:
        return Exact(0, 0)
    significand = fraction + ((1 << fmt.fraction) if exponent else 0)
    sign = -1 if bits >> (fmt.width - 1) & 1 else 1
    return Exact(sign * significand, max(exponent, 1) - fmt.bias - fmt.fraction)


def encode(x: Exact, fmt: FloatFormat, truncate: bool = False) -> int:
    """The bit pattern nearest to x, ties to even (or towards zero); zero when x is below the smallest normal number."""
    magnitude = abs(x.integer)
    if magnitude == 0:
        return 0
    exponent = x.exponent + magnitude.bit_length() - 1
    if exponent + fmt.bias <= 0:
        return 0
    drop = magnitude.bit_length() - 1 - fmt.fraction
    if drop > 0:
        rest, half = magnitude & ((1 << drop) - 1), 1 << (drop - 1)
        magnitude >>= drop
        if not truncate and (rest > half or (rest == half and magnitude & 1)):
            magnitude += 1
    else:
        magnitude <<= -drop
    # A carry out of the fraction lands in the exponent, where it belongs.
    body = ((exponent + fmt.bias) << fmt.fraction) + magnitude - (1 << fmt.fraction)
    return (int(x.integer < 0) << (fmt.width - 1)) | body


def to_numpy(bits: Sequence[int], fmt: FloatFormat) -> np.ndarray:
    """float64 values of bit patterns, subnormals as zero."""
    return np.array([float(e.integer) * 2.0**e.exponent for e in (decode(int(b), fmt) for b in bits)])


def random_floats(rng: np.random.Generator, fmt: FloatFormat, n: int, spread: int, zeros: float = 0.03) -> list[int]:
    """n random normal numbers with stored exponents within `spread` of the bias, some of them zero."""
    low, high = max(1, fmt.bias - spread), min((1 << fmt.exponent) - 2, fmt.bias + spread)
    sign, fraction = rng.integers(0, 2, n), rng.integers(0, 1 << fmt.fraction, n)
    exponent = rng.integers(low, high + 1, n)
    bits = (sign << (fmt.width - 1)) | (exponent << fmt.fraction) | fraction
    return [int(b) for b in np.where(rng.random(n) < zeros, 0, bits)]


def float_add(x: int, y: int, fmt: FloatFormat) -> int:
    """x + y in bit patterns. An exact cancellation is +0."""
    return encode(decode(x, fmt) + decode(y, fmt), fmt)


def float_mac_trace(a: Sequence[int], b: Sequence[int], operand: FloatFormat, total: FloatFormat) -> list[int]:
    """acc = acc + a*b, step by step, from zero: the product rounded to the total's format, then the sum."""
    acc, trace = 0, []
    for x, y in zip(a, b):
        product = encode(decode(x, operand) * decode(y, operand), total)
        acc = float_add(product, acc, total)
        trace.append(acc)
    return trace


def circulating_trace(trace_of: Sequence[Sequence[int]], n: int) -> list[int]:
    """A pipelined adder holds len(trace_of) sums that take turns: the trace that leaves it, cycle by cycle."""
    return [trace_of[i % len(trace_of)][i // len(trace_of)] for i in range(n)]


def fixed_product(x: int, y: int, fmt: FloatFormat) -> int:
    """a * b of FP8 numbers, subnormals included, in units of the smallest possible product."""
    unit = 2 * (1 - fmt.bias - fmt.fraction)
    product = decode(x, fmt, subnormals=True) * decode(y, fmt, subnormals=True)
    return product.integer << (product.exponent - unit)


def fused_dot(a: Sequence[int], b: Sequence[int], fmt: FloatFormat, guard: int) -> Exact:
    """Sum of a_i b_i as a fused unit forms it: products aligned to the largest exponent, `guard` bits kept below.

    Alignment truncates the magnitude; a negative term enters as one's complement plus one, which is exact.
    """
    pairs = [(int(x), int(y)) for x, y in zip(a, b)]

    def stored(bits: int) -> int:
        return max(1, (bits >> fmt.fraction) & ((1 << fmt.exponent) - 1))

    top = max(stored(x) + stored(y) for x, y in pairs)
    total = 0
    for x, y in pairs:
        product = decode(x, fmt, subnormals=True).integer * decode(y, fmt, subnormals=True).integer
        aligned = (abs(product) << guard) >> (top - stored(x) - stored(y))
        total += -aligned if product < 0 else aligned
    return Exact(total, top - 2 * fmt.bias - 2 * fmt.fraction - guard)


def accumulate_fp32(terms: Sequence[Exact]) -> int:
    """Terms converted to FP32 by truncation and added one after another from zero."""
    acc = 0
    for term in terms:
        acc = float_add(encode(term, FP32, truncate=True), acc, FP32)
    return acc


MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12)
"""Twice the magnitude of an FP4 E2M1 code: 0, 0.5, 1, 1.5, 2, 3, 4, 6 (OCP MX 1.0)."""


def mxfp4_integer(code: int) -> int:
    """Twice the number behind a 4-bit E2M1 code.

    >>> [mxfp4_integer(c) for c in (0, 1, 7, 15)]
    [0, 1, 12, -12]
    """
    return -MXFP4_VALUES[code & 7] if code & 8 else MXFP4_VALUES[code & 7]


def block_term(a: Sequence[int], b: Sequence[int], scale_a: int, scale_b: int, halves: int = 0) -> Exact:
    """One MX block: sum a_i b_i * 2^(scale_a + scale_b - 254 - halves), scales as E8M0 codes."""
    return Exact(sum(int(x) * int(y) for x, y in zip(a, b)), int(scale_a) + int(scale_b) - 254 - halves)


SCALE_BITS = 12
"""Bits kept of the product of two FP16 scales in the group-scaled unit: its 22 bits truncated, which favours it."""


def group_term(total: int, scale_a: int, scale_b: int, fmt: FloatFormat) -> Exact:
    """One group of the group-scaled unit: integer sum * (scale_a * scale_b truncated to SCALE_BITS)."""
    product = decode(scale_a, fmt) * decode(scale_b, fmt)
    drop = 2 * fmt.fraction + 2 - SCALE_BITS
    return Exact(total * (product.integer >> drop), product.exponent + drop)
