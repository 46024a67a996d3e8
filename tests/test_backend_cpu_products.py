"""The C++ products equal the references bit for bit: each ISA forced in turn, and the record shows that it ran.

Shapes are chosen by reason: 0 and 1, one more and one less than a tile, a word and a vector; operands are filled with
extremes, since random codes never find an overflow, nor a saturating pair of products.
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from kernel_table import kernel_for
from subbyte import ops
from subbyte.backends import _native, cpu
from subbyte.numerics import IntFormat

pytestmark = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available())

FILLS = ("random", "top", "bottom", "alternating")
CONV_OPS = ("scaled_conv2d", "scaled_conv2d_grad_input", "scaled_conv2d_grad_weight")


@pytest.fixture(params=_native.isas(), autouse=True)
def isa(request):
    torch.manual_seed(0)
    with _native.forced_isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def codes(shape, fmt: IntFormat, fill: str = "random") -> Tensor:
    if fill == "random":
        return torch.randint(fmt.qmin, fmt.qmax + 1, shape).to(fmt.dtype)
    if fill == "alternating":
        n = torch.Size(shape).numel()
        return torch.where(torch.arange(n) % 2 == 0, fmt.qmax, fmt.qmin).view(shape).to(fmt.dtype)
    return torch.full(shape, fmt.qmax if fill == "top" else fmt.qmin, dtype=fmt.dtype)


def operand(q: Tensor, fmt: IntFormat, shift: Tensor | None = None, max_shift: int = 0) -> tuple:
    return q, shift, fmt.bits, fmt.signed, max_shift if shift is not None else 0


def exponents(n: int, most: int, shape) -> Tensor:
    """All of 0..most, in no order."""
    return (torch.randperm(n) % (most + 1)).to(torch.uint8).view(shape)


def bits(t: Tensor) -> Tensor:
    """Floats as integers: NaN equals itself, and -0 differs from 0."""
    return t.view(torch.int32) if t.dtype == torch.float32 else t


def same(isa: str, kernel: str, name: str, *args):
    """The op on the forced backend, having run this ISA's kernel of the table's `kernel`, equals its reference."""
    op = getattr(torch.ops.subbyte, name).default
    with ops.use_backend("cpu"):
        got = op(*args)
    assert ops.last_kernel[name] == kernel_for(kernel, isa)
    with ops.use_backend("reference"):
        expected = op(*args)
    pair = (got, expected) if isinstance(got, tuple) else ((got,), (expected,))
    for out, wanted in zip(*pair, strict=True):
        assert out.dtype == wanted.dtype
        assert out.shape == wanted.shape
        wrong = bits(out) != bits(wanted)
        assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()}: {out[wrong][:4]} for {wanted[wrong][:4]}"
    return got


def same_with_range(isa: str, kernel: str, name: str, *args) -> Tensor:
    """same() for a convolution's op and for the one that gives the range of its channels as well."""
    got, _ = same(isa, kernel, name + "_amax", *args)
    out = same(isa, kernel, name, *args)
    assert torch.equal(bits(got), bits(out))
    assert got.stride() == out.stride()
    return out


# ------------------------------------------------------------------------------------------------------------- matmul

S8, U8, S4, U4, S6, U7 = (
    IntFormat(8),
    IntFormat(8, False),
    IntFormat(4),
    IntFormat(4, False),
    IntFormat(6),
    IntFormat(7, False),
)
TILES = [
    (1, 1, 1),  # less than a word, a row and a vector
    (1, 4, 16),  # exactly one of each
    (11, 3, 31),  # a tile less one row, a panel less one column
    (12, 4, 32),  # one tile of AVX-512
    (13, 5, 33),  # one row, one code, one column more
    (6, 2, 16),  # one tile of AVX2
    (7, 3, 17),
    (17, 9, 15),  # narrow panel: the tall tile
    (4, 64, 8),
    (33, 130, 65),  # several panels; more words than a transposition takes at once
    (25, 300, 47),
]


