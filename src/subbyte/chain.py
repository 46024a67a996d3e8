"""A chain of products, each with a batch norm behind it, as one autograd.Function: codes pass from layer to layer.

    x -> [product -> L1 batch norm -> ReLU]* -> product -> batch norm -> (+ other) -> (ReLU) -> z

Inside, no float tensor is written but what a product gives: the range of ReLU(norm(y)) follows from the extremes of
each channel's codes, since a norm is monotone in them; that of a norm's gradient follows in the same way. So one pass
takes a norm's input codes to the next product's, and one pass takes the gradient's codes back through a norm. Results,
forward and backward, are those of the layers one by one, bit for bit: the same codes by the same random numbers.

In bfloat16 (that of x, or of autocast) the floats that are written are bfloat16, what a product gives, z, gradients;
those that stay in registers are rounded to it, as between layers.

Saved for backward, for each element: the packed input of the product, xhat in NormScheme.saved bits, 1 bit of ReLU.
Which layers make a chain is fusion's to decide (fuse.py); what is not here either: chains in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import numerics, ops
from .autograd import Operand, Restorer, Saver, channel_sum, product, quantized
from .norm import Geometry
from .observe import LayerRecord
from .ops import chain as passes
from .ops import chain_norm
from .ops import norm as norm_ops
from .ops.dispatch import dispatched
from .ops.exact import float_dtype, is_half
from .products import Products
from .qtensor import PackedQTensor, QTensor
from .quantizers import Quantizer, TokenShiftQuant
from .scheme import LayerScheme, NormScheme

SAMPLES, CHANNELS = 0, 1
"""Axes of a layer's input and output."""

PARAMETERS = 4
"""Of a stage: weight and bias of the product, gamma and beta of the norm."""


@dataclass(frozen=True)
class Stage:
    """One product and the norm behind it, as they stand in this call.

    streams, norm_stream  the random numbers that the two layers drew (None where nothing of theirs is stochastic)
    """

    products: Products
    layer: LayerScheme
    layer_record: LayerRecord
    streams: Tensor | None
    norm: NormScheme
    eps: float
    geometry: Geometry
    norm_record: LayerRecord
    norm_stream: Tensor


def covers(layer: LayerScheme, norm: NormScheme, first: bool) -> str:
    """ "" if a stage with these schemes can be part of a chain, otherwise what stands against it."""
    g, x = layer.gradient, layer.activation
    w = layer.weight
    if w is None or x is None or g is None or any(q.initial_state() is not None for q in (w, x, g)):
        return "every role needs a quantizer, and none that learns"
    if layer.gradient_samples > 1:
        return "the gradient is quantized more than once"
    axes = (ops.WHOLE, CHANNELS, SAMPLES) if g.shifts else (ops.WHOLE, CHANNELS)  # a free scale for each sample: no
    if not (isinstance(g, TokenShiftQuant) or g.range_axis in axes) or not g.signed:
        return f"{g} must see more of a gradient than the ranges of its channels"
    by_range = isinstance(x, TokenShiftQuant) or x.range_axis in (ops.WHOLE, CHANNELS)
    if not first and (not by_range or x.shifts or x.stochastic):
        return f"{x} must see more of an activation than its channels' ranges"
    if norm.is_float or norm.kind != "l1":
        return f"only quantized L1 norms are fused, not {norm}"
    return ""


def takes_whole_range(q: Quantizer) -> bool:
    """Do its codes depend on nothing but max |x|?"""
    return q.range_axis == ops.WHOLE and not q.shifts and not q.stochastic


def ranges_by_channel(q: Quantizer, r_k: Tensor) -> tuple[Tensor, Tensor | None, int]:
    """What q.ranges(x) gives, from r_k = amax(x, 1). q sees channels or the whole tensor."""
    return q.ranges_of(_whole(r_k) if q.range_axis == ops.WHOLE else r_k)


def _whole(r_k: Tensor) -> Tensor:
    return r_k.amax(list(range(r_k.ndim)), keepdim=True)


