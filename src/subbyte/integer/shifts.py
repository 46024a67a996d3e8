"""Changes of scale in integers: scales are powers of two, so each is one rounding shift. NORMATIVE; the RTL uses it.

The shifts of numerics.py take a Python int; those here also take a tensor, so that a shift which depends on the data is
never read back by the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import numerics
from ..numerics import FRACTION_BITS, IntFormat


def shift_to_fit(largest: Tensor, fmt: IntFormat) -> Tensor:
    """The smallest n >= 0 with largest <= Q 2^n: how far an accumulator must be shifted to become a code.

    largest: max |acc|, int64 tensor of any shape -> int64, by comparison with every Q 2^n.

    >>> shift_to_fit(torch.tensor([0, 7, 8, 14, 15]), IntFormat(4)).tolist()
    [0, 0, 1, 1, 2]
    """
    return _shift_below(largest, fmt.qmax)


def shift_to_bits(largest: Tensor, bits: int) -> Tensor:
    """The same for signed numbers of `bits` bits, 2 to 32: Q = 2^(bits - 1) - 1, so that rounding cannot reach further.

    >>> shift_to_bits(torch.tensor([0, 1 << 24, (1 << 24) - 1]), 25).tolist()
    [0, 1, 0]
    """
    return _shift_below(largest, (1 << (bits - 1)) - 1)


def _shift_below(largest: Tensor, top: int) -> Tensor:
    ladder = top << torch.arange(63 - top.bit_length(), dtype=torch.int64, device=largest.device)
    return (largest.to(torch.int64).unsqueeze(-1) > ladder).sum(-1)


def requantize(acc: Tensor, shift: int, fmt: IntFormat, r16: Tensor | None = None) -> Tensor:
    """code = clamp(acc / 2^shift, qmin, qmax), rounded half to even, or stochastically by r16 in 0..65535. -> fmt.dtype

    The exponent of the tensor grows by shift. acc: any signed integer dtype with 2^(shift - 1) of headroom.

    >>> requantize(torch.tensor([40, 24, -100, 7]), 4, IntFormat(4)).tolist()
    [2, 2, -6, 0]
    """
    if r16 is None:
        v = numerics.shift_right_nearest(acc, shift)
    else:
        v = numerics.shift_right_stochastic(acc, shift, r16)
    return v.clamp(fmt.qmin, fmt.qmax).to(fmt.dtype)


def right_nearest(v: Tensor, n: Tensor) -> Tensor:
    """numerics.shift_right_nearest by a tensor n >= 0 that broadcasts to v; |v| leaves 2^(n - 1) of headroom.

    >>> right_nearest(torch.tensor([6, 6, 6, -6]), torch.tensor([0, 1, 2, 2])).tolist()
    [6, 3, 2, -2]
    """
    n = n.to(v.dtype)
    one = torch.ones_like(n)
    rounds = n > 0
    below = torch.where(rounds, ((one << n) >> 1) - 1, torch.zeros_like(n))
    return (v + below + ((v >> n) & rounds.to(v.dtype))) >> n


def right_stochastic(v: Tensor, n: Tensor, r16: Tensor) -> Tensor:
    """numerics.shift_right_stochastic by a tensor n >= 0 that broadcasts to v; r16 (int32) as v. Needs no headroom."""
    n, r16 = n.to(v.dtype), r16.to(v.dtype)
    first = (n - FRACTION_BITS).clamp(min=0)  # what lies below the 16 bits that decide
    rest = n - first
    return ((v >> first) + (r16 >> (FRACTION_BITS - rest))) >> rest


def shift_by(v: Tensor, n: Tensor) -> Tensor:
    """v / 2^n for n of either sign: a left shift is exact, a right one rounds half to even; int64 -> int64.

    |v| < 2^61. A right shift stops at 62, where nothing but 0 is left. A left shift saturates at +-2^61, which only the
    caller can make impossible.

    >>> shift_by(torch.tensor([5, 5, -5]), torch.tensor([1, -2, 99])).tolist()
    [2, 20, 0]
    """
    left = (-n).clamp(0, 61)
    limit = (torch.ones_like(v) << 61) >> left
    wide = torch.minimum(torch.maximum(v, -limit), limit) << left
    return right_nearest(wide, n.clamp(0, 62))
