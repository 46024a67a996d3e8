"""Fully quantized normalization, L1 or L2, forward and backward, on any arrangement of axes.

    mu = mean(x),  D = c mean|x - mu| + sqrt(eps), c = sqrt(pi/2)      (l2: D = sqrt(var + eps))
    xhat = (x - mu) / D,  y = gamma xhat + beta

    h = gamma g, t = sign(x - mu):
    dx = (1/D) [h - mean(h) - c (t - mean(t)) mean(h xhat)]            (l2: the last term is xhat mean(h xhat))
    dgamma = sum(g xhat),  dbeta = sum(g)

Without centring (RMSNorm) mu = 0, and the terms mean(h) and mean(t) go.

x, xhat, gamma, g travel as codes; every sum is a sum of integers (ops.norm). Between the sums stand a few float64
operations on one number for each statistic, below, which every backend shares.
Sources: Guo et al., arXiv 2411.10948 (fully quantized L1 normalization, reconstructed); Wu et al., arXiv 1802.09769.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import ops
from .autograd import Restorer, Saver
from .numerics import draw_stream
from .observe import LayerRecord
from .ops import constants
from .ops import norm as norm_ops
from .ops.constants import L1_FACTOR
from .qtensor import QTensor
from .scheme import NormScheme


@dataclass(frozen=True)
class Geometry:
    """Which axes a norm reduces, and where finer scales are allowed.

    dims          reduced by a statistic: (0, 2, 3) for BatchNorm2d, (1,) for LayerNorm on (rows, features)
    param_dims    reduced by the gradients of gamma and beta: (0, 2, 3), and (0,)
    input_axis    an axis along which the input's scale may differ: one scale for each statistic
    gradient_axis an axis along which the gradient's may: it must be constant over both dims and param_dims, or None
    lead          0, or how many leading axes together number the statistics: the input's scale may differ along all
    centred       is the mean taken off? (not in RMSNorm)
    """

    dims: tuple[int, ...]
    param_dims: tuple[int, ...]
    input_axis: int | None
    gradient_axis: int | None
    lead: int = 0
    centred: bool = True


def batch_norm(ndim: int) -> Geometry:
    """BatchNorm on (N, C, ...): a statistic for each channel."""
    rest = (0, *range(2, ndim))
    return Geometry(rest, rest, input_axis=1, gradient_axis=1)


def group_norm(ndim: int) -> Geometry:
    """GroupNorm and InstanceNorm on (N, groups, C / groups, ...): a statistic for each sample and group."""
    return Geometry(tuple(range(2, ndim)), (0, *range(3, ndim)), input_axis=None, gradient_axis=1, lead=2)


LAYER_NORM = Geometry((1,), (0,), input_axis=0, gradient_axis=None)
RMS_NORM = replace(LAYER_NORM, centred=False)


def denominator(spread: Tensor, eps: float, l2: bool) -> Tensor:
    """D of a mean absolute deviation (L1) or of a variance (L2)."""
    return torch.sqrt(spread + eps) if l2 else L1_FACTOR * spread + math.sqrt(eps)


class QuantizedNorm(torch.autograd.Function):
    """(x, gamma, beta) -> (y, mu, D): normalization by the statistics of x itself.

    x any shape; gamma, beta broadcast to x, or None; stream int64 scalar for the gradient's rounding, or None: then
    backward draws one.
    mu and D (float64, one for each statistic) are for running statistics and carry no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x, gamma, beta, geo: Geometry, scheme: NormScheme, eps: float, stream, record: LayerRecord):
        l2, n = scheme.kind == "l2", norm_ops.count(x.shape, geo.dims)
        saver = Saver()
        with ops.recording(record.kernels), torch.autocast(x.device.type, enabled=False):
            q_gamma = None
            if scheme.is_float:
                y, mu, d, k = _float_forward(x, gamma, beta, geo, l2, eps)
            else:
                q_gamma = codes_of_gamma(gamma, x, scheme)
                qx = _codes_of_input(x, geo, scheme, record)
                y, mu, d, k = _forward(qx, q_gamma, beta, geo, scheme, n, eps)
                k = ops.narrow(k, scheme.format("saved").bits)
            if any(ctx.needs_input_grad[:3]):
                ctx.k, ctx.q_gamma, ctx.d = saver.keep(k), saver.keep(q_gamma), saver.keep(d)
                ctx.gamma, ctx.stream = saver.keep(gamma if scheme.is_float else None), saver.keep(stream)
        ctx.save_for_backward(*saver.tensors)
        ctx.geo, ctx.scheme, ctx.n, ctx.record, ctx.x_dtype = geo, scheme, n, record, x.dtype
        ctx.params = [None if p is None else (p.shape, p.dtype) for p in (gamma, beta)]
        ctx.mark_non_differentiable(mu, d)
        return y.to(x.dtype), mu, d

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor, *_unused):
        restore = Restorer(ctx.saved_tensors)
        k, d, l2 = restore(ctx.k), restore(ctx.d), ctx.scheme.kind == "l2"
        with ops.recording(ctx.record.kernels), torch.autocast(g.device.type, enabled=False):
            if ctx.scheme.is_float:
                grads = _float_backward(g, k, d, restore(ctx.gamma), ctx.geo, l2)
            else:
                qg = _codes_of_gradient(g, ctx.geo, ctx.scheme, restore(ctx.stream), ctx.record)
                grads = _backward(qg, k, restore(ctx.q_gamma), d, ctx.geo, l2, ctx.n)
        dx, *params = grads
        shaped = [
            None if like is None or not need else p.reshape(like[0]).to(like[1])
            for p, like, need in zip(params, ctx.params, ctx.needs_input_grad[1:3], strict=True)
        ]
        return dx.to(ctx.x_dtype) if ctx.needs_input_grad[0] else None, *shaped, None, None, None, None, None


