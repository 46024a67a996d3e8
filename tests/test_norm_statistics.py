"""BatchNorm2d's buffers in torch's units, frozen statistics, and hard inputs of both norms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models_for_tests import L1_FACTOR, distance, relative
from subbyte import AbsMax, NormScheme, PerChannel, TokenShiftQuant
from subbyte.numerics import draw_stream
from test_norm_layers import KINDS, batch_norm, float_scheme, images, layer_norm, scheme

# ------------------------------------------------------------------------------------------------ running statistics


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_running_buffers_are_in_torchs_units(kind, quantized):
    layer = batch_norm(scheme(kind) if quantized else float_scheme(kind), momentum=1.0)
    x = images()
    layer(x)
    seen = PerChannel(8, axis=1)(x).dequantize(torch.float64) if quantized else x.double()
    mu = seen.mean((0, 2, 3))
    if kind == "l1":
        d = L1_FACTOR * (seen - mu.view(-1, 1, 1)).abs().mean((0, 2, 3)) + math.sqrt(layer.eps)
    else:
        d = (seen.var((0, 2, 3)) + layer.eps).sqrt()
    assert relative(layer.running_mean, mu) < 1e-6
    assert relative(torch.sqrt(layer.running_var.double() + layer.eps), d) < 1e-6
    assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_running_buffers_over_several_batches(momentum):
    ours, theirs = batch_norm(float_scheme("l2"), momentum=momentum), nn.BatchNorm2d(5, momentum=momentum)
    for i in range(4):
        x = images() * (i + 1)
        ours(x)
        theirs(x)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert relative(a, b) < 1e-5
    assert int(ours.num_batches_tracked) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_eval_is_the_float_batch_norm_of_its_buffers(kind):
    x = images()
    for s, low, high in ((float_scheme(kind), 0, 1e-5), (scheme(kind), 1e-4, 0.03)):
        layer = batch_norm(s)
        for _ in range(3):
            layer(x)
        layer.eval()
        theirs = F.batch_norm(
            x.double(), *(t.double() for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias))
        )
        assert low <= distance(layer(x), theirs) < high
        assert int(layer.num_batches_tracked) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("clip", "groups"), [(1.0, 1), (0.6, 3)])
def test_frozen_equals_a_float64_model_of_the_same_codes(kind, clip, groups):
    bits = 8 if groups == 1 else 6
    layer, x = batch_norm(scheme(kind, gradient=bits, clip=clip, groups=groups)), images()
    for _ in range(3):
        layer(x)
    layer.eval()
    before = [b.clone() for b in layer.buffers()]
    data = x.clone().requires_grad_()
    y = layer(data)
    g = torch.randn_like(y)
    torch.manual_seed(9)
    y.backward(g)
    torch.manual_seed(9)
    stream = draw_stream(1)[0]
    qx = PerChannel(8, axis=1, clip=clip)(x).dequantize(torch.float64)
    by_channel = PerChannel(bits, rounding="stochastic", axis=1)
    by_token = TokenShiftQuant(bits, rounding="stochastic", groups=groups)
    qg = (by_token if groups > 1 else by_channel)(g, stream).dequantize(torch.float64)
    gamma = AbsMax(8)(layer.weight.detach()).dequantize(torch.float64).view(1, -1, 1, 1)
    mean = layer.running_mean.double().view(1, -1, 1, 1)
    d = torch.sqrt(layer.running_var.double() + layer.eps).view(1, -1, 1, 1)
    xhat = (qx - mean) / d
    k = PerChannel(8, axis=1)(xhat.float()).dequantize(torch.float64)
    assert 1e-3 < distance(k, xhat) < 1e-2
    assert relative(y, k * gamma + layer.bias.double().view(1, -1, 1, 1)) < 1e-5
    assert relative(data.grad, qg * gamma / d) < 1e-5
    assert relative(layer.weight.grad, (qg * k).sum((0, 2, 3))) < 1e-5
    assert relative(layer.bias.grad, qg.sum((0, 2, 3))) < 1e-5
    assert distance(data.grad, g * layer.weight.view(1, -1, 1, 1) / d) > 1e-4
    assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))


@pytest.mark.parametrize("clip", [1.0, 0.6])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_eval_is_the_function_that_was_trained(bits, clip):
    """By the statistics of the batch itself it computes what train mode does: with few bits xhat is far from exact."""
    tensors = dict(input=8, normalized=bits, saved=bits, weight=8, gradient=8)
    layer, x = batch_norm(NormScheme("l1", **tensors, clip=clip), momentum=1.0), images()
    train = layer(x)
    y = layer.eval()(x)
    assert (y - train).abs().max() < 1e-4 * train.abs().max()
    exact = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)
    assert distance(y, exact) > 0.1 / 2**bits


@pytest.mark.parametrize("kind", KINDS)
def test_without_running_statistics_eval_uses_the_batch(kind):
    layer, x = batch_norm(scheme(kind), track_running_stats=False), images()
    train = layer(x)
    assert layer.running_mean is None
    assert torch.equal(layer.eval()(x), train)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_kept_without_gradients(kind):
    layer, x = batch_norm(scheme(kind)), images()
    with torch.no_grad():
        layer(x)
    assert int(layer.num_batches_tracked) == 1
    assert not torch.equal(layer.running_mean, torch.zeros(5))


# ------------------------------------------------------------------------------------------------------ hard inputs


@pytest.mark.parametrize("kind", KINDS)
def test_constant_and_zero_channels(kind):
    layer, x = batch_norm(scheme(kind)), images()
    x[:, 0], x[:, 1] = 3.0, 0.0
    x.requires_grad_()
    y = layer(x)
    for c in (0, 1):
        assert torch.equal(y[:, c], layer.bias[c].expand_as(y[:, c]))
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    assert torch.equal(layer.weight.grad[:2], torch.zeros(2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_stays_in_its_channel_and_surfaces(kind):
    for bad in (math.nan, math.inf, -math.inf):
        layer, x = batch_norm(scheme(kind)), images()
        x[1, 2, 3, 4] = bad
        x.requires_grad_()
        y = layer(x)
        channel = torch.arange(5) == 2
        assert y[:, channel].isnan().all()
        assert y[:, ~channel].isfinite().all()
        y.backward(torch.ones_like(y))
        assert x.grad[:, channel].isnan().all()
        assert layer.weight.grad.isnan().tolist() == channel.tolist()
        assert layer.running_mean.isnan().tolist() == channel.tolist()


def test_layer_norm_of_nan():
    layer = layer_norm(scheme("l1"))
    x = torch.randn(4, 24)
    x[1, 2] = math.nan
    assert layer(x)[1].isnan().all()
    x = torch.randn(4, 24, requires_grad=True)
    g = torch.randn(4, 24)
    g[0, 0] = math.nan
    layer(x).backward(g)
    assert x.grad[0].isnan().all()
    assert layer.weight.grad.isnan().any()
    assert layer.bias.grad.isnan().any()


def test_wrong_inputs():
    with pytest.raises(ValueError, match="more than 1 value"):
        batch_norm(scheme("l1"))(torch.randn(1, 5, 1, 1))
    with pytest.raises(ValueError, match=r"5.*\(2, 4, 3, 3\)"):
        batch_norm(scheme("l1"))(torch.randn(2, 4, 3, 3))
    with pytest.raises(ValueError, match="4D"):
        batch_norm(scheme("l1"))(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"24.*\(3, 23\)"):
        layer_norm(scheme("l1"))(torch.randn(3, 23))


def test_layer_norm_shapes():
    layer = layer_norm(scheme("l1"), (3, 8))
    x = torch.randn(2, 5, 3, 8)
    torch.manual_seed(0)
    y = layer(x)
    flat = layer_norm(scheme("l1"), 24)
    flat.load_state_dict({k: v.flatten() for k, v in layer.state_dict().items()})
    torch.manual_seed(0)
    assert torch.equal(y, flat(x.flatten(2)).view_as(x))
    assert layer(x[0, 0]).shape == (3, 8)
