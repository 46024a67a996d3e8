"""Matrix products and convolutions on the C++ kernels (csrc/gemm*, csrc/conv*): what they take, and how it is passed.

A call is one array of 64-bit integers (an address is one too), in the order of the C++ struct that its kernel reads.
Sums beyond int32 are added in int64 there; only what the references refuse as well (OverflowError) is not covered.
"""

from __future__ import annotations

import functools
import math
import struct
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics import IntFormat, accumulator_bits, packed_bytes, product_bound
from ._cpu_call import CPU, call, new
from ._cpu_chain import bits_of, has_bits
from ._native import INT, INT64, POINTER, function

MAX_LEADING = 8
"""Leading dimensions of a batched product (GemmCall in csrc/gemm_call.h)."""

_NO_SCALES = (0,) * 5
_NO_LEADING = (0,) * (1 + 5 * MAX_LEADING)
_GEMM_CALL = struct.Struct(f"{2 * 7 + 7 + len(_NO_SCALES) + len(_NO_LEADING)}q")

_gemm = function("sb_gemm", POINTER, INT)


def _codes_ok(*tensors: Tensor) -> bool:
    return all(t.is_cpu and t.dtype in (torch.int8, torch.uint8) for t in tensors)


def _floats_ok(*tensors: Tensor | None) -> bool:
    return all(t is None or (t.is_cpu and t.dtype == torch.float32) for t in tensors)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _bias(bias: Tensor | None, length: int) -> Tensor | None:
    """A bias of `length` as dense float32. ValueError for another length or device."""
    if bias is None:
        return None
    if bias.shape != (length,) or not bias.is_cpu:
        raise ValueError
    return bias.to(torch.float32).contiguous()


def _along(shift: Tensor | None, axis: int, length: int) -> Tensor | None:
    """The exponents along `axis`, one for each index, dense. ValueError where they differ along another axis."""
    if shift is None:
        return None
    count = shift.numel()
    if count != shift.shape[axis] or shift.dtype != torch.uint8 or not shift.is_cpu:
        raise ValueError
    if count == length and shift.is_contiguous():
        return shift
    return shift.reshape(-1).expand(length).contiguous()


@functools.lru_cache(maxsize=1024)
def _sum_is(left: tuple[int, bool, int], right: tuple[int, bool, int], length: int) -> str:
    """int32, int64, or "too wide" for what the references refuse. left, right: (bits, signed, max_shift)."""
    (a_bits, a_signed, a_max), (b_bits, b_signed, b_max) = left, right
    a, b, shift = IntFormat(a_bits, a_signed), IntFormat(b_bits, b_signed), a_max + b_max
    if accumulator_bits(a, b, length, shift) <= 32:
        return "int32"
    refused = (
        product_bound(a.qmax, b.qmax, 1, shift) > 1 << 53 or product_bound(a.qmax, b.qmax, length, shift) >= 1 << 63
    )
    return "too wide" if refused else "int64"


@functools.lru_cache(maxsize=1024)
def _matrices(a: tuple[int, ...], b: tuple[int, ...], left: tuple[int, bool, int], right: tuple[int, bool, int]):
    """(leading dimensions, m, k, n, dtype of the sums) of a product of these shapes and formats; None: not covered."""
    (*lead, m, k), (*lead_b, inner, n) = a, b
    if len(lead) > MAX_LEADING or k != inner or lead != lead_b:
        return None
    width = _sum_is(left, right, k)
    return None if width == "too wide" else (tuple(lead), m, k, n, getattr(torch, width))


