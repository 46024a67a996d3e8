"""amax, quantize, pack and norm of the CPU backend equal their references bit for bit: all ISAs, layouts, threads."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from kernel_table import kernel_for
from subbyte import numerics, ops
from subbyte.backends import _native
from subbyte.ops import norm as norm_ops

pack_codes, unpack_codes = torch.ops.subbyte.pack_codes.default, torch.ops.subbyte.unpack_codes.default

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason or "loaded")
SHAPES_4D = [(2, 16, 8, 8), (3, 5, 7, 3), (2, 3, 33, 31), (2, 70, 4, 4), (2, 130, 5, 5), (1, 1, 4, 4), (4, 7, 1, 1)]
SHAPES = [(), (1,), (5,), (0, 4), (3, 7), (33, 100), (1000, 10), (10, 1000), (2, 3, 4, 5, 6), *SHAPES_4D]
LAYOUTS = ["contiguous", "channels_last", "transposed", "offset", "strided", "permuted"]


@pytest.fixture(params=_native.isas() or ["none"])
def isa(request):
    with _native.forced_isa(request.param):
        yield request.param


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def layouts_of(shape) -> list[str]:
    """The layouts that differ for this shape."""
    if len(shape) < 2:
        return ["contiguous", "offset"]
    return [name for name in LAYOUTS if name != "channels_last" or len(shape) == 4]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """x with the same values in another memory layout."""
    if layout == "contiguous":
        return x
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "offset":  # a storage that begins at an odd element: no vector is aligned
        return torch.cat([x.new_zeros(3), x.reshape(-1)])[3:].view(x.shape)
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "strided":
        return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
    return x.permute(*range(1, x.ndim), 0).contiguous().permute(-1, *range(x.ndim - 1))


def same(a, b) -> bool:
    """Equal bits, dtypes, shapes and, where there is a choice, strides."""
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    strides = [s for s, n in zip(a.stride(), a.shape, strict=True) if n > 1] if a.numel() else []
    other = [s for s, n in zip(b.stride(), b.shape, strict=True) if n > 1] if b.numel() else []
    if a.dtype == torch.float64 == b.dtype:  # of a NaN only that it is one
        return torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan()) and strides == other
    if a.dtype == torch.float32:
        a, b = a.contiguous().view(torch.int32), b.contiguous().view(torch.int32)
    return a.dtype == b.dtype and torch.equal(a, b) and strides == other


def assert_equal(name: str, kernel: str, function):
    """Run on the kernel and on the reference: equal bit for bit, and this very kernel did run."""
    with ops.use_backend("cpu"):
        ours = function()
        assert ops.last_kernel[name] == kernel
    with ops.use_backend("reference"):
        theirs = function()
        assert ops.last_kernel[name] == "reference"
    assert same(ours, theirs), name
    return ours


def floats(shape, seed: int = 0) -> torch.Tensor:
    """Normal numbers with rounding ties, denormals and huge ones among them; all finite."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    special = torch.tensor([0.5, -0.5, 1.5, 2.5, -2.5, 0.0, -0.0, 1e-40, -1e-45, 3e38, -3e38, 2.0**-81])
    flat = x.view(-1)
    where = torch.randperm(flat.numel(), generator=generator)[: min(len(special), flat.numel() // 4)]
    flat[where] = special[: len(where)]
    return x


def reshaped(values: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    shape = [1] * x.ndim
    if axis >= 0:
        shape[axis] = -1
    return values.reshape(shape)


# ---------------------------------------------------------------------------------------------------------- amax


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_amax(isa, shape):
    for layout in layouts_of(shape):
        x = laid_out(floats(shape), layout)
        for axis in range(-1, x.ndim):
            assert_equal("amax", kernel_for("amax", isa), lambda x=x, axis=axis: ops.amax(x, axis))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 2.0**-80, 2.0**-81, 3.4e38])
@pytest.mark.parametrize("at", [0, 17, 63])
def test_amax_of_one_value(isa, value, at):
    x = torch.zeros(4, 64)
    x[1, at] = value
    for axis in (-1, 0, 1):
        r = assert_equal("amax", kernel_for("amax", isa), lambda axis=axis: ops.amax(x, axis))
        assert bool(r.isnan().any()) == (not math.isfinite(value))


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_amax_on_threads(isa, threads, layout, axis):
    x = laid_out(floats((4, 20, 40, 50)), layout)
    assert_equal("amax", kernel_for("amax", isa), lambda: ops.amax(x, axis))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_converted_first(isa, dtype):
    x = torch.randn(3, 70).to(dtype)
    r = assert_equal("amax", kernel_for("amax", isa), lambda: ops.amax(x, 0))
    assert_equal("quantize", kernel_for("quantize_nearest", isa), lambda: ops.quantize(x, r, None, None, 4, True))


# ------------------------------------------------------------------------------------------------------ quantize


@pytest.mark.parametrize("rounding", ["nearest", "sr"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantize(isa, shape, rounding):
    stream = torch.tensor(-7234234234234234234) if rounding == "sr" else None
    kernel = kernel_for(f"quantize_{rounding}", isa)
    for layout in layouts_of(shape):
        x = laid_out(floats(shape), layout)
        for axis in range(-1, x.ndim):
            # Half the true range, so that some elements clamp; and ranges of the special kinds among them.
            r = ops.amax(x.clamp(-4, 4), axis) * 0.5
            if r.numel() > 3:
                r.view(-1)[:3] = torch.tensor([math.nan, 0.0, numerics.RANGE_FLOOR])
            form = (4, True) if axis % 2 == 0 else (8, False)
            assert_equal("quantize", kernel, lambda x=x, r=r, f=form: ops.quantize(x, r, None, stream, *f))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "sr"])
def test_quantize_to_each_format(isa, bits, signed, rounding):
    stream = torch.tensor(123456789012345) if rounding == "sr" else None
    q = numerics.IntFormat(bits, signed).qmax
    # every half of a step and its neighbours: the ties, and what is just off them
    halves = torch.arange(-2 * q - 3, 2 * q + 4, dtype=torch.float32) / 2
    x = torch.cat([halves, torch.nextafter(halves, torch.tensor(1e9)), torch.nextafter(halves, torch.tensor(-1e9))])
    r = torch.tensor([float(q)])
    assert_equal(
        "quantize", kernel_for(f"quantize_{rounding}", isa), lambda: ops.quantize(x, r, None, stream, bits, signed)
    )


@pytest.mark.parametrize("rounding", ["nearest", "sr"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_quantize_of_nan_and_inf_is_zero_or_clamped(isa, rounding, axis):
    stream = torch.tensor(1) if rounding == "sr" else None
    x = floats((6, 50))
    x.view(-1)[::7], x.view(-1)[1::7], x.view(-1)[2::7] = math.nan, math.inf, -math.inf
    for r in (ops.amax(x, axis), ops.amax(x.nan_to_num(0, 0, 0), axis), torch.zeros(1, 1)):
        codes = assert_equal(
            "quantize", kernel_for(f"quantize_{rounding}", isa), lambda r=r: ops.quantize(x, r, None, stream, 5, True)
        )
        assert codes[x.isnan()].abs().sum() == 0


@pytest.mark.parametrize("rounding", ["nearest", "sr"])
@pytest.mark.parametrize("shape", [(4, 6, 8, 8), (3, 40, 5, 5), (2, 5, 9, 4), (30, 70), (64, 9)], ids=str)
def test_quantize_with_shift(isa, shape, rounding):
    stream = torch.tensor(99) if rounding == "sr" else None
    kernel = kernel_for(f"quantize_{rounding}", isa)
    for layout in layouts_of(shape)[:3]:
        x = laid_out(floats(shape), layout)
        for axis in range(-1, 2):
            r = ops.amax(x.clamp(-4, 4), axis)
            for along in range(-1, x.ndim):  # also along another axis than the range's
                count = x.shape[along] if along >= 0 else 1
                shift = reshaped(torch.arange(count, dtype=torch.uint8) % 24, x, along)
                assert_equal("quantize", kernel, lambda x=x, r=r, e=shift: ops.quantize(x, r, e, stream, 4, True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(4, 20, 40, 40), (4, 20, 41, 41)], ids=str)
def test_quantize_on_threads(isa, threads, shape, layout):
    x = laid_out(floats(shape), layout)
    r = ops.amax(x.clamp(-4, 4), 1)
    for rounding, stream in (("nearest", None), ("sr", torch.tensor(-5))):
        assert_equal(
            "quantize", kernel_for(f"quantize_{rounding}", isa), lambda s=stream: ops.quantize(x, r, None, s, 4, True)
        )


def test_a_range_for_each_of_two_axes(isa):
    x = laid_out(floats((3, 4, 40)), "contiguous")
    r = x.abs().amax(2, keepdim=True)
    assert_equal("quantize", kernel_for("quantize_nearest", isa), lambda: ops.quantize(x, r, None, None, 4, True))


# ---------------------------------------------------------------------------------------------------------- pack


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 63, 4097, 70_001])
def test_pack_and_unpack(isa, bits, signed, n):
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    codes = torch.randint(low, high, (n,)).to(numerics.IntFormat(bits, signed).dtype)
    packed = assert_equal("pack_codes", kernel_for("pack_codes", isa), lambda: pack_codes(codes, bits))
    restored = assert_equal(
        "unpack_codes", kernel_for("unpack_codes", isa), lambda: unpack_codes(packed, n, bits, signed)
    )
    assert torch.equal(restored, codes)


def test_pack_on_threads(isa, threads):
    codes = torch.randint(-15, 16, (200_003,)).to(torch.int8)
    packed = assert_equal("pack_codes", kernel_for("pack_codes", isa), lambda: pack_codes(codes, 5))
    assert_equal("unpack_codes", kernel_for("unpack_codes", isa), lambda: unpack_codes(packed, len(codes), 5, True))


# ---------------------------------------------------------------------------------------------------------- norm

BATCH_NORMS = [((*s,), (0, 2, 3), (0, 2, 3)) for s in SHAPES_4D] + [((50, 10), (0,), (0,)), ((300, 64), (0,), (0,))]
LAYER_NORMS = [((40, 64), (1,), (0,)), ((7, 19), (1,), (0,)), ((3, 4, 50), (2,), (0, 1)), ((3, 4, 50), (1, 2), (0,))]
LAYER_NORMS += [((5, 1), (1,), (0,)), ((1, 70), (1,), (0,)), ((2, 5000), (-1,), (0,))]


def byte_codes(shape, dtype: torch.dtype, kind: str) -> torch.Tensor:
    info = torch.iinfo(dtype)
    if kind == "random":
        return torch.randint(info.min, info.max + 1, shape).to(dtype)
    return torch.full(shape, info.max if kind == "max" else info.min).to(dtype)


def check_norm(isa: str, shape, dims, param_dims, layout: str, kind: str, l2: bool, dtype=torch.int8) -> None:
    q = laid_out(byte_codes(shape, dtype, kind), layout)
    n = math.prod(shape[d] for d in dims)
    stats = assert_equal("norm_stats", kernel_for("norm_stats", isa), lambda: norm_ops.norm_stats(q, list(dims), l2))
    total, _, least, greatest = stats
    top = torch.maximum(n * greatest - total, total - n * least)
    factor = torch.where(top > 0, (7 * 2.0**16 / top.double().clamp(min=1)).float(), torch.zeros(()))
    axes = {d % q.ndim for d in param_dims}
    param_shape = [1 if i in axes else s for i, s in enumerate(shape)]
    q_gamma, beta = byte_codes(param_shape, torch.int8, "random"), torch.randn(param_shape)
    scale = torch.rand(total.shape)
    _, k = assert_equal(
        "norm_apply",
        kernel_for("norm_apply", isa),
        lambda: norm_ops.norm_apply(q, total, factor, n, 4, q_gamma, scale, beta),
    )
    assert k.abs().max() <= 7

    g, saved = (laid_out(byte_codes(shape, torch.int8, kind), layout) for _ in range(2))
    a, u, v, t = (torch.randn(total.shape) for _ in range(4))
    for gamma in (q_gamma, torch.full([1] * q.ndim, -128, dtype=torch.int8)):
        assert_equal(
            "norm_grad_stats",
            kernel_for("norm_grad_stats", isa),
            lambda m=gamma: norm_ops.norm_grad_stats(g, saved, m, list(dims), list(param_dims)),
        )
        assert_equal(
            "norm_grad_apply",
            kernel_for("norm_grad_apply", isa),
            lambda m=gamma: norm_ops.norm_grad_apply(g, saved, m, a, u, v, t, l2),
        )


@pytest.mark.parametrize("kind", ["random", "max", "min"])
@pytest.mark.parametrize(("shape", "dims", "param_dims"), BATCH_NORMS + LAYER_NORMS, ids=str)
def test_norm(isa, shape, dims, param_dims, kind):
    for layout in ("contiguous", "channels_last", "offset", "strided"):
        if layout == "channels_last" and len(shape) != 4:
            continue
        for l2, dtype in ((False, torch.int8), (True, torch.uint8), (False, torch.uint8)):
            check_norm(isa, shape, dims, param_dims, layout, kind, l2, dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batch_norm_on_threads(isa, threads, layout):
    check_norm(isa, (4, 20, 40, 41), (0, 2, 3), (0, 2, 3), layout, "random", False)


def test_layer_norm_on_threads(isa, threads):
    check_norm(isa, (300, 200), (1,), (0,), "contiguous", "random", False)


@pytest.mark.parametrize("kind", ["max", "min"])
def test_norm_sums_at_their_bounds(isa, kind):
    """A long statistic of extreme codes: strips of 16 bits, calls of 32 and the whole in 64 all reach their limits."""
    check_norm(isa, (1, 1 << 17), (1,), (0,), "contiguous", kind, True)
    check_norm(isa, (1 << 17, 1), (0,), (0,), "contiguous", kind, True)


def test_deviations_beyond_32_bits(isa):
    """n q - S of a statistic over more than 2^23 codes leaves int32: another kernel, the same numbers."""
    q, n = byte_codes((3, 50), torch.int8, "random"), 1 << 24
    total = torch.tensor([[-(1 << 31) + 1], [0], [123456789]])
    factor, one = torch.full((3, 1), 2.0**-13), torch.ones(1, 1)
    gamma = torch.ones(1, 50, dtype=torch.int8)
    for codes in (q, q.view(torch.uint8)):
        assert_equal(
            "norm_apply",
            "norm_apply_int64",
            lambda c=codes: norm_ops.norm_apply(c, total, factor, n, 8, gamma, one, one),
        )


def test_a_statistic_apart_in_memory_is_left_to_the_reference():
    q = torch.randint(-7, 8, (4, 5, 6)).to(torch.int8)
    norm_ops.norm_stats(q, [1], False)  # keeps axes 0 and 2
    assert ops.last_kernel["norm_stats"] == "reference"
    with ops.use_backend("cpu"), pytest.raises(ops.BackendError, match="norm_stats"):
        norm_ops.norm_stats(q, [1], False)


# ----------------------------------------------------------------------------------------------------------- ISAs


def test_forcing_an_isa_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="does not exist"):
        _native.force_isa("avx1024")


def test_threads_are_torchs_own(request):
    """One pool in the process: the library runs on the OpenMP runtime of the torch that is loaded."""
    if request.config.getoption("runner", None):
        pytest.skip("the kernels run in another process")
    if not Path("/proc/self/maps").exists():
        pytest.skip("mapped files cannot be listed here")
    assert Path(torch.__file__).parent in Path(_native.thread_runtime).parents
