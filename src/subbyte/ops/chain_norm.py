"""A fused chain's norm but for its last pass, as one op each way: what ops/chain.py and ops/constants.py do one by one.

They are ops for speed alone: of a layer with few elements, calls and small tensors are what costs. Each equals, bit for
bit, the ops that its body names. The channel is axis 1 of every tensor here, a statistic that of a batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .. import numerics
from ..numerics import IntFormat
from .dispatch import op, registered
from .exact import is_half
from .norm import count


def _reference(name: str, *args):
    return registered[name](*args)


def _per_channel(x: Tensor) -> list[int]:
    return [n if i == 1 else 1 for i, n in enumerate(x.shape)]


def _rest(x: Tensor) -> list[int]:
    return [i for i in range(x.ndim) if i != 1]


def _range(r_k: Tensor, whole: bool) -> Tensor:
    return r_k.amax(list(range(r_k.ndim)), keepdim=True) if whole else r_k


def _norm_fake(y, r_k, gamma, beta, whole, input_bits, bits, saved_bits, weight_bits, eps):
    one, each = [1] * y.ndim, _per_channel(y)
    floats = [y.new_empty(shape, dtype=torch.float32) for shape in (each, one, each, each, each)]
    factor, s_gamma, scale, saved_scale, r = floats
    return (
        torch.empty_like(y, dtype=torch.int8),
        y.new_empty(each, dtype=torch.int64),
        factor,
        y.new_empty(one if gamma is None else gamma.shape, dtype=torch.int8),
        *(s_gamma, scale, saved_scale),
        y.new_empty(each, dtype=torch.float64),
        y.new_empty(each, dtype=torch.float64),
        r,
    )


@op(
    "(Tensor y, Tensor r_k, Tensor? gamma, Tensor? beta, bool whole, int input_bits, int bits, int saved_bits,"
    " int weight_bits, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _norm_fake,
)
def chain_norm(y, r_k, gamma, beta, whole: bool, input_bits: int, bits: int, saved_bits: int, weight_bits, eps: float):
    """(q, total, factor, q_gamma, s_gamma, scale, saved scale, mu, D, r) of an L1 batch norm of y.

    y      float32 or bfloat16, dense; r_k: amax(y, 1)
    gamma  and beta: float32, one number for each channel, or None. gamma is quantized by its own maximum; None: the
           code 1 with scale 1
    whole  is y quantized with one range?
    q, total, factor, q_gamma, scale   operands of norm_apply, norm_relu and norm_relu_codes
    r      max ReLU(norm(y)) of each channel, in the type of y
    = quantize(y), norm_stats, norm_constants, absmax_codes(gamma), norm_relu_range
    """
    r, dims = _range(r_k, whole), _rest(y)
    n = count(y.shape, dims)
    q, s = _reference("quantize", y, r, None, None, input_bits, True), numerics.step(r, IntFormat(input_bits))
    total, spread, least, greatest = _reference("norm_stats", q, dims, False)
    mu, d, factor, scale = _reference("norm_constants", s, total, spread, least, greatest, n, n, False, eps, bits, [])
    one = torch.ones([1] * y.ndim, dtype=torch.float32, device=y.device)
    q_gamma, s_gamma = (
        (one.to(torch.int8), one) if gamma is None else _reference("absmax_codes", gamma, 1.0, None, weight_bits, True)
    )
    saved_scale, scale = scale * float(1 << max(bits - saved_bits, 0)), scale * s_gamma
    beta = torch.zeros_like(one) if beta is None else beta
    r = _reference("norm_relu_range", least, greatest, total, factor, n, bits, q_gamma, scale, beta, is_half(y))
    return q, total, factor, q_gamma.contiguous(), s_gamma, scale, saved_scale, mu, d, r


def _grad_fake(g, mask, keep, whole, bits, stream, saved, saved_bits, s_k, q_gamma, s_gamma, d):
    floats = [g.new_empty(_per_channel(g), dtype=torch.float32) for _ in range(7)]
    return torch.empty_like(g, dtype=torch.int8), torch.empty_like(g) if keep else g.new_empty(0), *floats


@op(
    "(Tensor g, Tensor mask, bool keep, bool whole, int bits, Tensor stream, Tensor saved, int saved_bits, Tensor s_k,"
    " Tensor q_gamma, Tensor s_gamma, Tensor d)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _grad_fake,
)
def chain_norm_grad(
    g, mask, keep: bool, whole: bool, bits: int, stream, saved, saved_bits: int, s_k, q_gamma, s_gamma, d
):
    """(q_g, h, a, u, v, t, r, dgamma, dbeta) of the gradient g behind a chain's norm and ReLU.

    g, mask, keep    as relu_grad takes them; h as it gives it
    whole            is g quantized with one range?
    saved, s_k       xhat, packed, and its scale; q_gamma, s_gamma, d: of the norm, forward
    q_g, a, u, v, t  operands of norm_grad_codes
    r                max |dx| of each channel, in the type of g
    = relu_grad, relu_grad_quantize, norm_grad_sums, norm_grad_constants, norm_grad_range
    """
    r_k, h = _reference("relu_grad", g, mask, keep)
    r = _range(r_k, whole)
    s = numerics.step(r, IntFormat(bits))
    q_g = _reference("relu_grad_quantize", g, mask, r, stream, bits)
    return q_g, h, *sums_of_gradient(registered, q_g, s, saved, saved_bits, s_k, q_gamma, s_gamma, d, is_half(g))


def sums_of_gradient(ops: Mapping[str, Callable], q_g, s, saved, saved_bits: int, s_k, q_gamma, s_gamma, d, half: bool):
    """(a, u, v, t, r, dgamma, dbeta) of chain_norm_grad, of codes q_g with the scale s, by these ops."""
    (sum_g, sum_gk, sum_t), low, high = ops["norm_grad_sums"](q_g, saved, saved_bits)
    weight, n = q_gamma.to(torch.int64), count(q_g.shape, _rest(q_g))
    sums = (weight * sum_g, weight * sum_gk, sum_t)
    constants = ops["norm_grad_constants"](s, s_k, s_gamma, d, *sums, n, True, False)
    r = ops["norm_grad_range"](low, high, q_gamma, *constants, half)
    return *constants, r, sum_gk.float() * (s * s_k), sum_g.float() * s
