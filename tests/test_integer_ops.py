"""The passes and the integer products of the integer-only mode: C++ equals the reference, and both equal Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import integer_calls
import integer_token_calls
from op_calls import CALLS, S8, operands, sums
from subbyte import backends, integer, numerics, ops
from subbyte.backends import _native
from subbyte.numerics import IntFormat

NAMES = (
    *("int_amax", "int_quantize", "int_lookup", "int_norm_grad", "int_add", "int_relu", "int_relu_grad"),
    *("int_sgd", *integer_calls.CALLS, *integer_token_calls.CALLS),
)
PRODUCTS = ("int_conv2d", "int_conv2d_grad_input", "int_conv2d_grad_weight")
needs_library = pytest.mark.skipif("cpu" not in {b.NAME for b in backends.usable()}, reason="no C++ library")


def call(name: str, args: tuple) -> Any:
    return getattr(torch.ops.subbyte, name)(*args)


@needs_library
@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("name", [*NAMES, *PRODUCTS])
def test_every_isa_equals_the_reference(name: str, isa: str) -> None:
    for args in (*CALLS[name](1), *(CALLS[name](9) if name in NAMES else ())):
        with ops.use_backend("reference"):
            want = call(name, args)
        with _native.forced_isa(isa), ops.use_backend("cpu"):
            got = call(name, args)
            assert ops.last_kernel[name] != "reference"
        for ours, theirs in zip(*((t,) if isinstance(t, Tensor) else t for t in (got, want)), strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.stride() == theirs.stride()
            assert torch.equal(ours, theirs)


@needs_library
def test_what_is_no_number_is_the_same_nan() -> None:
    for name, args in integer_calls.results_not_finite():
        with ops.use_backend("reference"):
            want = call(name, args)
        with ops.use_backend("cpu"):
            got = call(name, args)
        for ours, theirs in zip(*((t,) if isinstance(t, Tensor) else t for t in (got, want)), strict=True):
            assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
        assert name != "int_to_float" or want.isnan().all()
        assert name == "int_to_float" or torch.cat(want).isnan().any()


@pytest.mark.parametrize("backend", ["reference", None])
def test_a_statistic_of_too_many_codes_is_refused(backend: str | None) -> None:
    n = integer.MAX_COUNT + 1
    sums = [torch.tensor([v]) for v in (0, 100 * n * n, -127, 127)]
    with ops.use_backend(backend), pytest.raises(ValueError, match=f"at most {n - 1} elements, not {n}"):
        ops.int_batch_table(*sums, n, True, 8)


@pytest.mark.parametrize("backend", ["reference", None])
def test_quantize_is_the_shift_of_numerics(backend: str | None) -> None:
    x = sums(3, 40)
    for bits, signed in ((4, True), (8, False)):
        fmt = IntFormat(bits, signed)
        for n in (0, 1, 2, 15, 16, 17, 29, 30):
            shift = torch.full((1, 1), n, dtype=torch.int32)
            r16 = numerics.random_bits16(torch.tensor(9), x.numel()).view(x.shape)
            with ops.use_backend(backend):
                nearest = ops.int_quantize(x, shift, None, bits, signed)
                stochastic = ops.int_quantize(x, shift, torch.tensor(9), bits, signed)
            wide = x.to(torch.int64)
            limits = (fmt.qmin, fmt.qmax)
            assert torch.equal(nearest.long(), numerics.shift_right_nearest(wide, n).clamp(*limits))
            assert torch.equal(stochastic.long(), numerics.shift_right_stochastic(wide, n, r16).clamp(*limits))


@pytest.mark.parametrize("backend", ["reference", None])
def test_extremes_do_not_overflow(backend: str | None) -> None:
    top = torch.full((2, 3, 5), 1 << 30, dtype=torch.int32)
    shift = torch.full((1, 1, 1), 30, dtype=torch.int32)
    with ops.use_backend(backend):
        assert ops.int_amax(-top, 1).flatten().tolist() == [1 << 30] * 3
        assert set(ops.int_quantize(top, shift, None, 8, True).flatten().tolist()) == {1}
        assert set(ops.int_quantize(-top, shift, torch.tensor(1), 8, True).flatten().tolist()) == {-1}
        g = torch.full((2, 3), 127, dtype=torch.int8)
        # the widest bracket and factor that integer.batch_norm makes
        u = torch.full((3,), -(1 << 25), dtype=torch.int32)
        a = torch.full((3,), 1 << 29)
        dx = ops.int_norm_grad(g, g, u, u, a, torch.tensor(27, dtype=torch.int32), 8)
    assert set(dx.flatten().tolist()) == {((127 << 8) + (1 << 26) << 29) + (1 << 26) >> 27}


@pytest.mark.parametrize("backend", ["reference", None])
def test_sums_of_a_convolution_are_those_of_python(backend: str | None) -> None:
    x, w = CALLS["int_conv2d"](1)[0][0], CALLS["int_conv2d"](1)[0][5]
    stride = [1, 1]
    with ops.use_backend(backend):
        y = ops.int_conv2d(*operands(S8, x, S8, w), stride, [1, 1], stride, 1)
    assert y.dtype == torch.int32
    for n, o, p, q in ((0, 0, 0, 0), (1, 5, 3, 4), (1, 2, 6, 8)):
        total = 0
        for c in range(x.shape[1]):
            for r in range(3):
                for s in range(3):
                    i, j = p + r - 1, q + s - 1
                    if 0 <= i < x.shape[2] and 0 <= j < x.shape[3]:
                        total += int(x[n, c, i, j]) * int(w[o, c, r, s])
        assert y[n, o, p, q] == total


@pytest.mark.parametrize("backend", ["reference", None])
def test_a_sum_beyond_32_bits_is_int64(backend: str | None) -> None:
    g = torch.full((1, 1, 400, 400), 127, dtype=torch.int8)
    one = [1, 1]
    with ops.use_backend(backend):
        dw = ops.int_conv2d_grad_weight(*operands(S8, g, S8, -g), [1, 1, 1, 1], one, [0, 0], one, 1)
    assert dw.dtype == torch.int64
    assert dw.item() == -127 * 127 * 160_000


@pytest.mark.parametrize("backend", ["reference", None])
def test_a_token_has_the_finest_shift_that_its_codes_reach(backend: str | None) -> None:
    fmt = IntFormat(4)
    for i, x in enumerate(x for x, *f in integer_token_calls.int_token_shifts(1) if f == [4, True] and x.numel()):
        with ops.use_backend(backend):
            needed, largest = ops.int_token_shifts(x, 4, True)
            codes = [
                ops.int_quantize_tokens(x, needed, needed.amax().int(), s, 4, True, 4) for s in (None, torch.tensor(i))
            ]
        base, wide = int(needed.max()), x.long()
        assert largest.item() == wide.abs().max()
        for n, token in zip(needed.movedim(1, -1).flatten(), wide.movedim(1, -1).flatten(0, -2), strict=True):
            most = int(token.abs().max())
            assert most <= 7 << int(n)
            assert n == 0 or most > 7 << int(n) - 1
        shift = needed.long().clamp(base - 4, base).expand_as(wide)
        r16 = numerics.random_bits16(torch.tensor(i), x.numel()).view(x.shape)
        for got, rounded in zip(
            codes, (integer.right_nearest(wide, shift), integer.right_stochastic(wide, shift, r16)), strict=True
        ):
            assert torch.equal(got.long(), rounded.clamp(fmt.qmin, fmt.qmax) << (shift - base + 4))
            assert got.long().abs().max() <= 7 << 4
