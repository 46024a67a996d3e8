"""Small ops between the passes of the integer-only mode: a few integer operations on one number for each channel.

Each body is a function of the package `integer`, which is normative. They are ops for speed alone: thirty small tensors
cost more than a pass over a small layer. Exponents are int32 and mantissas or codes int64 where nothing else is said.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import integer
from ..integer import batch_norm as bn
from ..numerics import IntFormat
from .dispatch import op

_CODES = 256  # entries of a table: one for each pattern of a byte


def _like(t: Tensor, *dtypes: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape, dtype=d) for d in dtypes)


@op("(Tensor largest, int bits, bool signed) -> Tensor", lambda largest, bits, signed: _like(largest, torch.int32)[0])
def int_shift_to_fit(largest: Tensor, bits: int, signed: bool) -> Tensor:
    """The smallest n >= 0 with largest <= Q 2^n, int32: integer.shift_to_fit. largest: int64, any shape."""
    return integer.shift_to_fit(largest, IntFormat(bits, signed)).to(torch.int32).contiguous()


@op("(Tensor x) -> (Tensor, Tensor)", lambda x: (x.new_empty(x.shape, dtype=torch.int32), _exponent(x)))
def int_from_float(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes int32, contiguous, exponent ()) with x = codes 2^exponent to 24 bits: integer.from_float."""
    codes, exponent = integer.from_float(x)
    return codes.contiguous(), exponent.clone()


@op("(Tensor v, Tensor exponent) -> Tensor", lambda v, exponent: v.new_empty(v.shape, dtype=torch.float32))
def int_to_float(v: Tensor, exponent: Tensor) -> Tensor:
    """v 2^exponent as float32, 24 bits below the largest: integer.round_to_float. v: int32, int64; exponent: ()."""
    return integer.round_to_float(v, exponent).contiguous()


def _exponent(t: Tensor) -> Tensor:
    return t.new_empty((), dtype=torch.int32)


def _table_fake(total, *_):
    k = total.new_empty(*total.shape, _CODES, dtype=torch.int8)
    return k, *_like(total, torch.int32, torch.int64, torch.int32)


@op(
    "(Tensor total, Tensor spread, Tensor least, Tensor greatest, int n, bool signed, int bits)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _table_fake,
)
def int_batch_table(total, spread, least, greatest, n: int, signed: bool, bits: int):
    """(xhat's codes (C, 256) int8, fraction, inverse, inverse_exponent (C,)): batch_norm.normalized_table of a batch.

    total, spread, least, greatest  what norm_stats gives of 8-bit codes, signed or not: int64 (C,), n codes in each
    bits                            of xhat's codes
    """
    stats = bn.batch_statistics(total, spread, torch.maximum(n * greatest - total, total - n * least), n)
    table = bn.normalized_table(stats, IntFormat(8, signed), IntFormat(bits))
    return table.k, table.fraction, stats.inverse, stats.inverse_exponent


@op(
    "(Tensor k, Tensor fraction, Tensor gamma, Tensor gamma_e, Tensor beta, Tensor beta_e) -> (Tensor, Tensor)",
    lambda k, *_: (k.new_empty(k.shape, dtype=torch.int32), _exponent(k)),
)
def int_affine_table(k, fraction, gamma, gamma_e, beta, beta_e) -> tuple[Tensor, Tensor]:
    """(y (C, 256) int32, contiguous, exponent ()): batch_norm.affine_table.

    gamma: (C,) int8; beta: (C,) int32; gamma_e, beta_e: ()
    """
    y, e = bn.affine_table(bn.Normalized(k, fraction), gamma, gamma_e, beta, beta_e)
    return y.contiguous(), e.clone()


def _coefficients_fake(inverse, *_):
    u, v, a = _like(inverse, torch.int32, torch.int32, torch.int64)
    return u, v, a, _exponent(inverse), _exponent(inverse)


@op(
    "(Tensor inverse, Tensor inverse_e, Tensor fraction, Tensor gamma, Tensor gamma_e, Tensor g_e,"
    " Tensor? sum_g, Tensor? sum_gk, Tensor? sum_sign, int n) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _coefficients_fake,
)
def int_norm_coefficients(
    inverse, inverse_e, fraction, gamma, gamma_e, g_e, sum_g: Tensor | None, sum_gk, sum_sign, n: int
):
    """(u, v, a, shift (), exponent ()) of int_norm_grad: batch_norm.coefficients. The sums: all, or none of them."""
    sums = None if sum_g is None else (sum_g, sum_gk, sum_sign)
    c = bn.coefficients(inverse, inverse_e, fraction, gamma, gamma_e, g_e, sums, n)
    return c.u, c.v, c.a, c.shift, c.exponent


@op(
    "(Tensor mean, Tensor var, Tensor total, Tensor spread, Tensor step, int n, int weight) -> (Tensor, Tensor)",
    lambda mean, var, *_: (*_like(mean, torch.float32), *_like(var, torch.float32)),
)
def int_running_statistics(mean, var, total, spread, step, n: int, weight: int) -> tuple[Tensor, Tensor]:
    """(running_mean, running_var) float32 after a batch: batch_norm.running_statistics. All (C,)."""
    return bn.running_statistics(mean, var, total, spread, step, n, weight)