class Chain(torch.autograd.Function):
    """(other, x, codes, half, relu, together, stages, weight, bias, gamma, beta of each) -> (z, range, mu, D of each).

    other     float32 or bfloat16 of z's shape, added behind the last norm; or None. Its gradient goes back before x's
    x         float32 or bfloat16 (N, C, ...), the input of the first product
    half      are floats inside of the chain, and z, bfloat16?
    codes     the same in codes (first_codes), as what is multiplied and as what is saved
    relu      is there a ReLU at the end?
    together  where other is x itself, the shortcut of a residual block: may the gradient of x be that of both?
    mu, D     float64 of each norm, for running statistics; they carry no gradient, nor does the range
    """

    @staticmethod
    def forward(
        ctx: Any,
        other,
        x,
        codes: tuple[Operand, Operand | PackedQTensor],
        half: bool,
        relu: bool,
        together: bool,
        stages: Sequence[Stage],
        *params,
    ):
        saver, kept, shapes, statistics = Saver(), [], [], []
        _, need_x, _, _, _, _, _, *need = ctx.needs_input_grad
        qx, px = codes
        z = r = None
        for i, stage in enumerate(stages):
            at = PARAMETERS * i
            w, bias, gamma, beta = params[at : at + PARAMETERS]
            shapes.append(qx.shape)
            kept_x, last = px if need[at] else None, i == len(stages) - 1
            with ops.recording(stage.layer_record.kernels):
                qw = quantized("weight", w, stage.layer.weight, stage.streams, 2, stage.layer_record)
                p = stage.products
                integer = partial(p.output_and_range, half=half)
                y, y_range = product("output", integer, p.float_output_and_range, qx, qw, bias)
            with ops.recording(stage.norm_record.kernels):
                norm = _Norm(y, y_range, stage, gamma, beta)
                del y
                if last:
                    z, r, saved, mask = norm.to_floats(other, relu, half)
                else:
                    qx, px, saved, mask = norm.to_codes(stages[i + 1].layer, half)
            statistics += [norm.mu, norm.d]
            kept_w = qw if need_x or any(need[:at]) else None
            operands = (kept_x, kept_w, norm.kept(saved), mask, norm.q_gamma, norm.s_gamma, norm.d)
            kept.append(tuple(saver.keep(t) for t in operands))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*saver.tensors)
        ctx.kept, ctx.stages, ctx.shapes, ctx.residual = kept, stages, shapes, together and other is x
        ctx.half, ctx.dtypes = half, (None if other is None else other.dtype, x.dtype)
        ctx.params = [None if p is None else (p.shape, p.dtype) for p in params]
        ctx.products = [s.products.of_weight(w) for s, w in zip(stages, params[::PARAMETERS], strict=True)]
        ctx.mark_non_differentiable(r, *statistics)
        return z, r, *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor, *_unused):
        restore = Restorer(ctx.saved_tensors)
        need_other, need_x, _, _, _, _, _, *need = ctx.needs_input_grad
        other_dtype, x_dtype = ctx.dtypes
        grads: list[Tensor | None] = [None] * len(need)
        grad_other = around = None  # around: what passes by the products of a residual block, and the mask for it
        need_other = need_other and not ctx.residual
        for i in reversed(range(len(ctx.stages))):
            stage, at = ctx.stages[i], PARAMETERS * i
            px, pw, pk, *tensors = ctx.kept[i]
            last = i == len(ctx.stages) - 1
            k = restore.packed(pk)
            mask, q_gamma, s_gamma, d = (restore(t) for t in tensors)
            with ops.recording(stage.norm_record.kernels):
                step = _NormGradient(g, k, mask, (q_gamma, s_gamma), d, stage, last and need_other)
                if last and need_other:
                    grad_other = step.masked.to(other_dtype)
                if last and ctx.residual:
                    around = (step.g, mask)
                grads[at + 2 : at + 4] = step.gamma, step.beta
                qg = step.to_codes()
            with ops.recording(stage.layer_record.kernels):
                p = ctx.products[i]
                if need[at]:
                    shape = ctx.params[at][0]
                    grads[at] = product("grad_weight", p.grad_weight, p.float_grad_weight, qg, restore(px), shape)
                if need[at + 1]:
                    grads[at + 1] = channel_sum(qg)
                if not (need_x or any(need[:at])):
                    break
                half = ctx.half if i else x_dtype is torch.bfloat16
                integer, emulated = partial(p.grad_input, half=half), p.float_grad_input
                if i == 0 and around is not None:
                    integer, emulated = (
                        partial(f, more=around[0], mask=around[1]) for f in (p.grad_input_plus, p.float_grad_input_plus)
                    )
                g = product("grad_input", integer, emulated, qg, restore(pw), ctx.shapes[i])
        shaped = [
            None if p is None or like is None or not wanted else p.reshape(like[0]).to(like[1])
            for p, like, wanted in zip(grads, ctx.params, need, strict=True)
        ]
        return grad_other, g.to(x_dtype) if need_x else None, None, None, None, None, None, *shaped


