"""Integer arithmetic, defined once. NORMATIVE: every kernel, on every device and in RTL, equals this bit for bit.

Four things live here and nowhere else:
  IntFormat          which integers a code may be
  rounding           float -> code, nearest or stochastic, through a fixed-point number with 16 fractional bits
  random_bits16      the counter-based generator behind stochastic rounding (Threefry-2x32, 13 rounds)
  accumulator_bits   how wide a sum of products is, so that no kernel guesses

What is not here: tensors with a scale (qtensor.py), how a scale is chosen (quantizers.py), products (ops/).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.nn.functional import pad

FRACTION_BITS = 16
"""Fractional bits of the fixed-point number t that stands between a float and its code: t = code * 2^16."""

RANGE_FLOOR = 2.0**-80
"""A range R below this is a zero tensor: with Q < 2^8 and MAX_EXPONENT octaves, Q 2^16 2^23 / R < 2^127 is finite."""

MAX_EXPONENT = 23
"""The largest shift of a group. A float32 has 24 significant bits: a channel further down is noise beside the first."""

THREEFRY_ROUNDS = 13
"""The fewest rounds of Threefry-2x32 that pass BigCrush (Salmon et al., SC 2011, table 2)."""

_THREEFRY_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_THREEFRY_PARITY = 0x1BD11BDA


@dataclass(frozen=True)
class IntFormat:
    """The integers of `bits` bits, symmetric when signed: {-Q..Q} with Q = 2^(bits-1) - 1, or {0..2^bits - 1}.

    The most negative two's-complement value is left out, so that -q is always a code too and rounding has no bias
    towards either side. Unsigned formats are for activations that cannot be negative (behind a ReLU).

    >>> IntFormat(4).qmax, IntFormat(4).qmin, IntFormat(4, signed=False).qmax
    (7, -7, 15)
    >>> str(IntFormat(4)), str(IntFormat(8, signed=False))
    ('s4', 'u8')
    """

    bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 2 <= self.bits <= 8:
            raise ValueError(f"an integer format has 2 to 8 bits, not {self.bits!r}; use None for an unquantized role")

    @property
    def qmax(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return -self.qmax if self.signed else 0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that carries unpacked codes: int8, or uint8 when unsigned."""
        return torch.int8 if self.signed else torch.uint8

    def __str__(self) -> str:
        return f"{'s' if self.signed else 'u'}{self.bits}"


# ---------------------------------------------------------------------------------------------- range and rounding


def range_bits(x: Tensor) -> Tensor:
    """|x| as the integer of its float32 bits: ordered as |x| is, with Inf above every number and NaN above Inf.

    A float maximum may drop NaN (x86's vmaxps does); an integer maximum of these cannot. x: any float; -> int32.
    """
    return x.to(torch.float32).view(torch.int32) & 0x7FFFFFFF


def range_from_bits(bits: Tensor) -> Tensor:
    """The range R of a maximum of range_bits: NaN unless finite, 0 below RANGE_FLOOR. int32 -> float32."""
    r = bits.view(torch.float32)
    r = torch.where(torch.isfinite(r), r, torch.full_like(r, float("nan")))
    return torch.where(r < RANGE_FLOOR, torch.zeros_like(r), r)


