"""Tensors of floats in bfloat16: kernels read and write them as they lie, and give the bits of the reference.

The reference widens what it reads to float32, which is exact, and rounds what it writes once, half to even.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import subbyte as sb
from half_calls import HALF_CALLS, READS, half
from integer_nets import needs_library
from op_calls import CALLS
from products_for_tests import FEW_BITS
from subbyte import ops
from subbyte.backends import _native
from test_fusion import OWN, Block, Net, images, pair
from test_fusion import assert_same as assert_equal_steps
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


class Casts(TorchDispatchMode):
    """Counts copies of a tensor of at least `large` elements into another type of floats."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.found = large, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.numel() >= self.large:
            self.found.append((tuple(out.shape), args[0].dtype, out.dtype))
        return out


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    image, rows = torch.randn(4, 16, 12, 12), torch.randn(96, 64)
    last = image.contiguous(memory_format=LAST)
    return {
        "Linear": (nn.Linear(64, 48), rows),
        "Conv2d": (nn.Conv2d(16, 16, 3, padding=1), image),
        "Conv2d channels_last": (nn.Conv2d(16, 16, 3, padding=1).to(memory_format=LAST), last),
        "depthwise": (nn.Conv2d(16, 16, 3, padding=1, groups=16), image),
        "BatchNorm2d": (nn.BatchNorm2d(16), image),
        "BatchNorm2d channels_last": (nn.BatchNorm2d(16), last),
        "GroupNorm": (nn.GroupNorm(4, 16), image),
        "LayerNorm": (nn.LayerNorm(64), rows),
        "RMSNorm": (nn.RMSNorm(64), rows),
    }


@needs_library
@pytest.mark.parametrize("scheme", ["int4", "int6", "int8"])
@pytest.mark.parametrize("name", layers())
def test_no_layer_copies_bfloat16_to_float32(name, scheme):
    """Forward and backward of a layer under autocast: activations and gradients stay as they are."""
    torch.manual_seed(0)
    layer, x = layers()[name]
    model = sb.quantize_(nn.Sequential(layer), sb.Scheme.from_name(scheme))
    x = half(x).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with Casts(x.numel() // 2) as casts:
            y = model(x)
        assert y.dtype == torch.bfloat16
        g = torch.randn_like(y)
    with casts:
        y.backward(g)
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())
    assert not casts.found
    assert not any(kernel == "reference" for kernel in layer.record.kernels.values())


def autocast(model: nn.Module):
    """The model's forward under autocast to bfloat16."""

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    return call


@needs_library
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("scheme", ["int4", "int6", "int8", *OWN.values()], ids=["int4", "int6", "int8", *OWN])
def test_fused_nets_equal_the_layers_one_by_one(scheme, layout):
    torch.manual_seed(0)
    unfused, fused = pair(Net(Block(8), Block(8, swapped=True)), scheme, images(3, 3, 7, 5, layout=layout))
    assert_equal_steps(unfused, fused, images(3, 3, 7, 5, layout=layout), call=autocast)
    for m in (unfused, fused):  # weights and norms in bfloat16, too
        m.bfloat16()
    ran = fused.body[1].bn1.record.kernels
    ran.clear()
    assert_equal_steps(unfused, fused, half(images(3, 3, 7, 5, layout=layout)), steps=1)
    assert {"chain_norm", "norm_grad_range" if scheme is OWN["few bits"] else "chain_norm_grad"} <= set(ran)
    assert "norm_forward" not in ran


class Written(TorchDispatchMode):
    """The types of what the convolutions of a step give, but for gradients of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "scaled_conv2d" in str(func) and "grad_weight" not in str(func):
            self.types.append((out if isinstance(out, Tensor) else out[0]).dtype)
        return out


@needs_library
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_fused_resnets_write_no_float32(name):
    """Bit for bit, and every activation and gradient between products is bfloat16, in chains as well."""
    torch.manual_seed(0)
    x = images(4, 3, 16, 16)
    unfused, fused = pair(sb.models.build(name, num_classes=5, image_size=32).to(memory_format=LAST), x=x)
    chained = [m.record.kernels for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    for kernels in chained:
        kernels.clear()
    assert_equal_steps(unfused, fused, x, call=autocast, steps=1)
    assert all("chain_norm" in kernels for kernels in chained)
    with Written() as written:
        autocast(fused)(x).sum().backward()
    assert len(written.types) > 2 * len(chained) - 2
    assert set(written.types) == {torch.bfloat16}


@needs_library
def test_a_shortcut_in_float32_is_added_in_float32():
    """The first block of a network that has no stem: its input is float32, what its layers give bfloat16."""
    torch.manual_seed(0)
    unfused, fused = pair(nn.Sequential(Block(8), Block(8)), x=images(3, 8, 6, 6))
    x = images(3, 8, 6, 6)
    assert_equal_steps(unfused, fused, x, call=autocast)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused[0](x).dtype == unfused[0](x).dtype == torch.float32