@torch.no_grad()
def first_codes(x: Tensor, x_range: Tensor | None, stage: Stage) -> tuple[Operand, Operand | PackedQTensor]:
    """(x by the quantizer of a chain's first product, the same packed where it is codes).

    x_range  float32 of one element: max |x| if the caller knows it (the range of another chain's z), or None
    """
    quantizer = stage.layer.activation
    assert quantizer is not None
    with ops.recording(stage.layer_record.kernels):
        if x_range is not None and isinstance(quantizer, TokenShiftQuant) and not quantizer.stochastic:
            q: Operand = quantizer.represent(x, None, x_range)
        elif x_range is not None and takes_whole_range(quantizer):
            q = _codes(x, quantizer, x_range)
        else:
            q = quantizer(x, stage.streams[1] if quantizer.stochastic and stage.streams is not None else None)
        return q, ops.pack(q) if isinstance(q, QTensor) else q


def _codes(x: Tensor, quantizer: Quantizer, r_k: Tensor) -> QTensor:
    """x by a quantizer without shifts, to nearest; r_k = amax(x, 1)."""
    (r, _, _), fmt = ranges_by_channel(quantizer, r_k), quantizer.format
    return QTensor(ops.quantize(x, r, None, None, fmt.bits, fmt.signed), numerics.step(r, fmt), fmt)


