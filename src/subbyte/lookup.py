"""Embedding and EmbeddingBag on codes: rows of weight codes looked up (and summed), gradient codes scattered back.

    y[t] = w[index[t]]                                    EmbeddingBag: y[b] = sum (mean, max) of w[index[t]] over bag b
    dw[i] = sum of g[t] over the t with index[t] = i      one scale for the gradient, so a sum of integers

T tokens, V rows of the weight, D features, B bags. A scale for each token or row would differ inside a sum: that sum is
then one of dequantized values, recorded as emulated. Nothing here multiplies: no multiply-accumulate is to be counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .autograd import Operand, Restorer, Saver, gradient_samples, kind, mean, quantized
from .observe import LayerRecord
from .ops.lookup import scatter_sum
from .qtensor import Emulated, QTensor
from .scheme import LayerScheme


class QuantizedLookup(torch.autograd.Function):
    """w (V, D), index int64 (T) -> (T, D) in w's dtype.

    padding    the row that gets no gradient, or -1
    by_count   divide the gradient of a row by how often the row was looked up
    """

    @staticmethod
    def forward(ctx: Any, w, index, padding: int, by_count: bool, scheme: LayerScheme, streams, record: LayerRecord):
        with ops.recording(record.kernels):
            qw = quantized("weight", w, scheme.weight, streams, 2, record)
            ops.note("output", kind(qw))
            saver = Saver()
            ctx.index, ctx.streams = saver.keep(index), saver.keep(streams)
            ctx.save_for_backward(*saver.tensors)
        ctx.padding, ctx.by_count, ctx.scheme, ctx.record, ctx.like = (
            padding,
            by_count,
            scheme,
            record,
            (w.shape, w.dtype),
        )
        return _rows(qw, index).to(w.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor):
        restore = Restorer(ctx.saved_tensors)
        index, streams, (shape, dtype) = restore(ctx.index), restore(ctx.streams), ctx.like
        with ops.recording(ctx.record.kernels):
            samples = gradient_samples("gradient", g, ctx.scheme, streams, ctx.record)
            target = torch.where(index == ctx.padding, -1, index).unsqueeze(1)
            count = _counts(index, shape[0]) if ctx.by_count else None
            dw = mean([scattered("grad_weight", q, target, shape[0], count) for q in samples])
        return dw.to(dtype), None, None, None, None, None, None


class QuantizedBag(torch.autograd.Function):
    """w (V, D), index int64 (T), bag int64 (T), the bag of each token or -1 for none -> (bags, D) in w's dtype.

    mode "sum", "mean" or "max"; an empty bag gives zeros. What is quantized as a mean's gradient is g / size.
    """

    @staticmethod
    def forward(ctx: Any, w, index, bag, bags: int, mode: str, by_count: bool, scheme: LayerScheme, streams, record):
        with ops.recording(record.kernels):
            qw = quantized("weight", w, scheme.weight, streams, 2, record)
            size = _counts(torch.where(bag < 0, bags, bag), bags + 1)[:bags].clamp(min=1) if mode == "mean" else None
            saver = Saver()
            if mode == "max":
                y, source = _largest(qw, index, bag, bags)
                ctx.source = saver.keep(source)
            else:
                y = scattered("output", _taken(qw, index), bag.unsqueeze(1), bags, size)
            ctx.index, ctx.bag, ctx.size = saver.keep(index), saver.keep(bag), saver.keep(size)
            ctx.streams = saver.keep(streams)
            ctx.save_for_backward(*saver.tensors)
        ctx.mode, ctx.by_count, ctx.scheme, ctx.record, ctx.like = mode, by_count, scheme, record, (w.shape, w.dtype)
        return y.to(w.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor):
        restore = Restorer(ctx.saved_tensors)
        index, bag, size, streams = restore(ctx.index), restore(ctx.bag), restore(ctx.size), restore(ctx.streams)
        shape, dtype = ctx.like
        with ops.recording(ctx.record.kernels):
            g = g if size is None else g / size.unsqueeze(1)
            samples = gradient_samples("gradient", g, ctx.scheme, streams, ctx.record)
            count = _counts(index, shape[0]) if ctx.by_count else None
            if ctx.mode == "max":
                target = restore(ctx.source)
            else:
                samples = [_taken(q, bag.clamp(min=0)) for q in samples]
                target = torch.where(bag < 0, -1, index).unsqueeze(1)
            dw = mean([scattered("grad_weight", q, target, shape[0], count) for q in samples])
        return dw.to(dtype), None, None, None, None, None, None, None, None


def scattered(name: str, q: Operand, target: Tensor, rows: int, count: Tensor | None) -> Tensor:
    """(rows, D): the sum of q's rows by target, over count where there is one. Integer sums where the scale is one."""
    if isinstance(q, QTensor):
        q = q.fold_shift(0)
        if not any(q.varies_along(0)):
            ops.note(name, "integer")
            scale = q.scale if count is None else q.scale / count.clamp(min=1).unsqueeze(1)
            return scatter_sum(q.codes, target, rows).to(torch.float32) * scale
    ops.note(name, "float" if isinstance(q, Tensor) else "emulated")
    values = q.to(torch.promote_types(q.dtype, torch.float32)) if isinstance(q, Tensor) else q.dequantize(torch.float64)
    acc = values.new_zeros((rows + 1, values.shape[1]))
    acc.scatter_add_(0, torch.where(target < 0, rows, target).expand_as(values), values)
    acc = acc[:rows] if count is None else acc[:rows] / count.clamp(min=1).unsqueeze(1)
    return acc if isinstance(q, Tensor) else acc.float()