@pytest.mark.parametrize("shape", TILES, ids=str)
@pytest.mark.parametrize("formats", [(S8, S8), (U8, S8), (S8, U8), (U8, U8), (S4, U4)], ids=lambda f: f"{f[0]}{f[1]}")
def test_matmul_at_tile_edges(isa, shape, formats):
    (m, k, n), (fa, fb) = shape, formats
    for fill in FILLS:
        a, b = codes((m, k), fa, fill), codes((k, n), fb)
        same(isa, "gemm", "int_matmul", *operand(a, fa), *operand(b, fb))
        same(isa, "gemm", "int_matmul", *operand(b.mT, fb), *operand(a.mT, fa))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)], ids=str)
def test_matmul_of_nothing(isa, shape):
    m, k, n = shape
    a, b = operand(codes((m, k), S8), S8), operand(codes((k, n), S8), S8)
    same(isa, "gemm", "int_matmul", *a, *b)
    same(isa, "gemm", "scaled_matmul", *a, *b, torch.ones(m, 1), torch.ones(1, n), torch.randn(n))


@pytest.mark.parametrize("formats", list(itertools.product((S8, U8), (S8, U8))), ids=lambda f: f"{f[0]}{f[1]}")
def test_matmul_around_the_int32_bound(isa, formats):
    fa, fb = formats
    longest = (2**31 - 1) // (fa.qmax * fb.qmax)  # 133,144 of s8 x s8
    for k, dtype in ((longest, torch.int32), (longest + 1, torch.int64), (2 * longest + 3, torch.int64)):
        for fill_a, fill_b in (("top", "top"), ("top", "bottom"), ("alternating", "alternating")):
            a, b = codes((2, k), fa, fill_a), codes((k, 3), fb, fill_b)
            assert same(isa, "gemm", "int_matmul", *operand(a, fa), *operand(b, fb)).dtype == dtype


SHIFTS = [
    (S4, S8, 4, 0),  # folds onto a
    (S8, S4, 4, 0),  # folds onto b
    (S4, S4, 4, 4),  # onto both: the 9 groups of 4 bits
    (S6, S6, 2, 2),  # the 5 groups of 6 bits
    (S6, S6, 4, 3),  # folds in part
    (S8, S8, 3, 0),  # never folds: by groups
    (U8, S8, 2, 3),
    (U4, U4, 4, 4),  # folds to u8 on both sides: 255 as a signed byte
    (U7, U8, 1, 1),
    (S8, S8, 9, 6),  # by groups, beyond int32
    (S4, S4, 23, 7),
]


@pytest.mark.parametrize("case", SHIFTS, ids=lambda c: f"{c[0]}<<{c[2]}x{c[1]}<<{c[3]}")
def test_matmul_with_shifts(isa, case):
    fa, fb, most_a, most_b = case
    for (m, k, n), fill in itertools.product(((1, 37, 1), (13, 150, 35), (5, 1030, 17)), FILLS):
        ea = exponents(k, most_a, (1, k)) if most_a else None
        eb = exponents(k, most_b, (k, 1)) if most_b else None
        a, b = codes((m, k), fa, fill), codes((k, n), fb, fill if fill != "alternating" else "bottom")
        for left, right in ((a, b), (a.mT.contiguous().mT, b.mT.contiguous().mT)):
            same(isa, "gemm", "int_matmul", *operand(left, fa, ea, most_a), *operand(right, fb, eb, most_b))


def test_matmul_with_one_shift_everywhere(isa):
    a, b = codes((5, 9), S8), codes((9, 4), S8)
    same(isa, "gemm", "int_matmul", *operand(a, S8, torch.full((1, 9), 1, dtype=torch.uint8), 3), *operand(b, S8))


def test_matmul_of_views(isa):
    big = codes((3, 60, 80), S8)
    views = {
        "offset": big[1, 3:20, 5:40],
        "every second column": big[0, :17, :70:2],
        "every third row": big[0, 1:52:3, :35],
        "transposed offset": big[2, 5:40, 3:20].mT,
        "one row, expanded": big[0, :1, :35].expand(17, 35),
        "one column, expanded": big[0, :17, :1].expand(17, 35),
    }
    for view in views.values():
        other = codes((view.shape[1], 21), U8)
        same(isa, "gemm", "int_matmul", *operand(view, S8), *operand(other, U8))
        same(isa, "gemm", "int_matmul", *operand(other.mT, U8), *operand(view.mT, S8))