def packed_bytes(numel: int, bits: int) -> int:
    """ceil(numel * bits / 8): what codes take that are packed without gaps."""
    return -(-numel * bits // 8)


def token_shape(x: Tensor) -> tuple[int, ...]:
    """The shape of one number for each token of x, an index of all axes but 1."""
    return tuple(1 if i == 1 else n for i, n in enumerate(x.shape))


def rows_of_blocks(x: Tensor, block: int) -> Tensor:
    """A matrix with a row for each block of x in row-major order, the last one filled up with zeros."""
    flat = x.contiguous().flatten()
    rest = -flat.numel() % block
    return (pad(flat, (0, rest)) if rest else flat).view(-1, block)


def without_common_places(codes: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """(codes 2^-places, places): how far, `top` at most, all codes of a token can be shifted right without loss.

    codes are dense and stay where they lie; places uint8 (N, 1, ...).

    >>> small, places = without_common_places(torch.tensor([[12, 8], [6, 3], [0, 0]], dtype=torch.uint8), 2)
    >>> small.tolist(), places.flatten().tolist()
    ([[3, 2], [6, 3], [0, 0]], [2, 0, 2])
    """
    places = torch.zeros(token_shape(codes), dtype=torch.uint8, device=codes.device)
    for k in range(1, top + 1):
        places += ((codes & ((1 << k) - 1)) == 0).all(1, keepdim=True)
    return torch.empty_like(codes).copy_(codes >> places.to(codes.dtype)), places


def place_bits(top: int) -> int:
    """Bits that a number of places, 0..top, is packed in."""
    return max(top.bit_length(), 2)


def largest_exponents(r_k: Tensor, r: Tensor, top: int) -> Tensor:
    """e(k), int32: the largest of 0..top with r_k <= r 2^-e and r 2^-e >= RANGE_FLOOR. Exact comparisons, no logarithm.

    r: one float32. The floor keeps what counts as zero below its range. A r_k of 0 gets the last exponent.
    """
    e = torch.arange(1, top + 1, dtype=torch.int32, device=r.device)
    limits = r.flatten() * power_of_two(-e)
    return ((r_k.unsqueeze(-1) <= limits) & (limits >= RANGE_FLOOR)).sum(-1, dtype=torch.int32)


def clipped(r: Tensor, clip: float) -> Tensor:
    """Ranges r >= 0 times float32(clip), not below RANGE_FLOOR where r is above 0; NaN stays."""
    return r if clip == 1 else torch.where(r > 0, (r * clip).clamp(min=RANGE_FLOOR), r)


def inverse_step(r: Tensor, fmt: IntFormat) -> Tensor:
    """inv = float32(Q 2^16 / R), one IEEE division; 0 where R is 0 or not finite, so that every code there is 0."""
    top = torch.full_like(r, float(fmt.qmax << FRACTION_BITS))
    usable = torch.isfinite(r) & (r > 0)
    return torch.where(usable, top / torch.where(usable, r, torch.ones_like(r)), torch.zeros_like(r))


def step(r: Tensor, fmt: IntFormat) -> Tensor:
    """The scale s = float32(R / Q), one IEEE division; 0 for a zero tensor and NaN where R is NaN."""
    return r / torch.full_like(r, float(fmt.qmax))


def square_root(x: Tensor) -> Tensor:
    """sqrt(x) correctly rounded, as IEEE 754 has it. On the CPU by NumPy: torch's goes through a library that may miss
    the last bit, and then not for every size of tensor. float64 -> float64.
    """
    return torch.from_numpy(numpy.sqrt(x.numpy())) if x.device.type == "cpu" else torch.sqrt(x)


def power_of_two(exponent: Tensor) -> Tensor:
    """float32 2^exponent built from its bits: exact, where a pow may be off by an ulp. integer tensor, -126..127."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def to_fixed(x: Tensor, inv: Tensor, fmt: IntFormat) -> Tensor:
    """t = rint(float32(x) * inv), clamped to [qmin 2^16, qmax 2^16] before it becomes an int32.

    One multiplication and no addition: there is nothing that a compiler could contract to a fused multiply-add.
    Where inv is 0 (zero tensor, NaN or Inf in the range) t is 0 whatever x is.
    """
    t = torch.round(x.to(torch.float32) * inv)
    t = t.clamp(float(fmt.qmin << FRACTION_BITS), float(fmt.qmax << FRACTION_BITS))
    return torch.nan_to_num(t, nan=0.0).to(torch.int32)


def round_nearest(t: Tensor) -> Tensor:
    """Fixed point -> code, half to even: exact for every t / 2^16. int32 -> int32.

    >>> round_nearest(torch.tensor([1 << 15, 3 << 15, -(1 << 15), (1 << 15) + 1], dtype=torch.int32)).tolist()
    [0, 2, 0, 1]
    """
    return shift_right_nearest(t, FRACTION_BITS)


def round_stochastic(t: Tensor, r16: Tensor) -> Tensor:
    """(t + r16) >> 16 with r16 uniform in 0..65535: E[code] = t / 2^16 exactly. int32 -> int32.

    >>> t = torch.full((65536,), 3 * 65536 + 1234, dtype=torch.int32)
    >>> int(round_stochastic(t, torch.arange(65536, dtype=torch.int32)).sum()) == int(t[0])
    True
    """
    return (t + r16) >> FRACTION_BITS


def shift_right_nearest(v: Tensor, n: int) -> Tensor:
    """v / 2^n rounded half to even, for any integer dtype; |v| must leave 2^(n-1) of headroom in it.

    >>> shift_right_nearest(torch.tensor([-6, -2, 2, 6, 7]), 2).tolist()
    [-2, 0, 0, 2, 2]
    """
    if n == 0:
        return v
    return (v + ((1 << (n - 1)) - 1) + ((v >> n) & 1)) >> n


def shift_right_stochastic(v: Tensor, n: int, r16: Tensor) -> Tensor:
    """v / 2^n with E[result] = v / 2^n when n <= 16; for n > 16 the bits below the 16 that decide are dropped first.

    r16 (uniform in 0..65535) lends its n highest bits: floor((v + r16 >> (16 - n)) / 2^n).
    """
    if n <= FRACTION_BITS:
        return (v + (r16 >> (FRACTION_BITS - n)).to(v.dtype)) >> n
    return ((v >> (n - FRACTION_BITS)) + r16.to(v.dtype)) >> FRACTION_BITS


# ------------------------------------------------------------------------------------------------- random numbers


def threefry2x32(
    counter: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor], rounds: int = THREEFRY_ROUNDS
) -> tuple[Tensor, Tensor]:
    """Threefry-2x32: 64 random bits, a pure function of a 64-bit counter and a 64-bit key, from add, rotate and xor.

    counter, key: (low, high) words as int32 tensors that broadcast; arithmetic is modulo 2^32.
    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    k0, k1 = key
    ks = (k0, k1, k0 ^ k1 ^ _as_int32(_THREEFRY_PARITY))
    x0, x1 = counter[0] + k0, counter[1] + k1
    for i in range(rounds):
        x0 = x0 + x1
        x1 = _rotate_left(x1, _THREEFRY_ROTATIONS[i % 8]) ^ x0
        if i % 4 == 3:
            j = i // 4 + 1
            x0, x1 = x0 + ks[j % 3], x1 + ks[(j + 1) % 3] + j
    return x0, x1


def random_bits16(stream: Tensor, numel: int, start: int = 0) -> Tensor:
    """numel integers uniform in 0..65535; the i-th depends on (stream, start + i) alone, whatever the device or layout.

    stream: int64 scalar tensor, the key (low word, high word). Code i takes call c = i >> 2, whose counter is
    (c & 0xFFFFFFFF, c >> 32); lanes i & 3 = 0..3 are low half of word 0, high half of word 0, then word 1. -> int32.
    """
    first, last = start >> 2, (start + numel + 3) >> 2
    c = torch.arange(first, max(last, first), dtype=torch.int64, device=stream.device)
    w0, w1 = threefry2x32((_low_word(c), _high_word(c)), (_low_word(stream), _high_word(stream)))
    words = torch.stack((w0 & 0xFFFF, (w0 >> 16) & 0xFFFF, w1 & 0xFFFF, (w1 >> 16) & 0xFFFF), dim=-1)
    return words.reshape(-1)[start - 4 * first :][:numel]


def draw_stream(n: int, device: torch.device | str = "cpu") -> Tensor:
    """n independent 64-bit streams from torch's generator of that device, as an int64 tensor (n,).

    A tensor and not a number: saved for backward it makes activation checkpointing recompute the same bits, and
    torch.compile does not specialise on it. A restored generator state restores the streams.
    """
    return torch.randint(-(2**63), 2**63 - 1, (n,), dtype=torch.int64, device=device)


def _rotate_left(x: Tensor, r: int) -> Tensor:
    return (x << r) | ((x >> (32 - r)) & ((1 << r) - 1))  # >> on int32 is arithmetic: mask off the copied sign


def _as_int32(v: int) -> int:
    return v - (1 << 32) if v >= 1 << 31 else v


def _low_word(v: Tensor) -> Tensor:
    return (((v & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000).to(torch.int32)


def _high_word(v: Tensor) -> Tensor:
    return (v >> 32).to(torch.int32)


# ------------------------------------------------------------------------------------------------- accumulators


def product_bound(a_max: int, b_max: int, k: int, shift: int = 0) -> int:
    """The largest |sum| of k products of codes up to a_max and b_max, each shifted left by up to `shift`."""
    return (k * a_max * b_max) << shift


def accumulator_bits(a: IntFormat, b: IntFormat, k: int, shift: int = 0) -> int:
    """The smallest signed width that holds every sum of k products a_i b_i 2^(shift_i), 0 <= shift_i <= shift.

    `shift` is the largest left shift that groups can add up to: E_a + E_b when both operands carry one.

    >>> accumulator_bits(IntFormat(8), IntFormat(8), 133_144), accumulator_bits(IntFormat(8), IntFormat(8), 133_145)
    (32, 33)
    >>> accumulator_bits(IntFormat(4), IntFormat(4), 4096, shift=8)
    27
    """
    return product_bound(a.qmax, b.qmax, k, shift).bit_length() + 1