def _taken(q: Operand, index: Tensor) -> Operand:
    """The rows `index` of q, as codes where q has codes."""
    if isinstance(q, Tensor):
        return q.index_select(0, index)
    if isinstance(q, Emulated):
        return Emulated(q.values.index_select(0, index), q.format)
    scale = q.scale if q.scale.shape[0] == 1 else q.scale.index_select(0, index)
    shift = q.shift if q.shift is None or q.shift.shape[0] == 1 else q.shift.index_select(0, index)
    return QTensor(q.codes.index_select(0, index), scale, q.format, shift, q.max_shift)


def _rows(q: Operand, index: Tensor) -> Tensor:
    taken = _taken(q, index)
    return taken if isinstance(taken, Tensor) else taken.dequantize()


def _largest(qw: Operand, index: Tensor, bag: Tensor, bags: int) -> tuple[Tensor, Tensor]:
    """(the maximum of each bag and feature, the row of w that it comes from or -1), the first token where several tie.

    Codes are compared where one scale covers every row, values where it does not.
    """
    taken = _taken(qw, index)
    exact = isinstance(taken, QTensor) and not any(taken.varies_along(0))
    ops.note("output", "integer" if exact else "float" if isinstance(taken, Tensor) else "emulated")
    real = taken if isinstance(taken, Tensor) else taken.dequantize()
    values = taken.codes.to(torch.int32) if isinstance(taken, QTensor) and exact else real
    tokens, features = values.shape
    where = torch.where(bag < 0, bags, bag).unsqueeze(1).expand(tokens, features)
    top = values.new_zeros((bags + 1, features)).scatter_reduce(0, where, values, "amax", include_self=False)
    position = torch.arange(tokens, device=index.device).unsqueeze(1).expand(tokens, features)
    candidates = torch.where(values == top.gather(0, where), position, tokens)
    first = torch.full((bags + 1, features), tokens, device=index.device)
    first = first.scatter_reduce(0, where, candidates, "amin")[:bags]
    none = first == tokens
    safe = first.clamp(max=max(tokens - 1, 0))
    if tokens == 0:
        return real.new_zeros((bags, features)), torch.full_like(first, -1)
    y = torch.where(none, torch.zeros((), dtype=real.dtype, device=real.device), real.gather(0, safe))
    return y, torch.where(none, -1, index[safe])


def _counts(index: Tensor, rows: int) -> Tensor:
    return torch.bincount(index, minlength=rows)