def test_matmul_batched(isa):
    heads = codes((2, 7, 3, 20), S8).transpose(1, 2)  # as attention cuts them: (2, 3, 7, 20), not contiguous
    keys = codes((2, 3, 5, 20), U8).mT
    scales = torch.rand(2, 1, 7, 1), torch.rand(1, 3, 1, 5)
    same(isa, "gemm", "int_matmul", *operand(heads, S8), *operand(keys, U8))
    same(isa, "gemm", "scaled_matmul", *operand(heads, S8), *operand(keys, U8), *scales, torch.randn(5))
    same(isa, "gemm", "int_matmul", *operand(heads[:0], S8), *operand(keys[:0], U8))


@pytest.mark.parametrize("wide", [False, True])
def test_scaled_matmul_rounds_as_the_reference(isa, wide):
    m, k, n = 29, 70, 37
    most = 13 if wide else 2
    a, b = codes((m, k), S8), codes((k, n), S8)
    left, right = operand(a, S8, exponents(k, most, (1, k)), most), operand(b, S8)
    row, column, bias = torch.rand(m, 1), torch.rand(n, 1).mT, torch.randn(2 * n)[::2]
    for sa, sb, bs in ((row, column, bias), (row[:1], column, None), (row, column[:, :1], bias.bfloat16())):
        same(isa, "gemm", "scaled_matmul", *left, *right, sa, sb, bs)
    row[3], column[0, 5] = float("nan"), float("inf")
    same(isa, "gemm", "scaled_matmul", *left, *right, row, column.nan_to_num(0.0, posinf=1e38), bias)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_matmul_on_threads(isa, threads):
    torch.set_num_threads(threads)
    for m, k, n in ((200, 300, 130), (3, 500, 1000), (2000, 100, 9), (40, 5000, 24)):  # blocks of rows, of columns
        a, b = codes((m, k), S8), codes((n, k), S8).mT
        same(isa, "gemm", "int_matmul", *operand(a, S8), *operand(b, S8))


def test_products_that_the_reference_refuses_are_not_covered():
    a, b, e = codes((2, 3), S8), codes((3, 2), S8), torch.zeros(1, 3, dtype=torch.uint8)
    with ops.use_backend("cpu"), pytest.raises(ops.BackendError):
        torch.ops.subbyte.int_matmul(*operand(a, S8, e, 23), *operand(b, S8, e.mT, 23))


def test_operands_that_do_not_match_never_reach_a_kernel():
    a, b, w = (operand(codes(shape, S8), S8) for shape in ((4, 3), (5, 2), (6, 2, 1, 1)))
    x, one, window = operand(codes((2, 3, 4, 4), S8), S8), torch.ones(1, 1, 1, 1), ([1, 1], [0, 0], [1, 1], 1)
    with ops.use_backend("cpu"):
        with pytest.raises(ops.BackendError):
            torch.ops.subbyte.int_matmul(*a, *b)
        with pytest.raises(ops.BackendError):
            torch.ops.subbyte.scaled_conv2d(*x, *w, one, None, *window)
        fitting, wrong_scale = operand(codes((6, 3, 1, 1), S8), S8), torch.ones(1, 5, 1, 1)
        with pytest.raises(ops.BackendError):
            torch.ops.subbyte.scaled_conv2d(*x, *fitting, wrong_scale, None, *window)


# ------------------------------------------------------------------------------------------------------- convolutions


def layout(t: Tensor, how: str) -> Tensor:
    if how == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if how == "inside":  # of a larger tensor: no two dimensions lie dense
        n, c, h, w = t.shape
        return t.new_zeros(n + 1, c + 2, h + 3, w + 5)[1:, 1:-1, 2:-1, 3:-2].copy_(t)
    if how == "turned":
        return t.mT.contiguous().mT
    return t


