"""BatchNorm1d and 2d in integers: integer.batch_norm run on codes, and torch's buffers kept in step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import integer, ops
from ..integer import batch_norm as bn
from ..ops.norm import norm_grad_stats, norm_stats
from . import carrier, operand
from .carrier import IntTensor
from .steps import Call, never

MOMENTUM_BITS = 16


def refuses(module: Any) -> str:
    """ "" or the setting of a norm that has no integer-only form."""
    s = module.scheme
    if s.is_float or s.kind != "l1" or (s.granularity, s.clip, s.groups) != ("channel", 1, 1):
        return f"its scheme is {s}; integer-only takes L1 statistics of codes with a scale for each channel, unclipped"
    return ""


def batch_norm(call: Call, x: IntTensor):
    """y = gamma xhat + beta by the statistics of the batch, in eval mode by those of the buffers. x (N, C, ...)."""
    m, scheme = call.module, call.module.scheme
    channels, n = x.shape[1], x.codes.numel() // max(x.shape[1], 1)
    if channels != m.num_features:
        raise ValueError(f"{type(m).__name__} expects {m.num_features} channels, not {tuple(x.shape)}")
    dims = [i for i in range(len(x.shape)) if i != 1]
    input_format, normalized = scheme.format("input"), scheme.format("normalized")
    q, step = operand.quantize_channels(x, input_format)
    frozen = not m.training and m.running_mean is not None
    if frozen:
        buffers = *integer.mantissas(m.running_mean), *integer.mantissas(m.running_var)
        stats = bn.buffer_statistics(*buffers, _number(m.eps), step)
        xhat = bn.normalized_table(stats, input_format, normalized)
        k_table, fraction, inverse, inverse_e = xhat.k, xhat.fraction, stats.inverse, stats.inverse_exponent
    else:
        if n <= 1:
            raise ValueError(f"batch statistics need more than 1 value per channel, input {tuple(x.shape)}")
        sums = [t.flatten() for t in norm_stats(q, dims, False)]
        form = n, input_format.signed, normalized.bits
        k_table, fraction, inverse, inverse_e = ops.int_batch_table(*sums, *form)
        if m.training and m.track_running_stats and m.running_mean is not None:
            _track(m, sums[0], sums[1], step, n)
    gamma, gamma_e = _gamma(m, channels, scheme, x.codes.device)
    beta = carrier.from_float(m.bias) if m.bias is not None else None
    zero = torch.zeros(channels, dtype=torch.int32, device=x.codes.device)
    lowest = torch.full((), -(1 << 10), dtype=torch.int32, device=x.codes.device)
    offset = (beta.codes, beta.exponent) if beta else (zero, lowest)
    table, e = ops.int_affine_table(k_table, fraction, gamma, gamma_e, *offset)
    y = IntTensor(ops.int_lookup(q, table), carrier.unless_finite(x.exponent, e), 1 << bn.AFFINE_BITS)
    # Tables and scales are small, and the closure's; the codes are torch's to keep.
    codes, x_e = call.save(q) if call.keep else never, x.exponent

    def backward(g: IntTensor):
        qg, g_e = operand.quantize_channels(g, scheme.format("gradient"), call.stream())
        k = ops.int_lookup(codes(), k_table)
        one = torch.ones([1] * qg.ndim, dtype=torch.int8, device=qg.device)
        sum_g, sum_gk, sum_sign, _, _ = (t.flatten() for t in norm_grad_stats(qg, k, one, dims, dims))
        if m.weight is not None and m.weight.requires_grad:
            call.gradient("weight", *_one_exponent(sum_gk, g_e - fraction))
        if m.bias is not None and m.bias.requires_grad:
            call.gradient("bias", *_one_exponent(sum_g, g_e))
        if not call.wanted[0]:
            return (None,)
        over_batch = (None,) * 3 if frozen else (sum_g, sum_gk, sum_sign)
        # 1 / D is in steps of q, and a step is 2^step
        scales = inverse, inverse_e, fraction, gamma, gamma_e, g_e - step
        *coefficients, exponent = ops.int_norm_coefficients(*scales, *over_batch, n)
        dx = ops.int_norm_grad(qg, k, *coefficients, bn.GRADIENT_FRACTION)
        return (IntTensor(dx, carrier.unless_finite(x_e, exponent), carrier.LIMIT),)

    return y, backward


def _gamma(m: Any, channels: int, scheme: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """(8-bit codes (C,), exponent); 1 for a norm without gamma."""
    if m.weight is None:
        return (torch.ones(channels, dtype=torch.int8, device=device),
                torch.zeros((), dtype=torch.int32, device=device))  # fmt: skip
    q = operand.quantize(carrier.from_float(m.weight), operand.Form(scheme.format("weight")))
    return q.codes, q.exponent


def _one_exponent(sums: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Sums with an exponent each -> sums with one: the largest less 20, so that 34-bit sums reach 54."""
    e = exponents.amax() - 20
    return integer.shift_by(sums, e - exponents), e


def _number(v: float) -> tuple[int, int]:
    """(m, e) with v = m 2^e to 24 bits, of a Python float."""
    fraction, e = math.frexp(v)
    return round(fraction * (1 << integer.MANTISSA_BITS)), e - integer.MANTISSA_BITS


@torch.no_grad()
def _track(m: Any, total: Tensor, spread: Tensor, step: Tensor, n: int) -> None:
    """running_mean <- S / n, running_var <- D^2 with D = c A / n^2, blended by momentum in 16 bits; in integers."""
    m.num_batches_tracked.add_(1)
    if m.momentum is not None:
        weight = round(m.momentum * (1 << MOMENTUM_BITS))
    else:
        weight = (1 << MOMENTUM_BITS) // int(m.num_batches_tracked)
    new = ops.int_running_statistics(m.running_mean, m.running_var, total, spread, step, n, weight)
    m.running_mean.copy_(new[0])
    m.running_var.copy_(new[1])
