"""Weight standardization, gains of channels, and the small Transformer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import subbyte as sb
from subbyte import models
from subbyte.models.reparametrize import GAIN_OCTAVES, ChannelGains, WeightStandardization
from subbyte.quantizers import AbsMax
from subbyte.scheme import RECIPES, LayerScheme, NormScheme, Scheme


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, 10)


def test_standardized_weights_have_mean_0_and_variance_1_over_fan_in():
    for conv in convolutions(build("resnet8+ws")):
        w = conv.weight.flatten(1)
        assert w.mean(1).abs().max() < 1e-6
        assert torch.allclose(w.var(1, correction=0), torch.full((len(w),), 1 / w.shape[1]), rtol=1e-3)


def test_the_gradient_of_standardization_is_that_of_its_formula():
    torch.manual_seed(0)
    v = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(WeightStandardization(), (v,))


def test_gains_change_no_function_and_no_gradient_but_those_of_the_convolutions_output():
    plain, gained = build("resnet8"), build("resnet8+gains")
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8)
    grads: dict[str, list[torch.Tensor]] = {}
    for name, model in (("plain", plain), ("gained", gained)):
        model.double()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 1e-15  # what makes a norm depend on the scale of its input
        conv = convolutions(model)[2]
        conv.register_forward_hook(
            lambda m, i, out, name=name: out.register_hook(lambda g: grads.setdefault(name, []).append(g)) and None
        )
        nn.functional.cross_entropy(model(x.double()), y).backward()
    assert torch.allclose(plain(x.double()), gained(x.double()), rtol=1e-6)
    for a, b in zip(plain.parameters(), gained.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-6, atol=1e-12)
    gain = ChannelGains(16).gain.double().view(1, -1, 1, 1)
    assert float(gain.max() / gain.min()) > 2 ** (GAIN_OCTAVES - 2)
    assert torch.allclose(grads["plain"][0], grads["gained"][0] * gain, rtol=1e-6, atol=1e-12)


def test_a_reparametrized_net_is_quantized_and_keeps_its_parameters():
    model = build("resnet8+ws")
    names = [name for name, _ in model.named_parameters()]
    sb.quantize_(model, "int4")
    assert [name for name, _ in model.named_parameters()] == names
    x = torch.randn(4, 3, 32, 32)
    report = sb.report(model, x, torch.arange(4), nn.CrossEntropyLoss())
    assert report.integer_share == 1.0


def test_one_scale_fails_where_channels_lie_apart():
    """The gradient of the gained net by one scale has lost most of itself; the float one hasn't."""
    x, y = torch.randn(32, 3, 32, 32), torch.arange(32) % 10

    def weight_gradient(name: str, bits: int | None) -> torch.Tensor:
        model = build(name)
        if bits:
            quantizer = AbsMax(bits, rounding="stochastic")
            sb.quantize_(model, Scheme("g", LayerScheme(gradient=quantizer), RECIPES["float"].norm))
        nn.functional.cross_entropy(model(x), y).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.ndim > 1])

    for name, low, high in (("resnet8", 0.01, 0.9), ("resnet8+gains", 3.0, 1e9)):
        exact = weight_gradient(name, None)
        assert low < float((weight_gradient(name, 4) - exact).norm() / exact.norm()) < high, name


def test_the_small_transformer_trains_in_integers():
    model = build("smallvit")
    assert sum(p.numel() for p in model.parameters()) == 236_362
    sb.quantize_(model, "int4")
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_transformer_wants_whole_patches():
    with pytest.raises(ValueError, match="30 is no multiple"):
        models.build("smallvit", 10, image_size=30)


def test_unknown_suffixes_are_refused():
    with pytest.raises(ValueError, match=r"unknown suffix '\+wz' of 'resnet8'; known are \+ws, \+gains"):
        models.build("resnet8+wz", 10)


def test_l1_norms_in_floats_are_no_scheme_of_torch():
    float_scheme = RECIPES["float"]
    assert float_scheme.is_torch
    l1 = dataclasses.replace(float_scheme, norm=NormScheme("l1", None, None, None, None, None))
    assert l1.is_float
    assert not l1.is_torch