class _Norm:
    """The norm of one stage, forward: the codes of y and what follows from them, and one pass to what comes next."""

    def __init__(self, y: Tensor, r_k: Tensor, stage: Stage, gamma, beta) -> None:
        self.scheme = scheme = stage.norm
        n = norm_ops.count(y.shape, stage.geometry.dims)
        if n == 1:
            raise ValueError(f"batch statistics need more than 1 value per channel, input {tuple(y.shape)}")
        bits, self.saved_bits = scheme.format("normalized").bits, scheme.format("saved").bits
        widths = (scheme.format("input").bits, bits, self.saved_bits, scheme.format("weight").bits)
        self.q, total, factor, self.q_gamma, self.s_gamma, scale, self.saved_scale, self.mu, self.d, self.r = (
            chain_norm.chain_norm(
                y, numerics.clipped(r_k, scheme.clip), gamma, beta, scheme.granularity == "tensor", *widths, stage.eps
            )
        )
        beta = torch.zeros([1] * y.ndim, dtype=torch.float32, device=y.device) if beta is None else beta
        self.operands = (self.q, total, factor, n, bits, self.q_gamma, scale, beta, self.saved_bits)

    def kept(self, saved: Tensor) -> PackedQTensor:
        """xhat as it is saved."""
        return PackedQTensor(saved, self.q.shape, self.q.stride(), self.saved_scale, self.scheme.format("saved"))

    def to_floats(self, other: Tensor | None, relu: bool, half: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(z, its range, saved xhat, mask)."""
        return passes.norm_relu(*self.operands, other, relu, half)

    def to_codes(self, layer: LayerScheme, half: bool) -> tuple[QTensor, PackedQTensor, Tensor, Tensor]:
        """(codes of ReLU(y) as the next layer takes them, the same packed, saved xhat, mask)."""
        quantizer = layer.activation
        assert quantizer is not None
        if isinstance(quantizer, TokenShiftQuant):
            (whole, _, _), form = quantizer.ranges_of(self.r), (quantizer.bits, quantizer.signed, quantizer.top)
            codes, packed, places, saved, mask = passes.norm_relu_tokens(*self.operands, whole, *form, half)
            q = quantizer.of_codes(codes, whole)
            at_rest = PackedQTensor(
                packed, codes.shape, codes.stride(), q.scale, q.format, inside=q.inside, places=places
            )
            return q, at_rest, saved, mask
        (r, _, _), fmt = ranges_by_channel(quantizer, self.r), quantizer.format
        codes, packed, saved, mask = passes.norm_relu_codes(*self.operands, r, fmt.bits, fmt.signed, half)
        scale = numerics.step(r, fmt)
        return (
            QTensor(codes, scale, fmt),
            PackedQTensor(packed, codes.shape, codes.stride(), scale, fmt),
            saved,
            mask,
        )


class _NormGradient:
    """The norm of one stage, backward: g masked by ReLU and in codes, sums, constants, one pass to codes of dx."""

    def __init__(self, g: Tensor, k: PackedQTensor, mask: Tensor, gamma: tuple[Tensor, Tensor], d, stage, keep: bool):
        self.stage = stage
        scheme, xhat, (q_gamma, s_gamma) = stage.norm, (k.packed, k.format.bits), gamma
        form = (scheme.granularity == "tensor", scheme.format("gradient").bits, stage.norm_stream)
        self.g = _laid_out(g, k)
        self.half = is_half(self.g)
        forward = (*xhat, k.scale, q_gamma, s_gamma, d)
        if scheme.groups > 1:
            r_k, self.masked = passes.relu_grad(self.g, mask, True)
            quantizer = scheme.quantizer("gradient", None, "stochastic")
            q = quantizer.represent(self.masked, stage.norm_stream, _whole(r_k))
            q_g, found = q.codes, chain_norm.sums_of_gradient(dispatched, q.codes, q.scale, *forward, self.half)
        else:
            q_g, self.masked, *found = chain_norm.chain_norm_grad(self.g, mask, keep, *form, *forward)
        *constants, self.r, self.gamma, self.beta = found
        self.operands = (q_g, *xhat, q_gamma, *constants)

    def to_codes(self) -> QTensor:
        """dx by the product's quantizer of gradients."""
        quantizer, streams = self.stage.layer.gradient, self.stage.streams
        stream = streams[0] if quantizer.stochastic and streams is not None else None
        if isinstance(quantizer, TokenShiftQuant):
            r, shift, _ = quantizer.ranges_of(self.r)
            q_g, saved, bits, q_gamma, a, *rest = self.operands
            a = ops.shifted(a, shift)  # dx = a (...): what multiplies a channel multiplies its a, exactly
            form = (q_g, saved, bits, q_gamma, a, *rest, r, stream, quantizer.bits, quantizer.top, self.half)
            return quantizer.of_codes(passes.norm_grad_tokens(*form), r, shift)
        if quantizer.range_axis == SAMPLES:
            found = quantizer.ranges_of(passes.norm_grad_amax(*self.operands, self.half))
        else:
            found = ranges_by_channel(quantizer, self.r)
        (r, shift, max_shift), fmt = found, quantizer.format
        codes = passes.norm_grad_codes(*self.operands, r, shift, stream, fmt.bits, self.half)
        return QTensor(codes, numerics.step(r, fmt), fmt, shift, max_shift)


def _laid_out(g: Tensor, k: PackedQTensor) -> Tensor:
    """g as float32 or bfloat16 in the memory order that the mask and xhat were saved in."""
    dtype = float_dtype(is_half(g))
    if g.dtype == dtype and g.stride() == k.stride:
        return g
    out = torch.empty_strided(k.shape, k.stride, dtype=dtype, device=g.device)
    return out.copy_(g)
