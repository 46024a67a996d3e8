"""The C++ convolutions equal the references bit for bit: each ISA forced in turn, output and both gradients."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from products_for_tests import (
    CONV_OPS,
    FILLS,
    S4,
    S6,
    S8,
    U4,
    U8,
    codes,
    exponents,
    operand,
    same,
    same_in_each_form,
)
from subbyte import ops
from subbyte.backends import _native, cpu
from subbyte.numerics import IntFormat

pytestmark = [
    pytest.mark.skipif(bool(cpu.available()), reason=cpu.available()),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(params=_native.isas(), autouse=True)
def isa(request):
    torch.manual_seed(0)
    with _native.forced_isa(request.param):
        yield request.param


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
    y = same_in_each_form(isa, kind, CONV_OPS[0], *operand(x, fx, ex, most), *operand(w, fw, ew, most),
                        torch.rand(1, o, 1, 1), torch.randn(o), *window)  # fmt: skip
    eg = exponents(o, most, (1, o, 1, 1)) if most and o // groups > 1 else None
    eo = exponents(o, most, (o, 1, 1, 1)) if most and o // groups > 1 else None
    dx = same_in_each_form(isa, kind + "_grad_input", CONV_OPS[1], *operand(g, fg, eg, most), *operand(w, fw, eo, most),
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


@pytest.mark.parametrize("how", ["contiguous", "channels_last", "inside"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("size", [(14, 14), (7, 7), (13, 1), (24, 10)], ids=str)
def test_kernels_of_one_pixel(isa, size, stride, how):
    for formats, most in (((S4, S4, S4), 2), ((U8, S8, S8), 0)):
        all_three(isa, 4, 20, 36, size, (1, 1), stride, formats=formats, how=how, most=most)


@pytest.mark.parametrize("how", ["contiguous", "channels_last"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_gradient_that_is_added(isa, how, threads):
    torch.set_num_threads(threads)
    for n, c, o, size in ((2, 5, 20, 9), (3, 40, 32, 31)):
        g, w = layout(codes((n, o, size, size), S4), how), codes((o, c, 3, 3), S4)
        more = layout(torch.randn(n, c, size, size), how)
        more[0, 0, 0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 3e38])
        mask = torch.randint(0, 256, (-(-more.numel() // 8),), dtype=torch.uint8)
        args = (*operand(g, S4), *operand(w, S4), torch.rand(1, c, 1, 1), list(more.shape), [1, 1], [1, 1], [1, 1], 1)
        for bit in (mask, mask[:0], mask * 0):
            same(isa, "conv2d_grad_input", CONV_OPS[1] + "_plus", *args, more, bit)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0, -1.0, 2.0])
def test_pixels_that_a_stride_skips(isa, value):
    g, w = layout(codes((2, 20, 5, 4), S4), "channels_last"), codes((20, 24, 1, 1), S4)
    for shape in ((1, 1, 1, 1), (1, 24, 1, 1), (2, 1, 1, 1)):
        scale = torch.rand(shape)
        scale.flatten()[-1] = value
        args = (*operand(g, S4), *operand(w, S4), scale, [2, 24, 10, 8], [2, 2], [0, 0], [1, 1], 1)
        same_in_each_form(isa, "conv2d_grad_input", CONV_OPS[1], *args)


@pytest.mark.parametrize("case", [(5, 3, 1, 1), (40, 36, 1, 1), (6, 12, 3, 2), (8, 8, 8, 1), (4, 4, 2, 1)], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 3)], ids=str)
def test_a_gradient_lies_as_its_weight(isa, case, kernel):
    c, o, groups, stride = case
    for per_input in (1, c // groups):
        g, x = codes((2, o, 6, 5), S4), codes((2, c, 5 * stride + kernel[0], 4 * stride + kernel[1]), U4)
        window = ([stride] * 2, [0, 0], [1, 1], groups)
        kind = "conv2d_planes_grad_weight" if groups > 1 and max(c, o) // groups <= 2 else "conv2d_grad_weight"
        args = (*operand(g, S4), *operand(x, U4), torch.rand(o, per_input, 1, 1), [o, c // groups, *kernel], *window)
        dw = same(isa, kind, CONV_OPS[2], *args, True)
        assert dw.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(dw, same(isa, kind, CONV_OPS[2], *args))


@pytest.mark.parametrize("case", [(130, 150, 3, 1, 1), (150, 130, 3, 2, 1), (128, 128, 1, 1, 0), (200, 128, 1, 2, 0),
                                  (129, 131, 2, 1, 0), (128, 160, 3, 1, 2)], ids=str)  # fmt: skip
@pytest.mark.parametrize("threads", [1, 2])
def test_grad_weight_of_few_pixels(isa, case, threads):
    torch.set_num_threads(threads)
    c, o, k, stride, padding = case
    for (fg, fx), fill, per_input in itertools.product(
        ((S4, U4), (S8, S8), (S4, U8)), ("random", "top"), (False, True)
    ):
        x = layout(codes((3, c, 7, 9), fx, fill), "channels_last")
        p, q = ((n + 2 * padding - k) // stride + 1 for n in x.shape[2:])
        g = layout(codes((3, o, p, q), fg, fill), "channels_last")
        scale = torch.rand((1, c, 1, 1) if per_input else (o, 1, 1, 1))
        window = ([stride] * 2, [padding] * 2, [1, 1], 1)
        args = (*operand(g, fg), *operand(x, fx), scale, [o, c, k, k], *window)
        assert torch.equal(*(same(isa, "conv2d_grad_weight", CONV_OPS[2], *args, last) for last in (True, False)))


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
            for weight in (w, wide):
                same_in_each_form(isa, kind(c), CONV_OPS[0], *operand(x, fmt, *along_c),
                                *operand(weight, fmt_w), torch.rand(1, o, 1, 1), torch.randn(o), *window)  # fmt: skip
                same_in_each_form(isa, kind(o) + "_grad_input", CONV_OPS[1], *operand(g, fmt, *along_o),
                                *operand(weight, fmt_w), torch.rand(1, c, 1, 1), list(x.shape), *window)  # fmt: skip


def test_a_scale_for_each_image_is_not_winograds(isa):
    x, w = layout(codes((40, 64, 8, 8), S4), "channels_last"), codes((64, 64, 3, 3), S4)
    args = (torch.rand(40, 64, 1, 1), None, [1, 1], [1, 1], [1, 1], 1)
    same_in_each_form(isa, "conv2d", CONV_OPS[0], *operand(x, S4), *operand(w, S4), *args)


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


@pytest.mark.parametrize("channels", [80, 72], ids=["whole lines", "a ragged line"])
@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_that_go_past_the_caches(isa, threads, channels):
    """More than the 2 MiB of kFarBytes in csrc/conv.h; 80 channels end in a part of a panel, a row in one of a tile."""
    torch.set_num_threads(threads)
    size, past = (61, 67), 2 << 20
    for kernel, padding, sources in ((1, 0, 8), (3, 1, 64)):  # a matrix product; Winograd's form of few bits
        x, w = codes((2, sources, *size), S4), codes((channels, sources, kernel, kernel), S4)
        g, turned = codes((2, channels, *size), S4), codes((sources, channels, kernel, kernel), S4)
        x, g = layout(x, "channels_last"), layout(g, "channels_last")
        assert 4 * g.numel() > past
        winograd = kernel == 3 and isa in ("avx512vnni", "avxvnni", "neondot")
        kind, window = "conv2d" + "_winograd" * winograd, ([1, 1], [padding] * 2, [1, 1], 1)
        same_in_each_form(isa, kind, CONV_OPS[0], *operand(x, S4), *operand(w, S4),
                        torch.rand(1, channels, 1, 1), torch.randn(channels), *window)  # fmt: skip
        same_in_each_form(isa, kind + "_grad_input", CONV_OPS[1], *operand(x, S4), *operand(turned, S4),
                        torch.rand(1, channels, 1, 1), list(g.shape), *window)  # fmt: skip
    shape = [256, 4 * channels + channels % 16, 3, 3]
    g, x = (layout(codes((1, n, 5, 5), f), "channels_last") for n, f in ((shape[0], S4), (shape[1], U4)))
    assert 4 * torch.Size(shape).numel() > past
    args = (*operand(g, S4), *operand(x, U4), torch.rand(256, 1, 1, 1), shape, [1, 1], [1, 1], [1, 1], 1, True)
    same(isa, "conv2d_grad_weight", CONV_OPS[2], *args)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_convolutions_on_threads(isa, threads):
    torch.set_num_threads(threads)
    all_three(isa, 7, 16, 24, (16, 16), (3, 3), padding=(1, 1), how="channels_last")
    all_three(isa, 1, 16, 24, (40, 16), (3, 3), (2, 2), (1, 1))  # one image: cut by rows
    all_three(isa, 5, 8, 8, (20, 20), (3, 3), padding=(1, 1), groups=8, by="planes")


def test_convolution_of_no_images(isa):
    x, w = operand(codes((0, 3, 8, 8), S8), S8), operand(codes((4, 3, 3, 3), S8), S8)
    one, window = torch.ones(1, 1, 1, 1), ([1, 1], [1, 1], [1, 1], 1)
    same_in_each_form(isa, "conv2d", CONV_OPS[0], *x, *w, one, None, *window)
    g = operand(codes((0, 4, 8, 8), S4), S4)
    same_in_each_form(isa, "conv2d_grad_input", CONV_OPS[1], *g, *w, one, [0, 3, 8, 8], *window)
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
        y = same_in_each_form(isa, "conv2d", CONV_OPS[0], *args)
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
