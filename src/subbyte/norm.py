"""Fully quantized normalization, L1 or L2, forward and backward, on any arrangement of axes.

    mu = mean(x),  D = c mean|x - mu| + sqrt(eps), c = sqrt(pi/2)      (l2: D = sqrt(var + eps))
    xhat = (x - mu) / D,  y = gamma xhat + beta

    h = gamma g, t = sign(x - mu):
    dx = (1/D) [h - mean(h) - c (t - mean(t)) mean(h xhat)]            (l2: the last term is xhat mean(h xhat))
    dgamma = sum(g xhat),  dbeta = sum(g)

Without centring (RMSNorm) mu = 0, and the terms mean(h) and mean(t) go.

x, xhat, gamma, g travel as codes; every sum is a sum of integers (ops.norm). Between the sums stand a few float64
operations on one number for each statistic (ops.constants). A whole layer is one op (ops.norm_layer).
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
from .ops.constants import L1_FACTOR
from .ops.dispatch import dispatched
from .ops.norm_layer import norm_backward, norm_forward, norm_gradients
from .qtensor import QTensor
from .quantizers import by_axis
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
        l2, saver = scheme.kind == "l2", Saver()
        with ops.recording(record.kernels), torch.autocast(x.device.type, enabled=False):
            if scheme.is_float:
                y, mu, d, k = _float_forward(x, gamma, beta, geo, l2, eps)
                kept = [k, d, gamma]
            else:
                y, mu, *kept = _forward(x, gamma, beta, geo, scheme, eps, record)
                d = kept[-1]
            if any(ctx.needs_input_grad[:3]):
                ctx.kept, ctx.stream = [saver.keep(t) for t in kept], saver.keep(stream)
        ctx.save_for_backward(*saver.tensors)
        ctx.geo, ctx.scheme, ctx.record, ctx.x_dtype, ctx.stride = geo, scheme, record, x.dtype, y.stride()
        ctx.params = [None if p is None else (p.shape, p.dtype) for p in (gamma, beta)]
        ctx.mark_non_differentiable(mu, d)
        return y.to(x.dtype), mu, d

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor, *_unused):
        restore = Restorer(ctx.saved_tensors)
        kept, stream = [restore(recipe) for recipe in ctx.kept], restore(ctx.stream)
        with ops.recording(ctx.record.kernels), torch.autocast(g.device.type, enabled=False):
            if ctx.scheme.is_float:
                k, d, gamma = kept
                grads = _float_backward(g, k, d, gamma, ctx.geo, ctx.scheme.kind == "l2")
            else:
                grads = _backward(_laid_out(g, ctx.stride), kept, stream, ctx.geo, ctx.scheme, ctx.record)
        dx, *params = grads
        shaped = [
            None if like is None or not need else p.reshape(like[0]).to(like[1])
            for p, like, need in zip(params, ctx.params, ctx.needs_input_grad[1:3], strict=True)
        ]
        return dx.to(ctx.x_dtype) if ctx.needs_input_grad[0] else None, *shaped, None, None, None, None, None


def _range_of_input(x: Tensor, geo: Geometry, scheme: NormScheme, record: LayerRecord) -> Tensor:
    """R of x, one for each statistic."""
    quantizer = scheme.quantizer("input", 0 if geo.lead else geo.input_axis)
    rows = x.flatten(0, geo.lead - 1) if geo.lead else x
    if record.armed:
        record.measure("activation", rows, quantizer(rows), quantizer)
    r, _, _ = quantizer.ranges(rows.detach())
    if not geo.lead:
        return r
    lead = x.shape[: geo.lead] if r.numel() > 1 else [1] * geo.lead
    return r.view(*lead, *r.shape[1:])


def _laid_out(g: Tensor, stride: tuple[int, ...]) -> Tensor:
    """g in the memory order of the layer's input."""
    if all(a == b for a, b, n in zip(g.stride(), stride, g.shape) if n > 1):
        return g
    return torch.empty_strided(g.shape, stride, dtype=g.dtype, device=g.device).copy_(g)


def codes_of_gamma(gamma: Tensor | None, x: Tensor, scheme: NormScheme) -> QTensor:
    """gamma with one scale: constant inside every sum. Without gamma: the code 1 with scale 1."""
    fmt = scheme.format("weight")
    if gamma is None:
        one = torch.ones([1] * x.ndim, dtype=torch.float32, device=x.device)
        return QTensor(one.to(torch.int8), one, fmt)
    return scheme.quantizer("weight", None)(gamma)


def _codes_of_gradient(
    g: Tensor, geo: Geometry, scheme: NormScheme, stream, record: LayerRecord
) -> tuple[Tensor, Tensor]:
    """(codes in g's memory order, scale)."""
    quantizer = scheme.quantizer("gradient", geo.gradient_axis, "stochastic")
    stream = draw_stream(1, g.device)[0] if stream is None else stream  # a layer in eval mode: not drawn yet
    shaped = g.flatten(1, geo.lead) if scheme.groups > 1 and geo.lead else g  # tokens: all axes but that of channels
    qg = quantizer(shaped, stream)
    record.measure("gradient", shaped, qg, quantizer)
    if shaped is g:
        return qg.codes, qg.scale
    return _laid_out(qg.codes.view(g.shape), g.stride()), qg.scale.view([1] * g.ndim)


