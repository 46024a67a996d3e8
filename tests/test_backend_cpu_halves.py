"""Tensors of floats in bfloat16: kernels read and write them as they lie, and give the bits of the reference.

The reference widens what it reads to float32, which is exact, and rounds what it writes once, half to even.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from half_calls import HALF_CALLS, READS, half
from integer_nets import needs_library
from op_calls import CALLS
from products_for_tests import FEW_BITS
from subbyte import ops
from subbyte.backends import _native
from test_kernel_table import CASES

LAST = torch.channels_last


@pytest.fixture(params=_native.isas() or ["none"])
def isa(request):
    with _native.forced_isa(request.param):
        yield request.param


def run(backend: str, name: str, args: tuple) -> tuple[Tensor, ...]:
    with ops.use_backend(backend):
        out = getattr(torch.ops.subbyte, name).default(*args)
    return out if isinstance(out, (tuple, list)) else (out,)


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert ours.stride() == theirs.stride()


def test_every_op_that_takes_floats_is_here():
    taking = {name for name, calls in CALLS.items() if any(isinstance(a, Tensor) for a in calls(1)[0])}
    assert set(HALF_CALLS) <= taking
    assert all(args[0].dtype == torch.bfloat16 for name in READS for args in HALF_CALLS[name](1))


@needs_library
@pytest.mark.parametrize("name", HALF_CALLS)
def test_each_isa_equals_the_reference(isa, name):
    for args in HALF_CALLS[name](3):
        got, want = run("cpu", name, args), run("reference", name, args)
        assert ops.last_kernel[name] == "reference"
        assert_same(got, want)


@needs_library
@pytest.mark.parametrize("name", HALF_CALLS)
def test_threads_do_not_show(name):
    before = torch.get_num_threads()
    try:
        for args in HALF_CALLS[name](12):
            torch.set_num_threads(1)
            want = run("cpu", name, args)
            for threads in (2, 3):
                torch.set_num_threads(threads)
                assert_same(run("cpu", name, args), want)
    finally:
        torch.set_num_threads(before)


@needs_library
@pytest.mark.parametrize("name", HALF_CALLS)
def test_the_fake_of_an_op_says_what_it_gives(name):
    for args in HALF_CALLS[name](1)[:4]:
        torch.library.opcheck(
            getattr(torch.ops.subbyte, name).default, args, test_utils=("test_schema", "test_faketensor")
        )


def floats_of(args: tuple) -> tuple:
    """The same call with its first tensor as float32."""
    return args[0].float(), *args[1:]


RANGE_OF_NEXT = {"chain_norm": 9, "chain_norm_grad": 6}
"""Where an op gives the range of what the next pass makes."""


@pytest.mark.parametrize("name", READS)
def test_what_is_read_as_bfloat16_counts_as_the_same_float32(name):
    """Codes, ranges and sums are those of the widened tensor; results in bfloat16 are the float32 ones, rounded."""
    for args in HALF_CALLS[name](2):
        got, want = run("reference", name, args), list(run("reference", name, floats_of(args)))
        if name in RANGE_OF_NEXT:  # of floats that the chain's next pass rounds
            want[RANGE_OF_NEXT[name]] = half(want[RANGE_OF_NEXT[name]]).float()
        for ours, wide in zip(got, want, strict=True):
            torch.testing.assert_close(ours, wide.to(ours.dtype), rtol=0, atol=0, equal_nan=True)


PRODUCTS = [
    *("gemm", "conv2d", "conv2d_grad_input", "conv2d_winograd", "conv2d_winograd_grad_input"),
    *("conv2d_planes", "conv2d_planes_grad_input", *list(FEW_BITS.values())[:3]),
]


@needs_library
@pytest.mark.parametrize("op", PRODUCTS)
@pytest.mark.parametrize("scale", [0.7, 2.0**-133, 1e38, 3.39e38, float("nan")])
def test_each_product_kernel_rounds_as_the_reference(isa, op, scale):
    """Extremes of codes, in both layouts: sums that become subnormal, that round up to infinity, and NaN."""
    rows = {row_op: kernel for row_op, kernel, row_isa in _native.kernels() if row_isa == isa}
    if op not in rows:
        pytest.skip(f"{isa} has no kernel of its own for {op}")
    name, calls = CASES[op]()
    if name == "int_matmul":
        name = "scaled_matmul"
        calls = [(*args, torch.full((1, 1), scale), torch.ones(1, 1), None) for args in calls]
    else:
        calls = [(*args[:10], torch.full((1, 1, 1, 1), scale), *args[11:]) for args in calls]
        if op not in ("conv2d_winograd", "conv2d_winograd_grad_input"):
            calls += [(args[0].contiguous(memory_format=LAST), *args[1:]) for args in calls]
    for args in calls:
        got = run("cpu", name, (*args, True))
        assert ops.last_kernel[name] == rows[op]
        assert_same(got, run("reference", name, (*args, True)))
        assert got[0].dtype == torch.bfloat16


@needs_library
def test_every_bit_pattern_is_read_and_written(isa):
    """All 65,536 numbers of bfloat16: their ranges and codes; and float32 sums half way between two of them."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16).view(256, 256)
    for args in ((every, -1), (every[:64], 0), (every, 1)):
        assert_same(run("cpu", "amax", args), run("reference", "amax", args))
    for r in (1.0, 1e-30, 3e38):
        for stream in (None, torch.tensor(3)):
            args = (every, torch.tensor([[r]]), None, stream, 8, True)
            assert_same(run("cpu", "quantize", args), run("reference", "quantize", args))
    ties = torch.arange(1, 128, dtype=torch.int8).view(1, -1, 1, 1).expand(1, 127, 3, 3).contiguous(memory_format=LAST)
    eye = torch.eye(127, dtype=torch.int8).view(127, 127, 1, 1)
    for scale in ((1 << 8) + 0.5, 257 / 2**140, 3.4e38 / 127):
        args = (ties, None, 8, True, 0, eye, None, 8, True, 0, torch.full((1, 1, 1, 1), scale), None)
        args = (*args, [1, 1], [0, 0], [1, 1], 1, True)
        got = run("cpu", "scaled_conv2d", args)
        assert_same(got, run("reference", "scaled_conv2d", args))
        wide = run("cpu", "scaled_conv2d", args[:-1])
        assert not torch.equal(wide[0], got[0].float())  # rounding did something
        assert torch.equal(wide[0].to(torch.bfloat16), got[0])
