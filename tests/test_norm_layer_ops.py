"""norm_forward and norm_backward on the CPU equal their references bit for bit: every norm, layout, ISA and threads."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import norm_layer_calls
from kernel_table import kernel_for
from subbyte import ops
from subbyte.backends import _native
from subbyte.norm import LAYER_NORM, RMS_NORM, Geometry, batch_norm, group_norm
from subbyte.ops import norm_layer
from test_backend_cpu_elementwise import assert_equal, isa, threads  # noqa: F401  (fixtures)

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason or "loaded")
LAST = torch.channels_last


def cases() -> Iterator[tuple[Tensor, Geometry]]:
    generator = torch.Generator().manual_seed(0)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for shape in ((4, 16, 8, 8), (3, 5, 7, 3), (2, 70, 6, 6), (2, 3, 33, 31), (5, 1, 2, 2)):
        yield floats(*shape), batch_norm(4)
        yield floats(*shape).contiguous(memory_format=LAST), batch_norm(4)
    yield floats(50, 17), batch_norm(2)
    for rows, columns in ((40, 72), (300, 17), (1, 33), (7, 1)):
        yield floats(rows, columns), LAYER_NORM
        yield floats(rows, columns), RMS_NORM
    for shape in ((3, 4, 5, 6, 7), (3, 4, 1, 6, 7), (1, 3, 2, 4, 9), (4, 1, 6, 3, 3), (2, 3, 4, 1)):
        yield floats(*shape), group_norm(len(shape))


def codes_of(t: Tensor) -> Tensor:
    """Bits to compare: one NaN is as good as another."""
    if t.is_floating_point():
        t = torch.where(t.isnan(), math.nan, t)
    return t.view(torch.int64) if t.dtype == torch.float64 else t


def check(isa: str, x: Tensor, geo: Geometry, l2: bool, fine: bool, affine: bool, saved_bits: int):  # noqa: F811
    dims, over = list(geo.dims), list(geo.param_dims)
    per = norm_layer_calls.per
    r = norm_layer_calls.range_of(x, per(x, dims) if fine else [1] * x.ndim)
    gamma, beta = (torch.randn(per(x, over)) if affine else None for _ in range(2))

    def forward() -> tuple[Tensor, ...]:
        out = norm_layer.norm_forward(x, r, gamma, beta, dims, over, 1e-5, 8, 8, saved_bits, 7, l2, geo.centred)
        return tuple(codes_of(t) for t in out)

    _, *kept, _, d = assert_equal("norm_forward", kernel_for("norm_forward", isa), forward)
    g = torch.empty_like(x).copy_(torch.randn(x.shape))
    r_g = norm_layer_calls.range_of(g, per(g, [*dims, *over]) if fine else [1] * x.ndim)
    form = (dims, over, 8, saved_bits, l2, geo.centred)
    assert_equal(
        "norm_backward",
        kernel_for("norm_backward", isa),
        lambda: tuple(
            codes_of(t) for t in norm_layer.norm_backward(g, r_g, torch.tensor(77), *kept, d.view(torch.float64), *form)
        ),
    )


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("l2", [False, True])
def test_every_norm(isa, l2, affine):  # noqa: F811
    for x, geo in cases():
        for fine, saved_bits in ((True, 6), (False, 8), (True, 3)):
            check(isa, x, geo, l2, fine, affine, saved_bits)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 1e-30])
def test_what_is_not_finite_or_constant(isa, value):  # noqa: F811
    for x, geo in cases():
        x[(0,) * x.ndim] = value
        check(isa, x, geo, False, True, True, 6)
        check(isa, torch.full_like(x, value), geo, False, False, True, 6)


def test_on_threads(isa, threads):  # noqa: F811
    x = torch.randn(4, 20, 40, 41)
    check(isa, x, batch_norm(4), False, True, True, 6)
    check(isa, x.contiguous(memory_format=LAST), batch_norm(4), False, True, True, 6)
    check(isa, x.view(4, 5, 4, 40, 41), group_norm(5), False, True, True, 6)
    check(isa, x.reshape(320, -1), LAYER_NORM, False, True, True, 6)


@pytest.mark.parametrize("name", norm_layer_calls.CALLS)
def test_the_calls_of_every_op(isa, name):  # noqa: F811
    for args in norm_layer_calls.CALLS[name](5):
        run = getattr(torch.ops.subbyte, name).default
        assert_equal(name, kernel_for(name, isa), lambda run=run, args=args: tuple(codes_of(t) for t in run(*args)))


def test_statistics_apart_in_memory_are_left_to_the_reference():
    x = torch.randn(2, 3, 4, 5).permute(0, 2, 1, 3)
    args = norm_layer_calls.norm_forward(1)[0]
    r = norm_layer_calls.range_of(x, [1] * 4)
    with ops.use_backend("cpu"), pytest.raises(ops.BackendError, match="norm_forward"):
        norm_layer.norm_forward(x, r, None, None, [2, 3], [0, 3], *args[6:])
