"""Layers and fused nets in bfloat16, by autocast or throughout: no copy to float32, and fused the same bits.

What single ops do in bfloat16: test_backend_cpu_halves.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import subbyte as sb
from half_calls import half
from integer_nets import needs_library
from test_fusion import OWN, Block, Net, images, pair
from test_fusion import assert_same as assert_equal_steps

LAST = torch.channels_last


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