def output_size(x: Tensor, w: Tensor, stride, padding, dilation) -> tuple[int, int]:
    return tuple(
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (w.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )


def all_three(isa, n, c, o, size, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
              formats=(S8, S8, S8), fills=("random",) * 3, how="contiguous", most=0, by="words"):  # fmt: skip
    """Output, grad_input and grad_weight of one convolution. most: the largest exponent along each reduced channel."""
    fx, fw, fg = formats
    x, w = codes((n, c, *size), fx, fills[0]), codes((o, c // groups, *kernel), fw, fills[1])
    g = codes((n, o, *output_size(x, w, stride, padding, dilation)), fg, fills[2])
    assert g.shape[2] > 0
    assert g.shape[3] > 0
    x, w, g = layout(x, how), layout(w, "contiguous" if how == "inside" else how), layout(g, how)
    window = (list(stride), list(padding), list(dilation), groups)
    kind = "conv2d_planes" if by == "planes" else "conv2d"

    inner = c // groups
    ex = exponents(c, most, (1, c, 1, 1)) if most and inner > 1 else None
    ew = exponents(inner, most, (1, inner, 1, 1)) if most and inner > 1 else None
    y = same_with_range(isa, kind, CONV_OPS[0], *operand(x, fx, ex, most), *operand(w, fw, ew, most),
                        torch.rand(1, o, 1, 1), torch.randn(o), *window)  # fmt: skip
    eg = exponents(o, most, (1, o, 1, 1)) if most and o // groups > 1 else None
    eo = exponents(o, most, (o, 1, 1, 1)) if most and o // groups > 1 else None
    dx = same_with_range(isa, kind + "_grad_input", CONV_OPS[1], *operand(g, fg, eg, most), *operand(w, fw, eo, most),
                         torch.rand(n, c, 1, 1), list(x.shape), *window)  # fmt: skip
    en = exponents(n, most, (n, 1, 1, 1)) if most and n > 1 else None
    same(isa, kind + "_grad_weight", CONV_OPS[2], *operand(g, fg, en, most), *operand(x, fx, en, most),
         torch.rand(o, inner, 1, 1), list(w.shape), *window)  # fmt: skip
    for result, like in ((y, x), (dx, g)):
        last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
        assert result.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


RESNET = [
    (3, 16, 9, 3, 1),  # the first layer: less than a word of channels
    (16, 16, 32, 3, 1),  # the narrow panel
    (16, 32, 17, 3, 2),  # stride 2, odd size
    (32, 64, 8, 1, 2),  # shortcut
    (33, 31, 4, 3, 1),  # 4 pixels wide: several rows in a tile; one more and one less than a panel
    (20, 70, 7, 3, 1),
    (64, 5, 1, 1, 1),  # one pixel
]


@pytest.mark.parametrize("how", ["contiguous", "channels_last", "inside", "turned"])
@pytest.mark.parametrize("case", RESNET, ids=str)
def test_convolutions_of_resnets(isa, case, how):
    c, o, size, k, stride = case
    for formats in ((S4, S4, S4), (U8, S8, S8)):
        all_three(isa, 3, c, o, (size, size), (k, k), (stride,) * 2, (k // 2,) * 2, formats=formats, how=how)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (4, 3)], ids=str)
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)], ids=str)
def test_convolution_windows(isa, stride, padding, dilation):
    for kernel, groups, how in (((3, 2), 1, "contiguous"), ((2, 3), 2, "channels_last"), ((1, 1), 3, "contiguous")):
        all_three(
            isa, 2, 6 * groups, 5 * groups, (11, 9), kernel, stride, padding, dilation, groups, (S8, S6, S8), how=how
        )


@pytest.mark.parametrize("case", [(4, 4, 4), (3, 6, 3), (6, 6, 3), (5, 5, 5)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolutions(isa, case, stride):
    c, o, groups = case
    for how, most in (("contiguous", 0), ("channels_last", 3)):
        all_three(isa, 2, c, o, (9, 21), (3, 3), (stride,) * 2, (1, 1), groups=groups, how=how, most=most, by="planes")


@pytest.mark.parametrize("formats", list(itertools.product((S8, U8), repeat=3)), ids=lambda f: "".join(map(str, f)))
def test_convolutions_of_extremes(isa, formats):
    for fills in (("top", "top", "top"), ("top", "bottom", "bottom"), ("alternating", "top", "alternating")):
        all_three(isa, 2, 37, 18, (6, 5), (3, 3), padding=(1, 1), formats=formats, fills=fills)


@pytest.mark.parametrize("case", [(S4, 2), (S4, 4), (S6, 2), (S6, 5), (S8, 2), (U8, 1), (U4, 3), (S8, 11)], ids=str)
def test_convolutions_with_shifts(isa, case):
    fmt, most = case  # fold, fold in part, never fold, and leave int32
    for groups, how in ((1, "contiguous"), (1, "channels_last"), (2, "contiguous")):
        all_three(isa, 5, 10 * groups, 18 * groups, (5, 6), (3, 2), (1, 2), (1, 1), groups=groups,
                  formats=(fmt, S8, fmt), fills=("top", "top", "bottom"), how=how, most=most)  # fmt: skip


WINOGRAD = [  # of x or g, of w, the largest difference of left shifts; does Winograd's form take it?
    (S4, S4, 0, True),
    (U4, S4, 2, True),  # 1 bit of room on each side
    (U4, S4, 3, False),
    (S4, S4, 3, True),  # 2 bits and 1
    (S4, S4, 4, False),
    (IntFormat(6), S4, 1, True),
    (IntFormat(7), S4, 0, False),
    (S4, IntFormat(5), 0, False),
    (IntFormat(2), IntFormat(2), 6, True),
]


@pytest.mark.parametrize("case", WINOGRAD, ids=lambda c: f"{c[0]}x{c[1]}<<{c[2]}")
def test_convolutions_of_few_bits(isa, case):
    fmt, fmt_w, spread, covered = case
    on_bytes = isa in ("avx512vnni", "avxvnni", "neondot")  # int16 words gain less than the transforms cost

    def kind(sources: int) -> str:
        return "conv2d_winograd" if covered and on_bytes and sources % 16 == 0 else "conv2d"

    for n, c, o, size, padding, threads in (
        (44, 80, 70, (9, 7), 0, 2),
        (44, 70, 80, (7, 9), 1, 2),  # odd: a window reaches beyond the output; a part of a panel
        (130, 64, 65, (3, 4), 2, 1),
    ):
        torch.set_num_threads(threads)
        window = ([1, 1], [padding] * 2, [1, 1], 1)
        for fill, fill_w in (("top", "top"), ("random", "alternating")):
            x, w = layout(codes((n, c, *size), fmt, fill), "channels_last"), codes((o, c, 3, 3), fmt_w, fill_w)
            p, q = (s + 2 * padding - 2 for s in size)
            g, wide = layout(codes((n, o, p, q), fmt, fill), "channels_last"), layout(w, "channels_last")
            e, f = exponents(c, spread, (1, c, 1, 1)), exponents(o, spread, (1, o, 1, 1))
            # What all shifts have in common is no part of the difference.
            along_c, along_o = ((e, spread + 2), (f, spread + 2)) if spread else ((), ())
            same_with_range(isa, kind(c), CONV_OPS[0], *operand(x, fmt, *along_c),
                            *operand(w, fmt_w), torch.rand(1, o, 1, 1), torch.randn(o), *window)  # fmt: skip
            same_with_range(isa, kind(o) + "_grad_input", CONV_OPS[1], *operand(g, fmt, *along_o),
                            *operand(wide, fmt_w), torch.rand(1, c, 1, 1), list(x.shape), *window)  # fmt: skip


def test_a_scale_for_each_image_is_not_winograds(isa):
    x, w = layout(codes((40, 64, 8, 8), S4), "channels_last"), codes((64, 64, 3, 3), S4)
    args = (torch.rand(40, 64, 1, 1), None, [1, 1], [1, 1], [1, 1], 1)
    same_with_range(isa, "conv2d", CONV_OPS[0], *operand(x, S4), *operand(w, S4), *args)


def test_grad_weight_around_the_int32_bound(isa):
    side = 365  # 365 * 365 = 133,225 pixels: beyond the 133,144 of s8 x s8 in one image
    for n, h, w in ((1, side, side), (2, side, 200), (1, 364, 364)):
        g, x = codes((n, 2, h, w), S8, "top"), codes((n, 3, h, w), S8, "bottom")
        args = (torch.ones(1, 1, 1, 1), [2, 3, 1, 1], [1, 1], [0, 0], [1, 1], 1)
        same(isa, "conv2d_grad_weight", CONV_OPS[2], *operand(g, S8), *operand(x, S8), *args)


def test_output_beyond_int32(isa):
    k = (2**31 - 1) // (255 * 127) + 1  # one more channel than int32 holds
    x, w = codes((1, k, 1, 2), U8, "top"), codes((2, k, 1, 1), S8, "bottom")
    args = (torch.ones(1, 1, 1, 1), None, [1, 1], [0, 0], [1, 1], 1)
    same(isa, "conv2d", CONV_OPS[0], *operand(x, U8), *operand(w, S8), *args)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_convolutions_on_threads(isa, threads):
    torch.set_num_threads(threads)
    all_three(isa, 7, 16, 24, (16, 16), (3, 3), padding=(1, 1), how="channels_last")
    all_three(isa, 1, 16, 24, (40, 16), (3, 3), (2, 2), (1, 1))  # one image: cut by rows
    all_three(isa, 5, 8, 8, (20, 20), (3, 3), padding=(1, 1), groups=8, by="planes")


def test_convolution_of_no_images(isa):
    x, w = operand(codes((0, 3, 8, 8), S8), S8), operand(codes((4, 3, 3, 3), S8), S8)
    one, window = torch.ones(1, 1, 1, 1), ([1, 1], [1, 1], [1, 1], 1)
    same_with_range(isa, "conv2d", CONV_OPS[0], *x, *w, one, None, *window)
    g = operand(codes((0, 4, 8, 8), S4), S4)
    same_with_range(isa, "conv2d_grad_input", CONV_OPS[1], *g, *w, one, [0, 3, 8, 8], *window)
    x4 = operand(codes((0, 3, 8, 8), S4), S4)
    dw = same(isa, "conv2d_grad_weight", CONV_OPS[2], *g, *x4, one, [4, 3, 3, 3], *window)
    assert torch.equal(dw, torch.zeros(4, 3, 3, 3))


def test_nan_scales_surface(isa):
    x, w = operand(codes((2, 5, 6, 6), S8), S8), operand(codes((9, 5, 3, 3), S8), S8)
    scale = torch.rand(2, 9, 1, 1)
    scale[1, 4] = float("nan")
    scale[0, 2] = 1e38  # overflows to Inf; and what lies below the floor of a range counts as 0
    scale[:, 7] = 1e-38
    bias = torch.randn(9)
    bias[7] = 0
    for how in ("contiguous", "channels_last"):
        args = (layout(x[0], how), *x[1:], *w, scale, bias, [1, 1], [1, 1], [1, 1], 1)
        y = same_with_range(isa, "conv2d", CONV_OPS[0], *args)
        assert torch.equal(y.isnan().any(-1).any(-1), scale.isnan()[..., 0, 0])
        with ops.use_backend("cpu"):
            ranges = torch.ops.subbyte.scaled_conv2d_amax(*args)[1].flatten()
        assert ranges.isnan().nonzero().flatten().tolist() == [2, 4]
        assert ranges[7] == 0


@pytest.mark.parametrize("seed", range(25))
def test_random_convolutions(isa, seed):
    rng = random.Random(seed)
    torch.set_num_threads(rng.choice((1, 2)))
    groups, k = rng.choice((1, 1, 2, 3)), (rng.choice((1, 2, 3, 5)), rng.choice((1, 3, 4)))
    c, o = 3 * groups * rng.randint(1, 6), groups * rng.randint(3, 40)
    dilation = (rng.choice((1, 1, 2)), rng.choice((1, 1, 3)))
    padding = (rng.randint(0, 4), rng.randint(0, 3))
    size = tuple(max(1, d * (s - 1) + 1 - 2 * p) + rng.randint(0, 9) for d, s, p in zip(dilation, k, padding))
    formats = tuple(IntFormat(rng.randint(2, 8), rng.random() < 0.6) for _ in range(3))
    fills, how = (
        tuple(rng.choice(FILLS) for _ in range(3)),
        rng.choice(("contiguous", "channels_last", "inside", "turned")),
    )
    stride = (rng.randint(1, 3), rng.randint(1, 3))
    all_three(isa, rng.randint(1, 4), c, o, size, k, stride, padding, dilation, groups, formats, fills, how,
              most=rng.choice((0, 0, 2, 6)))  # fmt: skip