def _forward(x: Tensor, gamma, beta, geo: Geometry, scheme: NormScheme, eps: float, record: LayerRecord):
    """(y, mu, what backward takes: packed xhat, its scale, the codes of gamma, their scale, D)."""
    r = _range_of_input(x, geo, scheme, record)
    bits = (scheme.format(t).bits for t in ("input", "normalized", "saved", "weight"))
    form = (list(geo.dims), list(geo.param_dims), eps, *bits, scheme.kind == "l2", geo.centred)
    y, saved, scale, q_gamma, s_gamma, mu, d = norm_forward(x, r, gamma, beta, *form)
    return y, mu, saved, scale, q_gamma, s_gamma, d


def _backward(g: Tensor, kept: Any, stream, geo: Geometry, scheme: NormScheme, record: LayerRecord):
    dims, over, l2 = list(geo.dims), list(geo.param_dims), scheme.kind == "l2"
    saved = scheme.format("saved").bits
    if scheme.groups > 1:
        q, s = _codes_of_gradient(g, geo, scheme, stream, record)
        form: dict[str, Any] = dict(dims=dims, over=over, saved_bits=saved, l2=l2, centred=geo.centred)
        return norm_gradients(dispatched, q, s, *kept, **form)
    quantizer = scheme.quantizer("gradient", geo.gradient_axis, "stochastic")
    stream = draw_stream(1, g.device)[0] if stream is None else stream  # a layer in eval mode: not drawn yet
    if record.armed:
        record.measure("gradient", g, quantizer(g, stream), quantizer)
    r, _, _ = quantizer.ranges(g)
    return norm_backward(g, r, stream, *kept, dims, over, scheme.format("gradient").bits, saved, l2, geo.centred)


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
    """y = gamma xhat + beta, xhat = (x - mean) / D with a mean and a D that are constants: BatchNorm in eval mode.

    x, xhat and gamma travel as codes, as in training: a net that has learned with few bits of xhat is that function.
    Each statistic's xhat has the range of this call. Source of mean and D: running statistics, broadcastable to x.
    """

    @staticmethod
    def forward(ctx: Any, x, gamma, beta, mean, d, geo: Geometry, scheme: NormScheme, stream, record: LayerRecord):
        saver = Saver()
        with ops.recording(record.kernels), torch.autocast(x.device.type, enabled=False):
            mean, d = mean.double(), d.double()
            if scheme.is_float:
                wide = torch.promote_types(x.dtype, torch.float32)
                slope = (1.0 if gamma is None else gamma.double()) / d
                offset = -mean * slope if beta is None else beta.double() - mean * slope
                y = x * slope.to(wide) + offset.to(wide)
                k = (x - mean.to(wide)) / d.to(wide) if ctx.needs_input_grad[1] else None
            else:
                quantizer = scheme.quantizer("input", geo.input_axis)
                q, weight = quantizer(x), codes_of_gamma(gamma, x, scheme)
                record.measure("activation", x, q, quantizer)
                xhat = q.codes.to(torch.float32) * (q.scale.double() / d).float() - (mean / d).float()
                k = by_axis(scheme.format("normalized").bits, geo.input_axis, "nearest")(xhat)
                slope = weight.dequantize(torch.float64) / d
                y = (k.codes.to(torch.float32) * weight.codes.to(torch.float32)) * (k.scale * weight.scale)
                y = y if beta is None else y + beta.float()
            if any(ctx.needs_input_grad[:3]):
                ctx.k, ctx.stream = saver.keep(k if ctx.needs_input_grad[1] else None), saver.keep(stream)
                ctx.slope = saver.keep(slope)
        ctx.save_for_backward(*saver.tensors)
        ctx.geo, ctx.scheme, ctx.record, ctx.x_dtype = geo, scheme, record, x.dtype
        ctx.params = [None if p is None else (p.shape, p.dtype) for p in (gamma, beta)]
        return y.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor):
        restore = Restorer(ctx.saved_tensors)
        k, slope = restore(ctx.k), restore(ctx.slope)
        dims, dgamma = ctx.geo.param_dims, None
        with ops.recording(ctx.record.kernels), torch.autocast(g.device.type, enabled=False):
            if ctx.scheme.is_float:
                g = g.to(torch.promote_types(g.dtype, torch.float32))
                dx, dbeta = g * slope.to(g.dtype), g.sum(dims, keepdim=True)
                if k is not None:
                    dgamma = (g * k).sum(dims, keepdim=True)
            else:
                codes, scale = _codes_of_gradient(g, ctx.geo, ctx.scheme, restore(ctx.stream), ctx.record)
                scale = scale.double()
                dx = codes.to(torch.float32) * (scale * slope).float()
                dbeta = scale * codes.sum(dims, keepdim=True, dtype=torch.int64)
                if k is not None:
                    both = (codes.long() * k.codes.long()).sum(dims, keepdim=True)
                    dgamma = scale * k.scale.double() * both
        grads = [dx.to(ctx.x_dtype) if ctx.needs_input_grad[0] else None]
        for p, like, need in zip((dgamma, dbeta), ctx.params, ctx.needs_input_grad[1:3], strict=True):
            grads.append(None if p is None or like is None or not need else p.reshape(like[0]).to(like[1]))
        return *grads, None, None, None, None, None, None
