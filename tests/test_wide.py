"""int4-wide: gradients of a net whose channels lie 12 octaves apart point where those of the net as it is point."""

import pytest
import torch
from torch.nn import functional as F

import subbyte as sb
from subbyte import models


def weight_gradients(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """One row for each output channel of each convolution, after a backward pass on fixed noise."""
    torch.manual_seed(2)
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    return {name: p.grad.flatten(1).clone() for name, p in net.named_parameters() if p.ndim == 4}


def alike(model: str, scheme: str) -> list[float]:
    """The cosine between gradients quantized and in floats, of each convolution: the mean over its output channels."""
    torch.manual_seed(0)
    net = models.build(model, 10, image_size=16)
    exact = weight_gradients(net)
    ours = weight_gradients(sb.quantize_(net, scheme))
    assert len(exact) == 7
    return [F.cosine_similarity(exact[name], ours[name]).mean().item() for name in exact]


@pytest.mark.parametrize("scheme", ["int4", "int6", "int8"])
def test_one_scale_for_all_channels_is_lost(scheme):
    assert min(alike("resnet8", scheme)) > 0.5
    assert max(alike("resnet8+gains", scheme)) < 0.15


def test_an_exponent_for_each_channel_is_not():
    together, apart = alike("resnet8", "int4-wide"), alike("resnet8+gains", "int4-wide")
    assert min(apart) > 0.45
    assert all(abs(a - b) < 0.1 for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize("model", ["resnet8", "resnet8+gains"])
def test_every_product_is_an_integer_one(model):
    net = sb.quantize_(models.build(model, 10, image_size=16), "int4-wide")
    report = sb.report(net, torch.randn(4, 3, 16, 16), torch.arange(4), F.cross_entropy)
    assert report.integer_share == 1.0
    exponents = report.layers["layer2.0.conv1"].gradient_exponents
    assert (exponents.max() >= 8) == (model == "resnet8+gains")
