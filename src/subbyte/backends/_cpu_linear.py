"""A whole linear layer, forward and backward, in one call each on the C++ kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..numerics import IntFormat, packed_bytes, place_bits
from ._cpu_call import CPU, FLOATS, call, dense_floats, floats, new
from ._cpu_products import GEMM_CALL, NO_LEADING, address, sum_is
from ._native import FLOAT, INT, INT64, POINTER, function

_QUANTIZED = (POINTER, INT, INT64, FLOAT, INT, INT, INT)  # values, half, how many, clip, bits, qmin, qmax
_forward = function("sb_linear_forward", *_QUANTIZED, INT, *_QUANTIZED, INT64, INT, INT64, *(POINTER,) * 7, INT)
_GRADIENT = (POINTER, INT, INT64, INT64, INT, INT, INT, INT, FLOAT, POINTER, INT)  # g, its sizes, how it is quantized
_INSIDE = (POINTER, POINTER, INT, INT, INT)  # packed, places, bits, sign, the largest exponent
_backward = function("sb_linear_backward", *_GRADIENT, INT64, *_INSIDE * 2, INT64, POINTER, INT, POINTER, POINTER, INT)

_Form = tuple[int, bool, int]
"""Of codes: bits, signed, max_shift."""


def linear_forward(
    x, w, bias, x_top, x_clip: float, x_bits, x_signed, w_top, w_block, w_clip: float, w_bits, w_signed, half=False
):
    dense_x, dense_w = _row_major(x), _row_major(w)
    if dense_x is None or dense_w is None or x.shape[1] != w.shape[1] or not _numbers(bias, len(w)):
        return NotImplemented
    if w_block and w.numel() % w_block:
        return NotImplemented
    (rows, inputs), outputs = x.shape, len(w)
    bias = None if bias is None else bias.to(torch.float32).contiguous()
    y, sx, sw = new((rows, outputs), FLOATS[half]), new((1, 1)), new((1, 1))
    px, pw = (new(packed_bytes(t.numel(), b), torch.uint8) for t, b in ((x, x_bits), (w, w_bits)))
    places = new(packed_bytes(rows, place_bits(x_top)) if x_top else 0, torch.uint8)
    exponents, w_wide = new((outputs, 1), torch.uint8), w_bits
    if w_block:
        exponents = new(packed_bytes(w.numel() // w_block, place_bits(w_top)), torch.uint8)
        w_wide += w_top
    left, right = (0, inputs, 1, (x_bits + x_top, x_signed, 0)), (0, inputs, 1, (w_wide, w_signed, 0))
    product = _product(left, right, False, (rows, outputs, inputs), y, (0, 0, bias), 1)
    if product is None:
        return NotImplemented
    found = []
    for t, clip, bits, signed in ((dense_x, x_clip, x_bits, x_signed), (dense_w, w_clip, w_bits, w_signed)):
        fmt = IntFormat(bits, signed)
        found += [*floats(t), t.numel(), clip, bits, fmt.qmin, fmt.qmax]
    out = (px, sx, places, pw, sw, exponents)
    found.insert(len(found) // 2, x_top)
    done = call("linear_forward", _forward, *found, outputs, w_top, w_block, product, *(t.data_ptr() for t in out))
    return (y, *out) if done else NotImplemented


def linear_backward(
    g,
    stream,
    tokens: bool,
    top,
    channel_top,
    apart,
    clip,
    bits,
    inputs,
    sums: bool,
    x,
    x_scale,
    x_bits,
    x_signed,
    x_places,
    x_top,
    w,
    w_scale,
    w_bits,
    w_signed: bool,
    w_e,
    w_top,
    w_block,
    half=False,
):
    dense_g = _row_major(g)
    if dense_g is None or not _bytes(x, x_bits, inputs * len(g)) or not _bytes(w, w_bits, inputs * g.shape[1]):
        return NotImplemented
    if w_e is not None and not w_block and w_e.shape != (g.shape[1], 1):
        return NotImplemented
    blocks, ragged = divmod(inputs * g.shape[1], w_block) if w_block else (0, 0)
    if ragged or (w_block and not _bytes(w_e, place_bits(w_top), blocks)):
        return NotImplemented
    if x_places is not None and not _bytes(x_places, place_bits(x_top), len(g)):
        return NotImplemented
    if any(t is not None and (not t.is_cpu or t.shape != (1, 1)) for t in (x_scale, w_scale)):
        return NotImplemented
    (rows, outputs), of_g = g.shape, (bits + top if tokens else bits, True, 0)
    grads = [new(0, FLOATS[half]), new(0), new(outputs if sums else 0)]
    products: list[Any] = [None, None, None]
    if w is not None:
        grads[0], form = new((rows, inputs), FLOATS[half]), (*of_g[:2], channel_top) if tokens else (bits, True, top)
        exponents = None if w_e is None or w_block else w_e.contiguous()
        w_form = (w_bits + w_top, w_signed, 0) if w_block else (w_bits, w_signed, w_top)
        right = (w.data_ptr(), 1, inputs, w_form)
        scales = (0, w_scale.data_ptr(), None)
        left, size = (0, outputs, 1, form), (rows, inputs, outputs)
        products[0] = _product(left, right, w_bits < 8 and not w_block, size, grads[0], scales, 0, exponents)
    if x is not None:
        grads[1] = new((outputs, inputs))
        right = (x.data_ptr(), 1, inputs, (x_bits + x_top, x_signed, 0))
        scales, packed = (1, x_scale.data_ptr(), None), x_places is None and x_bits < 8
        products[1] = _product((0, 1, outputs, of_g), right, packed, (outputs, inputs, rows), grads[1], scales)
    if sums:
        ones = torch.ones(rows, dtype=torch.int8, device=CPU)
        left, right = (ones.data_ptr(), rows, 1, (2, True, 0)), (0, 1, outputs, of_g)
        products[2] = _product(left, right, False, (1, outputs, rows), grads[2], (0, 0, None), 1)
    if any(p is None and len(t) for p, t in zip(products, grads, strict=True)):
        return NotImplemented
    address = None if stream is None else stream.data_ptr()
    of_x = (None, None) if x is None or x_places is None else (x.data_ptr(), x_places.data_ptr())
    of_w = (w.data_ptr(), w_e.data_ptr()) if w_block else (None, None)
    arguments = (*floats(dense_g), rows, outputs, tokens, top, channel_top, apart, clip, address, bits, inputs)
    forms = (*of_x, x_bits, x_signed, x_top, *of_w, w_bits, w_signed, w_top, w_block)
    narrow = sum_is(of_g, (w_bits + w_top, w_signed, 0) if w_block else (w_bits, w_signed, w_top), outputs) == "int32"
    done = call("linear_backward", _backward, *arguments, *forms, products[0], not narrow, *products[1:])
    return tuple(grads) if done else NotImplemented


def _product(
    left,
    right,
    packed: bool,
    size: tuple[int, int, int],
    out: Tensor,
    scales,
    column_step: int = 0,
    exponents: Tensor | None = None,
) -> Any:
    """What sb_gemm takes; None where the sums are too wide.

    left, right  (address, step from row to row of A or from column to column of B, step along the sum, form)
    size         M, N, K
    scales       (step of A's scale, address of B's, bias); column_step: of B's
    exponents    of B along the sum
    """
    (a, a_outer, a_inner, a_form), (b, b_outer, b_inner, b_form) = left, right
    width = sum_is(a_form, b_form, size[2])
    if width == "too wide":
        return None
    row_step, scale, bias = scales
    return GEMM_CALL.pack(
        *(a, a_outer, a_inner, 0, *a_form, b, b_outer, b_inner, address(exponents), *b_form),
        *(packed, *size, width == "int64", out.data_ptr(), True, out.dtype is torch.bfloat16),
        *(0, row_step, scale, column_step, 0 if bias is None else bias.data_ptr(), *NO_LEADING),
    )


def _row_major(t: Tensor) -> Tensor | None:
    """As floats that the kernels take; None where it is no matrix with elements, one row behind the other."""
    return dense_floats(t) if t.ndim == 2 and t.numel() and t.is_contiguous() else None


def _bytes(packed: Tensor | None, bits: int, numel: int) -> bool:
    return packed is None or (packed.is_cpu and packed.is_contiguous() and packed.numel() == packed_bytes(numel, bits))


def _numbers(bias: Tensor | None, outputs: int) -> bool:
    return bias is None or (bias.is_cpu and bias.shape == (outputs,))


OPS = (linear_forward, linear_backward)