def _codes_of_input(x: Tensor, geo: Geometry, scheme: NormScheme, record: LayerRecord) -> QTensor:
    """x with a scale for each statistic."""
    quantizer = scheme.quantizer("input", 0 if geo.lead else geo.input_axis)
    rows = x.flatten(0, geo.lead - 1) if geo.lead else x
    q = quantizer(rows)
    record.measure("activation", rows, q, quantizer)
    if not geo.lead:
        return q
    lead = x.shape[: geo.lead] if q.scale.numel() > 1 else [1] * geo.lead
    return QTensor(q.codes.view(x.shape), q.scale.view(*lead, *q.scale.shape[1:]), q.format)


def codes_of_gamma(gamma: Tensor | None, x: Tensor, scheme: NormScheme) -> QTensor:
    """gamma with one scale: constant inside every sum. Without gamma: the code 1 with scale 1."""
    fmt = scheme.format("weight")
    if gamma is None:
        one = torch.ones([1] * x.ndim, device=x.device)
        return QTensor(one.to(torch.int8), one, fmt)
    return scheme.quantizer("weight", None)(gamma)


def _codes_of_gradient(g: Tensor, geo: Geometry, scheme: NormScheme, stream, record: LayerRecord) -> QTensor:
    quantizer = scheme.quantizer("gradient", geo.gradient_axis, "stochastic")
    qg = quantizer(g, draw_stream(1, g.device)[0] if stream is None else stream)  # a layer in eval mode: not drawn yet
    record.measure("gradient", g, qg, quantizer)
    return qg


def _forward(qx: QTensor, q_gamma: QTensor, beta, geo: Geometry, scheme: NormScheme, n: int, eps: float):
    if geo.centred:
        total, spread, least, greatest = norm_ops.norm_stats(qx.codes, list(geo.dims), scheme.kind == "l2")
        count = n
    else:
        spread, greatest = norm_ops.norm_stats_uncentred(qx.codes, list(geo.dims), scheme.kind == "l2")
        total, least, count = torch.zeros_like(spread), -greatest, 1
    fmt = scheme.format("normalized")
    mu, d, factor, scale = constants.norm_constants(
        qx.scale, total, spread, least, greatest, n, count, scheme.kind == "l2", eps, fmt.bits, list(geo.param_dims)
    )
    beta = torch.zeros([1] * qx.codes.ndim, device=qx.device) if beta is None else beta.float()
    y, k = norm_ops.norm_apply(qx.codes, total, factor, count, fmt.bits, q_gamma.codes, scale * q_gamma.scale, beta)
    return y, mu, d, QTensor(k, scale, fmt)


def _backward(qg: QTensor, k: QTensor, q_gamma: QTensor, d: Tensor, geo: Geometry, l2: bool, n: int):
    sum_h, sum_hk, sum_t, sum_g, sum_gk = norm_ops.norm_grad_stats(
        qg.codes, k.codes, q_gamma.codes, list(geo.dims), list(geo.param_dims)
    )
    auvt = constants.norm_grad_constants(qg.scale, k.scale, q_gamma.scale, d, sum_h, sum_hk, sum_t, n, geo.centred, l2)
    dx = norm_ops.norm_grad_apply(qg.codes, k.codes, q_gamma.codes, *auvt, l2)
    return dx, sum_gk.float() * (qg.scale * k.scale), sum_g.float() * qg.scale


