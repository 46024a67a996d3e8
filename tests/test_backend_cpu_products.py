"""The C++ products equal the references bit for bit: each ISA forced in turn, and the record shows that it ran.

Shapes are chosen by reason: 0 and 1, one more and one less than a tile, a word and a vector; operands are filled with
extremes, since random codes never find an overflow, nor a saturating pair of products.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from op_calls import packed
from products_for_tests import FILLS, S4, S6, S8, U4, U7, U8, codes, exponents, operand, same
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


FEW = list(itertools.product((S4, U4, S6, S8, IntFormat(5, False)), (S4, S6, U4, S8)))


@pytest.mark.parametrize("formats", FEW, ids=lambda f: f"{f[0]}{f[1]}")
def test_matmul_of_few_bits_beyond_what_16_bits_sum(isa, formats):
    fa, fb = formats
    for k in (7, 8 * 4, 8 * 4 + 1, 156 * 4, 156 * 4 + 1, 1500):  # steps that fit, and one code more
        for fill_a, fill_b in itertools.product(("top", "bottom"), repeat=2):
            a, b = codes((7, k), fa, fill_a), codes((k, 17), fb, fill_b)
            same(isa, "gemm", "int_matmul", *operand(a, fa), *operand(b, fb))


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


@pytest.mark.parametrize("fmt", [*(IntFormat(b) for b in range(2, 9)), U4, U7, U8], ids=str)
def test_matmul_of_a_packed_operand(isa, fmt):
    """Rows that begin in the middle of a byte, panels that end in one, columns that lie together, a batch."""
    for m, k, n in ((1, 1, 1), (13, 150, 35), (5, 71, 32), (33, 37, 67), (2, 300, 17)):
        for fill in FILLS:
            a, b = codes((m, k), S8, fill), codes((k, n), fmt, fill if fill != "alternating" else "bottom")
            row, column, bias = torch.rand(m, 1), torch.rand(1, n), torch.randn(n)
            for right in (b, b.mT.contiguous().mT):
                args = (*operand(a, S8), *operand(right, fmt), row, column, bias)
                same(isa, "gemm", "scaled_matmul_packed", *packed(args))
    a, b = codes((3, 9, 41), S8), codes((3, 41, 19), fmt)
    args = (*operand(a, S8), *operand(b, fmt), torch.rand(3, 1, 1), torch.rand(1, 1, 19), None)
    same(isa, "gemm", "scaled_matmul_packed", *packed(args))


@pytest.mark.parametrize("case", SHIFTS[:-1], ids=lambda c: f"{c[0]}<<{c[2]}x{c[1]}<<{c[3]}")
def test_matmul_of_a_packed_operand_with_shifts(isa, case):
    fa, fb, most_a, most_b = case
    m, k, n = 13, 150, 35
    ea = exponents(k, most_a, (1, k)) if most_a else None
    eb = exponents(k, most_b, (k, 1)) if most_b else None
    a, b = codes((m, k), fa, "alternating"), codes((k, n), fb)
    for right in (b, b.mT.contiguous().mT):
        args = (*operand(a, fa, ea, most_a), *operand(right, fb, eb, most_b), torch.rand(m, 1), torch.rand(1, n), None)
        same(isa, "gemm", "scaled_matmul_packed", *packed(args))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_matmul_on_threads(isa, threads):
    torch.set_num_threads(threads)
    for m, k, n in ((200, 300, 130), (3, 500, 1000), (2000, 100, 9), (40, 5000, 24)):  # blocks of rows, of columns
        a, b = codes((m, k), S8), codes((n, k), S8).mT
        same(isa, "gemm", "int_matmul", *operand(a, S8), *operand(b, S8))
        args = (*operand(a, S8), *operand(b >> 2, S6), torch.rand(m, 1), torch.rand(1, n), None)
        same(isa, "gemm", "scaled_matmul_packed", *packed(args))


@pytest.mark.parametrize("columns", [1008, 1009], ids=["whole lines", "a ragged line"])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_output_that_goes_past_the_caches(isa, threads, columns):
    """More than the 4 MiB of kFarBytes in csrc/gemm.cc; the last tile and the last block of rows are not whole."""
    torch.set_num_threads(threads)
    a, b = codes((1051, 40), S8), codes((40, columns), S4)
    args = (*operand(a, S8), *operand(b, S4))
    assert 4 * a.shape[0] * columns > 4 << 20
    same(isa, "gemm", "int_matmul", *args)
    same(isa, "gemm", "scaled_matmul", *args, torch.rand(len(a), 1), torch.rand(1, columns), torch.randn(columns))


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
