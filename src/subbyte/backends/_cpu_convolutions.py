"""Convolutions on the C++ kernels (csrc/conv*): what they take, and how it is passed (as in _cpu_products)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ._cpu_call import FLOATS, call, floats, new
from ._cpu_chain import bits_of, has_bits
from ._cpu_products import address, along, bias_of, codes_ok, floats_ok, narrowed, sum_is
from ._native import INT, INT64, POINTER, function


def _like(a: Tensor, size: list[int], dtype: torch.dtype) -> tuple[Tensor, bool]:
    """(an output of this size in a's memory format, whether its channels lie together), as the op's fake makes it."""
    out = new(size, dtype)
    last = a.is_contiguous(memory_format=torch.channels_last) and not a.is_contiguous()
    if last and not out.is_contiguous(memory_format=torch.channels_last):
        out = new(size, dtype, memory_format=torch.channels_last)
    return out, last


def _places(image: Sequence[int], taps: Sequence[int], stride, padding, dilation) -> tuple[int, ...]:
    """How many places a window has along each axis of an image: the size of the output."""
    sizes = zip(image, taps, stride, padding, dilation, strict=True)
    return tuple((n + 2 * pad - step * (k - 1) - 1) // s + 1 for n, k, s, pad, step in sizes)


def _convolution(
    op, kernel, roles, left, right, length, sizes, size, scale, bias, window, half=False, ranges=None, last=False
) -> Tensor:
    """Call one of the three products. left, right: (codes, shift, bits, signed, max_shift), in the op's order.

    roles    which operands they are: of x, w and g
    length   of the reduction
    sizes    n, c, h, w, o, p, q, r, s
    size     of the output
    scale    None: the sums themselves, int32 or int64
    half     is the output bfloat16?
    ranges   float32, one for each channel of the output: takes the range of each as well
    last     a weight's gradient channels_last; the others lie as their left operand
    """
    (a, ea, *fa), (b, eb, *fb) = left, right
    if scale is not None and floats_ok(scale):
        ea, fa[2], scale = narrowed(ea, fa[2], scale)
        eb, fb[2], scale = narrowed(eb, fb[2], scale)
    stride, padding, dilation, groups = window
    n, c, h, w, o, p, q, r, s = sizes
    shapes = {"x": (n, c, h, w), "w": (o, c // groups, r, s), "g": (n, o, p, q)}
    if a.shape != shapes[roles[0]] or b.shape != shapes[roles[1]] or c % groups or o % groups:
        return NotImplemented
    width, axes = sum_is(tuple(fa), tuple(fb), length), _REDUCED[roles]
    if width == "too wide" or not codes_ok(a, b) or not floats_ok(scale):
        return NotImplemented
    dtype = FLOATS[half] if scale is not None else getattr(torch, width)
    if roles == "gx":
        last = last and not (groups > 1 and max(c, o) // groups <= 2)  # by planes, which know one format
        out = new(size, dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
    else:
        out, last = _like(a, size, dtype)
    most, scale_part = (*out.shape[:2], 1, 1), [0, 0, 0]
    if scale is not None:
        if scale.ndim != 4 or any(i not in (1, m) for i, m in zip(scale.shape, most, strict=True)):
            return NotImplemented
        steps = [0 if n == 1 else step for n, step in zip(scale.shape[:2], scale.stride()[:2], strict=True)]
        scale_part = [scale.data_ptr(), *steps]
    try:
        ea, eb = along(ea, axes[0], a.shape[axes[0]]), along(eb, axes[1], b.shape[axes[1]])
        bias = bias_of(bias, o)
    except ValueError:
        return NotImplemented
    fields = array(
        "q",
        [
            *(a.data_ptr(), *a.stride(), address(ea), *fa),
            *(b.data_ptr(), *b.stride(), address(eb), *fb),
            *(*scale_part, address(bias), out.data_ptr(), last, *sizes),
            *(*stride, *padding, *dilation, groups, width == "int64", half, address(ranges)),
        ],
    )
    return out if call(op, kernel, fields.tobytes()) else NotImplemented


_OPERANDS = 10
"""Arguments that describe the two operands of an op."""

_REDUCED = {"xw": (1, 1), "gw": (1, 0), "gx": (0, 0)}
"""The axis of each operand that a product reduces, besides pixels and taps: where a shift may lie."""

_output_kernel = function("sb_conv2d", POINTER, INT)
_grad_input_kernel = function("sb_conv2d_grad_input", POINTER, INT)
_grad_weight_kernel = function("sb_conv2d_grad_weight", POINTER, INT)
_plus = function("sb_relu_grad_add", POINTER, POINTER, INT, POINTER, INT64, INT)


def scaled_conv2d(*args) -> Tensor:
    return _conv2d("scaled_conv2d", None, *args)


def scaled_conv2d_amax(*args) -> tuple[Tensor, Tensor]:
    ranges = new((1, args[5].shape[0], 1, 1))
    y = _conv2d("scaled_conv2d_amax", ranges, *args)
    return NotImplemented if y is NotImplemented else (y, ranges)


def scaled_conv2d_grad_input(*args) -> Tensor:
    return _grad_input("scaled_conv2d_grad_input", *args)


def scaled_conv2d_grad_input_plus(*args) -> Tensor:
    *product, g, mask = args
    if g.dtype not in FLOATS or not g.is_cpu or not has_bits(mask, g, 1, or_none=True):
        return NotImplemented
    dx = _grad_input("scaled_conv2d_grad_input_plus", *product, g.dtype is torch.bfloat16)
    if dx is NotImplemented or g.shape != dx.shape or g.stride() != dx.stride():
        return NotImplemented
    _plus(dx.data_ptr(), *floats(g), bits_of(mask), dx.numel(), torch.get_num_threads())
    return dx


def _conv2d(op, ranges, *args):
    x, weight, (scale, bias, *window), half = args[:5], args[5:10], args[10:16], args[16:] == (True,)
    a, b = x[0], weight[0]
    if a.ndim != 4:  # three spatial dimensions
        return NotImplemented
    (n, c, h, w), (o, inner, r, s) = a.shape, b.shape
    p, q = _places((h, w), (r, s), *window[:3])
    sizes, size = (n, c, h, w, o, p, q, r, s), [n, o, p, q]
    length = inner * r * s
    return _convolution(op, _output_kernel, "xw", x, weight, length, sizes, size, scale, bias, window, half, ranges)


def _grad_input(op, *args):
    g, weight, (scale, size, *window), half = args[:5], args[5:10], args[10:16], args[16:] == (True,)
    a, b = g[0], weight[0]
    if a.ndim != 4:  # three spatial dimensions
        return NotImplemented
    (n, c, h, w), (o, _, r, s), (p, q) = size, b.shape, a.shape[2:]
    if (p, q) != _places((h, w), (r, s), *window[:3]):
        return NotImplemented
    sizes = (n, c, h, w, o, p, q, r, s)
    length = o // window[3] * r * s
    return _convolution(op, _grad_input_kernel, "gw", g, weight, length, sizes, size, scale, None, window, half)


def scaled_conv2d_grad_weight(*args) -> Tensor:
    return _grad_weight("scaled_conv2d_grad_weight", *args)


def int_conv2d(*args) -> Tensor:
    return _conv2d("int_conv2d", None, *(*args[:_OPERANDS], None, None, *args[_OPERANDS:]))


def int_conv2d_grad_input(*args) -> Tensor:
    return _grad_input("int_conv2d_grad_input", *(*args[:_OPERANDS], None, *args[_OPERANDS:]))


def int_conv2d_grad_weight(*args) -> Tensor:
    return _grad_weight("int_conv2d_grad_weight", *(*args[:_OPERANDS], None, *args[_OPERANDS:]))


def _grad_weight(
    op, a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, scale, size, stride, padding, dilation, groups, last=False
):
    if a.ndim != 4:  # three spatial dimensions
        return NotImplemented
    (n, c, h, w), (o, inner, r, s), (p, q) = b.shape, size, a.shape[2:]
    if (p, q) != _places((h, w), (r, s), stride, padding, dilation) or inner * groups != c:
        return NotImplemented
    g, x = (a, a_sh, a_b, a_s, a_e), (b, b_sh, b_b, b_s, b_e)
    sizes, window = (n, c, h, w, o, p, q, r, s), (stride, padding, dilation, groups)
    out = _convolution(op, _grad_weight_kernel, "gx", g, x, n * p * q, sizes, size, scale, None, window, last=last)
    return out.contiguous(memory_format=torch.channels_last) if last and out is not NotImplemented else out


OPS = (
    *(scaled_conv2d, scaled_conv2d_amax, scaled_conv2d_grad_input, scaled_conv2d_grad_input_plus),
    *(scaled_conv2d_grad_weight, int_conv2d, int_conv2d_grad_input, int_conv2d_grad_weight),
)
