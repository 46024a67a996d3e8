"""The passes of a fused chain on the CPU backend equal their references bit for bit: all ISAs, layouts, threads."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import chain_calls
from kernel_table import kernel_for
from subbyte import ShiftQuant, ops
from subbyte.backends import _native
from subbyte.ops import chain
from test_backend_cpu_elementwise import assert_equal, isa, laid_out, threads  # noqa: F401  (fixtures)

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason or "loaded")

# Odd channel counts, pixels a multiple of 4 and not, sizes that are no multiple of 8, planes below and above a vector.
SHAPES = [
    *[(2, 1, 3, 3), (3, 3, 5, 7), (2, 5, 4, 8), (2, 17, 6, 6), (1, 64, 3, 5), (3, 16, 8, 8), (2, 3, 33, 31)],
    *[(1, 17, 70, 4), (7, 5, 1, 1), (2, 600, 2, 3), (33, 3), (9, 64), (1, 17), (200, 1), (3, 5, 11), (2, 3, 2, 5, 4)],
]


def layouts_of(shape) -> list[str]:
    return ["contiguous", *["channels_last"] * (len(shape) == 4), *["transposed"] * (len(shape) == 2)]


def run(name: str, isa: str, *args):  # noqa: F811
    return assert_equal(name, kernel_for(name, isa), lambda: getattr(torch.ops.subbyte, name).default(*args))


def codes(shape, kind: str, seed: int = 0) -> torch.Tensor:
    if kind != "random":
        return torch.full(shape, {"max": 127, "min": -127, "zero": 0}[kind], dtype=torch.int8)
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def floats(shape, kind: str, seed: int = 0) -> torch.Tensor:
    """Normal numbers; "special": with NaN, both Infs, both zeros, denormals and huge ones among them."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "special":
        special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 3e38, -3e38])
        flat = x.view(-1)
        flat[:: max(1, len(flat) // 11)] = special.repeat(2)[: len(flat[:: max(1, len(flat) // 11)])]
    return x


def by_rows(q: torch.Tensor) -> bool:
    """Do the channels of a token lie together?"""
    return q.stride(1) == 1 or q.shape[1] == 1


def per_channel(q: torch.Tensor, seed: int) -> torch.Tensor:
    return floats([n if i == 1 else 1 for i, n in enumerate(q.shape)], "normal", seed)


def check_forward(isa, q, kind="normal"):  # noqa: F811
    norm = chain_calls._norm(q)
    whole, each = torch.full([1] * q.ndim, 1.7), per_channel(q, 3).abs()
    each.view(-1)[0] = {"normal": 1.0, "special": math.nan}[kind]
    zero = torch.zeros([1] * q.ndim)
    other = laid_out(floats(q.shape, kind), "contiguous")
    for saved, add, relu in ((6, other, True), (8, None, True), (3, other, False), (5, None, False)):
        _z, r, *_ = run("norm_relu", isa, q, *norm, saved, add, relu)
        assert bool(r.isnan()) == (kind == "special" and add is not None)
    for saved, r, bits, signed in ((6, whole, 4, False), (8, each, 8, False), (4, each, 4, True), (7, zero, 2, False)):
        run("norm_relu_codes", isa, q, *norm, saved, r, bits, signed)
    for saved, bits, signed, top in ((6, 4, False, 2), (8, 4, True, 4), (5, 8, False, 0), (6, 2, True, 6)):
        which = "norm_relu_tokens" if by_rows(q) else "quantize_tokens"
        call = partial(torch.ops.subbyte.norm_relu_tokens.default, q, *norm, saved, whole, bits, signed, top)
        assert_equal("norm_relu_tokens", kernel_for(which, isa), call)


def check_backward(isa, g, q_g, k, mask):  # noqa: F811
    for these in (mask, mask[:0]):
        for keep in (False, True):
            r, _h = run("relu_grad", isa, g, these, keep)
        r.view(-1)[0] = 0.0
        for bits, ranges in ((4, r), (8, torch.full([1] * g.ndim, 0.7))):
            run("relu_grad_quantize", isa, g, these, ranges, torch.tensor(-71234567890123), bits)
        for bits, stream in ((4, torch.tensor(9)), (6, None), (8, torch.tensor(1)), (2, torch.tensor(2))):
            for signed in (True, False):
                run("quantize_tokens", isa, g, r.amax().view([1] * g.ndim), None, stream, bits, signed, 8 - bits)
    c = per_channel(q_g, 5)
    gamma, shift = (c * 60).clamp(-127, 127).to(torch.int8), (torch.arange(c.numel()) % 5).to(torch.uint8).view(c.shape)
    one = torch.full([1] * q_g.ndim, 0.25)
    for saved_bits in (8, 6, 5):
        saved = chain._saved_form(k, 8, saved_bits)
        run("norm_grad_sums", isa, q_g, saved, saved_bits)
        for operands, r, shifts, stream, bits in (
            ((gamma, c / 300, c * 3, c * 20, c / 9), one * 40, shift, torch.tensor(1 << 40), 4),
            ((gamma[:, :1], one, c, one, one), c.abs() * 9 + 1, None, torch.tensor(4), 8),
            ((gamma, c, one, c, c), one * 99, shift, None, 6),
            ((gamma, c, c, c, c), c * 0, None, None, 4),
        ):
            run("norm_grad_codes", isa, q_g, saved, saved_bits, *operands, r, shifts, stream, bits)
            which = "norm_grad_tokens" if by_rows(q_g) else "quantize_tokens"
            for top in (8 - bits, 0):
                call = partial(ops.chain.norm_grad_tokens, q_g, saved, saved_bits, *operands, one * 40, stream, bits)
                assert_equal("norm_grad_tokens", kernel_for(which, isa), partial(call, top))
            if q_g.stride(0) * len(q_g) == q_g.numel():  # each sample is one run of memory
                r_n = run("norm_grad_amax", isa, q_g, saved, saved_bits, *operands)
                _, by_sample, _ = ShiftQuant(bits, groups=9, axis=0).ranges_of(r_n)
                run("norm_grad_codes", isa, q_g, saved, saved_bits, *operands, r, by_sample, stream, bits)


def mask_of(q: torch.Tensor, passes: torch.Tensor) -> torch.Tensor:
    return chain._packed(torch.empty_like(q, dtype=torch.bool).copy_(passes), chain.MASK_BITS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(isa, shape):  # noqa: F811
    for layout in layouts_of(shape):
        for kind in ("random", "max", "min"):
            check_forward(isa, laid_out(codes(shape, kind), layout))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(isa, shape):  # noqa: F811
    for layout in layouts_of(shape):
        for kind in ("random", "max", "min"):
            g = laid_out(floats(shape, "normal"), layout)
            q_g, k = (laid_out(codes(shape, kind, seed), layout) for seed in (1, 2))
            check_backward(isa, g, q_g, k, mask_of(g, floats(shape, "normal", 8) > 0))


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (2, 16, 8, 8), (40, 17)], ids=str)
def test_nan_and_inf(isa, shape):  # noqa: F811
    for layout in layouts_of(shape):
        check_forward(isa, laid_out(codes(shape, "random"), layout), "special")
        g = laid_out(floats(shape, "special"), layout)
        q_g, k = laid_out(codes(shape, "random"), layout), laid_out(codes(shape, "zero"), layout)
        check_backward(isa, g, q_g, k, mask_of(g, torch.ones(shape, dtype=torch.bool)))
        hidden = mask_of(g, g.isfinite())  # what the mask stops does not reach the range
        assert run("relu_grad", isa, g, hidden, False)[0].isfinite().all()


@pytest.mark.parametrize("kind", ["max", "min"])
def test_sums_at_their_bounds(isa, kind):  # noqa: F811
    """Long statistics of extreme codes: sums of 16 bits, of 32 and of 64 reach their limits."""
    for shape in ((1 << 17, 1), (1, 1, 1 << 17), (1 << 13, 32)):
        q = codes(shape, kind)
        sums, _low, _high = run("norm_grad_sums", isa, q, chain._packed(q, 8), 8)
        n = q.numel() // shape[1]
        assert sums[1].flatten()[0] == n * 127 * 127


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_on_threads(isa, threads, layout):  # noqa: F811
    shape = (5, 12, 37, 40)
    check_forward(isa, laid_out(codes(shape, "random"), layout))
    g = laid_out(floats(shape, "normal"), layout)
    q_g, k = (laid_out(codes(shape, "random", seed), layout) for seed in (1, 2))
    check_backward(isa, g, q_g, k, mask_of(g, floats(shape, "normal", 8) > 0))


@pytest.mark.parametrize("name", chain_calls.CALLS)
def test_the_calls_of_every_op(isa, name):  # noqa: F811
    for args in (args for big in (1, 7) for args in chain_calls.CALLS[name](big)):
        run(name, isa, *args)


def test_nan_and_inf_in_a_norm(isa):  # noqa: F811
    for big in (1, 7):
        for y, _, *rest in chain_calls.chain_norm(big):
            special = floats(y.shape, "special").as_strided(y.shape, y.stride())
            with ops.use_backend("reference"):
                r_k = ops.amax(special, 1)
            run("chain_norm", isa, special, r_k, *rest)
        for g, *rest in chain_calls.chain_norm_grad(big):
            run("chain_norm_grad", isa, floats(g.shape, "special").as_strided(g.shape, g.stride()), *rest)


def test_an_addend_in_another_memory_order(isa):  # noqa: F811
    q = codes((2, 6, 5, 4), "random").contiguous(memory_format=torch.channels_last)
    run("norm_relu", isa, q, *chain_calls._norm(q), 6, floats(q.shape, "normal"), True)


def test_negative_zero_and_nan_pass_through_relu_as_in_torch(isa):  # noqa: F811
    q = torch.full((1, 4), 5, dtype=torch.int8)
    _total, factor, n, bits, _gamma, scale, _beta = chain_calls._norm(q)
    beta, minus = torch.tensor([[-0.0, math.nan, -1.0, 1.0]]), torch.full((1, 4), -1, dtype=torch.int8)
    norm = (torch.zeros(1, 4, dtype=torch.int64), factor, n, bits, minus, scale * 0, beta)
    z, *_, mask = run("norm_relu", isa, q, *norm, 6, beta, True)
    assert z[0].signbit().tolist()[0]
    assert z[0, 1].isnan()
    assert mask.tolist() == [0b1010]


def test_what_the_kernels_do_not_cover_is_left_to_the_reference():
    g = torch.randn(4, 3, 5, 6).permute(0, 2, 3, 1)  # logic and memory differ in more than a transposition of channels
    stream, r = torch.tensor(1), torch.ones(1, 1, 1, 1)
    torch.ops.subbyte.relu_grad_quantize(g.permute(2, 0, 1, 3), torch.empty(0, dtype=torch.uint8), r, stream, 4)
    assert ops.last_kernel["relu_grad_quantize"] == "reference"
    with ops.use_backend("cpu"), pytest.raises(ops.BackendError, match="relu_grad"):
        torch.ops.subbyte.relu_grad(torch.randn(5), torch.empty(0, dtype=torch.uint8), False)