def _steps(scale: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a scale as it broadcasts to `shape`."""
    if scale.numel() == 1 and scale.ndim == len(shape):  # expand takes as long as a small product
        return (0,) * len(shape)
    return scale.expand(shape).stride()


def _narrowed(shift: Tensor | None, top: int, *scales: Tensor) -> tuple[Tensor | None, int, Tensor]:
    """(shift, top, the first scale): the same product with the largest exponent that is there for top.

    Its sums have fewer bits, and none of them are exponents where all are 0. What 2^top loses the scale gains, unless
    it or the product of the scales would be rounded.
    """
    first = scales[0]
    largest = top if shift is None or not top or not shift.numel() else int(shift.max())
    if largest >= top or not all(s.numel() for s in scales):
        return shift, top, first
    least, most = (math.prod(s.aminmax()[i].item() for s in scales) for i in (0, 1))
    if not (least >= torch.finfo(torch.float32).tiny and max(most, first.max().item()) < 2.0 ** (127 - top)):
        return shift, top, first
    return shift if largest else None, largest, first * 2.0 ** (top - largest)


def _product(op: str, a, ea, a_bits, a_signed, a_max, right: tuple, scales, bias) -> Tensor:
    """int_matmul where scales is None, else scaled_matmul.

    right   b as (codes, shape, strides, shift, bits, signed, max_shift, are the codes packed?)
    """
    codes, size, strides, eb, b_bits, b_signed, b_max, packed = right
    if scales and _floats_ok(*scales):
        sa, sb = scales
        ea, a_max, sa = _narrowed(ea, a_max, sa, sb)
        eb, b_max, sa = _narrowed(eb, b_max, sa, sb)
        scales = sa, sb
    found = _matrices(a.shape, tuple(size), (a_bits, a_signed, a_max), (b_bits, b_signed, b_max))
    if found is None or not _codes_ok(a, codes) or not (scales is None or _floats_ok(*scales)):
        return NotImplemented
    lead, m, k, n, sums = found
    try:
        ea, eb, bias = _along(ea, -1, k), _along(eb, -2, k), _bias(bias, n)
    except ValueError:
        return NotImplemented
    out = new((*lead, m, n), torch.float32 if scales else sums)
    (*steps_a, a_row, a_column), (*steps_b, b_row, b_column) = a.stride(), strides
    if scales:
        sa, sb = scales
        (*steps_sa, a_step, _), (*steps_sb, _, b_step) = _steps(sa, (*lead, m, 1)), _steps(sb, (*lead, 1, n))
        scale_part = (sa.data_ptr(), a_step, sb.data_ptr(), b_step, _address(bias))
    else:
        steps_sa, steps_sb, scale_part = lead, lead, _NO_SCALES
    leading = _NO_LEADING
    if lead:
        steps = (step for dimension in zip(steps_a, steps_b, steps_sa, steps_sb) for step in dimension)
        rest = MAX_LEADING - len(lead)
        leading = (len(lead), *lead, *[0] * rest, *steps, *[0] * (4 * rest))
    fields = _GEMM_CALL.pack(
        *(a.data_ptr(), a_row, a_column, _address(ea), a_bits, a_signed, a_max),
        *(codes.data_ptr(), b_column, b_row, _address(eb), b_bits, b_signed, b_max),
        *(packed, m, n, k, sums is torch.int64, out.data_ptr(), scales is not None, *scale_part, *leading),
    )
    return out if call(op, _gemm, fields) else NotImplemented


def int_matmul(a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift) -> Tensor:
    right = (b, b.shape, b.stride(), b_shift, b_bits, b_signed, b_max_shift, False)
    return _product("int_matmul", a, a_shift, a_bits, a_signed, a_max_shift, right, None, None)


def scaled_matmul(
    a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift, a_scale, b_scale, bias
) -> Tensor:
    right = (b, b.shape, b.stride(), b_shift, b_bits, b_signed, b_max_shift, False)
    return _product("scaled_matmul", a, a_shift, a_bits, a_signed, a_max_shift, right, (a_scale, b_scale), bias)


def scaled_matmul_packed(a, a_shift, a_bits, a_signed, a_max_shift, packed, size, stride, *rest) -> Tensor:
    *right, a_scale, b_scale, bias = rest
    bits = right[1]
    if packed.numel() != packed_bytes(math.prod(size), bits) or not packed.is_contiguous() or 1 not in stride[-2:]:
        return NotImplemented
    left = (a, a_shift, a_bits, a_signed, a_max_shift)
    # Codes of 8 bits are bytes as they are.
    found = (packed, size, stride, *right, bits < 8)
    return _product("scaled_matmul_packed", *left, found, (a_scale, b_scale), bias)


def channel_sums(codes: Tensor, bits: int, signed: bool) -> Tensor:
    if not _codes_ok(codes) or codes.ndim < 2:
        return NotImplemented
    fmt, rows = (None, bits, signed, 0), codes.movedim(1, -1)
    if rows.is_contiguous():  # channels lie together: ones times pixels of channels
        pixels = rows.view(math.prod(rows.shape[:-1]), rows.shape[-1])
        right = (pixels, pixels.shape, pixels.stride(), *fmt, False)
        ones = torch.ones(1, len(pixels), dtype=torch.int8, device=CPU)
        sums = _product("channel_sums", ones, None, 2, True, 0, right, None, None)
    else:  # planes of each image times ones
        planes = codes.reshape(*codes.shape[:2], math.prod(codes.shape[2:]))
        ones = torch.ones(1, planes.shape[2], 1, dtype=torch.int8, device=CPU).expand(len(planes), -1, 1)
        right = (ones, ones.shape, ones.stride(), None, 2, True, 0, False)
        sums = _product("channel_sums", planes, *fmt, right, None, None)
    return sums if sums is NotImplemented else sums.flatten(1).sum(0, dtype=torch.int64)


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
    op, kernel, roles: str, left: tuple, right: tuple, length, sizes, size, scale, bias, window, ranges=None, last=False
) -> Tensor:
    """Call one of the three products. left, right: (codes, shift, bits, signed, max_shift), in the op's order.

    roles    which operands they are: of x, w and g
    length   of the reduction
    sizes    n, c, h, w, o, p, q, r, s
    size     of the output
    scale    None: the sums themselves, int32 or int64
    ranges   float32, one for each channel of the output: takes the range of each as well
    last     a weight's gradient channels_last; the others lie as their left operand
    """
    (a, ea, *fa), (b, eb, *fb) = left, right
    if scale is not None and _floats_ok(scale):
        ea, fa[2], scale = _narrowed(ea, fa[2], scale)
        eb, fb[2], scale = _narrowed(eb, fb[2], scale)
    stride, padding, dilation, groups = window
    n, c, h, w, o, p, q, r, s = sizes
    shapes = {"x": (n, c, h, w), "w": (o, c // groups, r, s), "g": (n, o, p, q)}
    if a.shape != shapes[roles[0]] or b.shape != shapes[roles[1]] or c % groups or o % groups:
        return NotImplemented
    width, axes = _sum_is(tuple(fa), tuple(fb), length), _REDUCED[roles]
    if width == "too wide" or not _codes_ok(a, b) or not _floats_ok(scale):
        return NotImplemented
    dtype = torch.float32 if scale is not None else getattr(torch, width)
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
        ea, eb = _along(ea, axes[0], a.shape[axes[0]]), _along(eb, axes[1], b.shape[axes[1]])
        bias = _bias(bias, o)
    except ValueError:
        return NotImplemented
    fields = array(
        "q",
        [
            *(a.data_ptr(), *a.stride(), _address(ea), *fa),
            *(b.data_ptr(), *b.stride(), _address(eb), *fb),
            *(*scale_part, _address(bias), out.data_ptr(), last, *sizes),
            *(*stride, *padding, *dilation, groups, width == "int64", _address(ranges)),
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
_plus = function("sb_relu_grad_add", *(POINTER,) * 3, INT64, INT)


def scaled_conv2d(*args) -> Tensor:
    return _conv2d("scaled_conv2d", None, *args)


def scaled_conv2d_amax(*args) -> tuple[Tensor, Tensor]:
    return _with_range(_conv2d, "scaled_conv2d_amax", args[5].shape[0], args)


def scaled_conv2d_grad_input(*args) -> Tensor:
    return _grad_input("scaled_conv2d_grad_input", None, *args)


def scaled_conv2d_grad_input_amax(*args) -> tuple[Tensor, Tensor]:
    return _with_range(_grad_input, "scaled_conv2d_grad_input_amax", args[11][1], args)


def scaled_conv2d_grad_input_plus(*args) -> Tensor:
    *product, g, mask = args
    if g.dtype != torch.float32 or not g.is_cpu or not has_bits(mask, g, 1, or_none=True):
        return NotImplemented
    dx = _grad_input("scaled_conv2d_grad_input_plus", None, *product)
    if dx is NotImplemented or g.shape != dx.shape or g.stride() != dx.stride():
        return NotImplemented
    _plus(dx.data_ptr(), g.data_ptr(), bits_of(mask), dx.numel(), torch.get_num_threads())
    return dx


def _with_range(product, op: str, channels: int, args: tuple) -> tuple[Tensor, Tensor]:
    ranges = new((1, channels, 1, 1))
    out = product(op, ranges, *args)
    return NotImplemented if out is NotImplemented else (out, ranges)


def _conv2d(op, ranges, a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, scale, bias, stride, padding, dilation, groups):
    if a.ndim != 4:  # three spatial dimensions
        return NotImplemented
    (n, c, h, w), (o, inner, r, s) = a.shape, b.shape
    p, q = _places((h, w), (r, s), stride, padding, dilation)
    x, weight = (a, a_sh, a_b, a_s, a_e), (b, b_sh, b_b, b_s, b_e)
    sizes, window = (n, c, h, w, o, p, q, r, s), (stride, padding, dilation, groups)
    length = inner * r * s
    return _convolution(op, _output_kernel, "xw", x, weight, length, sizes, [n, o, p, q], scale, bias, window, ranges)


def _grad_input(
    op, ranges, a, a_sh, a_b, a_s, a_e, b, b_sh, b_b, b_s, b_e, scale, size, stride, padding, dilation, groups
):
    if a.ndim != 4:  # three spatial dimensions
        return NotImplemented
    (n, c, h, w), (o, _, r, s), (p, q) = size, b.shape, a.shape[2:]
    if (p, q) != _places((h, w), (r, s), stride, padding, dilation):
        return NotImplemented
    g, weight = (a, a_sh, a_b, a_s, a_e), (b, b_sh, b_b, b_s, b_e)
    sizes, window = (n, c, h, w, o, p, q, r, s), (stride, padding, dilation, groups)
    length = o // groups * r * s
    return _convolution(op, _grad_input_kernel, "gw", g, weight, length, sizes, size, scale, None, window, ranges)


def scaled_conv2d_grad_weight(*args) -> Tensor:
    return _grad_weight("scaled_conv2d_grad_weight", *args)


def int_conv2d(*args) -> Tensor:
    return _conv2d("int_conv2d", None, *(*args[:_OPERANDS], None, None, *args[_OPERANDS:]))


def int_conv2d_grad_input(*args) -> Tensor:
    return _grad_input("int_conv2d_grad_input", None, *(*args[:_OPERANDS], None, *args[_OPERANDS:]))


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
    out = _convolution(op, _grad_weight_kernel, "gx", g, x, n * p * q, sizes, size, scale, None, window, None, last)
    return out.contiguous(memory_format=torch.channels_last) if last and out is not NotImplemented else out


OPS = (
    *(int_matmul, scaled_matmul, scaled_matmul_packed, channel_sums),
    *(scaled_conv2d, scaled_conv2d_amax, scaled_conv2d_grad_input, scaled_conv2d_grad_input_amax),
    scaled_conv2d_grad_input_plus,
    *(scaled_conv2d_grad_weight, int_conv2d, int_conv2d_grad_input, int_conv2d_grad_weight),
)