def _float_forward(x: Tensor, gamma, beta, geo: Geometry, l2: bool, eps: float):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mu = wide.mean(geo.dims, keepdim=True)
    if not geo.centred:
        mu = torch.zeros_like(mu)
    centred = wide - mu
    d = denominator((centred.square() if l2 else centred.abs()).mean(geo.dims, keepdim=True), eps, l2)
    k = centred / d
    y = k if gamma is None else k * gamma
    return y if beta is None else y + beta, mu.double(), d.double(), k


def _float_backward(g: Tensor, k: Tensor, d: Tensor, gamma, geo: Geometry, l2: bool):
    g = g.to(k.dtype)
    h = g if gamma is None else g * gamma
    mean_h, mean_hk = h.mean(geo.dims, keepdim=True), (h * k).mean(geo.dims, keepdim=True)
    t = k.sign()
    mean_t = t.mean(geo.dims, keepdim=True)
    if not geo.centred:
        mean_h, mean_t = torch.zeros_like(mean_h), torch.zeros_like(mean_t)
    last = k * mean_hk if l2 else L1_FACTOR * (t - mean_t) * mean_hk
    dx = (h - mean_h - last) / d.to(k.dtype)
    return dx, (g * k).sum(geo.param_dims, keepdim=True), g.sum(geo.param_dims, keepdim=True)


class FrozenNorm(torch.autograd.Function):
    """y = gamma (x - mean) / D + beta with a mean and a D that are constants: BatchNorm in eval mode.

    x travels as codes q, so y = float32(q) * (s gamma / D) + (beta - mean gamma / D); gamma as quantized in training.
    mean, d: one for each statistic, broadcastable to x.
    """

    @staticmethod
    def forward(ctx: Any, x, gamma, beta, mean, d, geo: Geometry, scheme: NormScheme, stream, record: LayerRecord):
        saver = Saver()
        with ops.recording(record.kernels), torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(x.dtype, torch.float32)
            mean, d = mean.double(), d.double()
            if scheme.is_float:
                q, weight = x.to(wide), 1.0 if gamma is None else gamma.double()
            else:
                quantizer = scheme.quantizer("input", geo.input_axis)
                q, weight = quantizer(x), codes_of_gamma(gamma, x, scheme).dequantize(torch.float64)
                record.measure("activation", x, q, quantizer)
            slope = weight / d
            offset = -mean * slope if beta is None else beta.double() - mean * slope
            if isinstance(q, QTensor):
                y = q.codes.to(torch.float32) * (q.scale.double() * slope).float() + offset.float()
            else:
                y = q * slope.to(wide) + offset.to(wide)
            if any(ctx.needs_input_grad[:3]):
                ctx.q, ctx.stream = saver.keep(q if ctx.needs_input_grad[1] else None), saver.keep(stream)
                ctx.mean, ctx.d, ctx.slope = saver.keep(mean), saver.keep(d), saver.keep(slope)
        ctx.save_for_backward(*saver.tensors)
        ctx.geo, ctx.scheme, ctx.record, ctx.x_dtype = geo, scheme, record, x.dtype
        ctx.params = [None if p is None else (p.shape, p.dtype) for p in (gamma, beta)]
        return y.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor):
        restore = Restorer(ctx.saved_tensors)
        q, mean, d, slope = restore(ctx.q), restore(ctx.mean), restore(ctx.d), restore(ctx.slope)
        dims = ctx.geo.param_dims
        with ops.recording(ctx.record.kernels), torch.autocast(g.device.type, enabled=False):
            if ctx.scheme.is_float:
                codes, scale = g, torch.ones([1] * g.ndim, device=g.device, dtype=torch.float64)
                wide = torch.promote_types(g.dtype, torch.float32)
            else:
                qg = _codes_of_gradient(g, ctx.geo, ctx.scheme, restore(ctx.stream), ctx.record)
                codes, scale, wide = qg.codes, qg.scale.double(), torch.float32
            dx = codes.to(wide) * (scale * slope).to(wide)
            total = codes.sum(dims, keepdim=True, dtype=torch.int64 if codes.dtype == torch.int8 else None).double()
            dbeta, dgamma = scale * total, None
            if q is not None:
                x_codes, x_scale = (q.codes, q.scale.double()) if isinstance(q, QTensor) else (q, 1.0)
                both = codes.to(x_codes.dtype) * x_codes if ctx.scheme.is_float else codes.long() * x_codes.long()
                dgamma = scale * (x_scale * both.sum(dims, keepdim=True).double() - mean * total) / d
        grads = [dx.to(ctx.x_dtype) if ctx.needs_input_grad[0] else None]
        for p, like, need in zip((dgamma, dbeta), ctx.params, ctx.needs_input_grad[1:3], strict=True):
            grads.append(None if p is None or like is None or not need else p.reshape(like[0]).to(like[1]))
        return *grads, None, None, None, None, None, None
