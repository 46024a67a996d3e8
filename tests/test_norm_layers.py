"""BatchNorm2d and LayerNorm, L1 and L2: float64 models on codes, gradcheck, torch's buffers, frozen statistics."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import subbyte as sb
from models_for_tests import L1_FACTOR, RECIPES, distance, norm_float64, relative
from subbyte import AbsMax, NormScheme, PerChannel, Scheme, TokenShiftQuant
from subbyte.autograd import STREAMS
from subbyte.numerics import draw_stream

KINDS = ("l1", "l2")
GRANULARITIES = ("channel", "tensor")


def float_scheme(kind: str) -> NormScheme:
    return NormScheme(kind, None, None, None, None, None)


def scheme(kind: str, saved: int = 6, **kwargs) -> NormScheme:
    return NormScheme(kind, saved=saved, **kwargs)


def batch_norm(scheme, channels=5, **kwargs) -> sb.nn.BatchNorm2d:
    torch.manual_seed(1)
    layer = sb.nn.BatchNorm2d(channels, scheme=scheme, **kwargs)
    return _random_affine(layer)


def layer_norm(scheme, shape=24, **kwargs) -> sb.nn.LayerNorm:
    torch.manual_seed(1)
    return _random_affine(sb.nn.LayerNorm(shape, scheme=scheme, **kwargs))


def _random_affine(layer):
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return layer


def images(n=4, channels=5) -> torch.Tensor:
    torch.manual_seed(2)
    return (
        torch.randn(n, channels, 6, 7) * torch.logspace(-2, 1, channels).view(-1, 1, 1)
        + torch.randn(channels)[:, None, None]
    )


def narrowed(k: torch.Tensor, scale: torch.Tensor, scheme: NormScheme) -> torch.Tensor:
    """xhat as kept for backward, from its integer codes in float64."""
    drop = 2 ** (scheme.normalized - scheme.saved)
    top = 2 ** (scheme.saved - 1) - 1
    return torch.round(k / drop).clamp(-top, top) * drop * scale


def model(x, gamma, beta, g, scheme, eps, dims, param_dims, input_axis, gradient_axis, stream):
    """(y, dx, dgamma, dbeta) in float64, each tensor that travels as codes rounded to them first."""

    def codes(t, bits, axis, stream=None):
        rounding = "nearest" if stream is None else "stochastic"
        fine = axis is not None and scheme.granularity == "channel"
        q = PerChannel(bits, rounding=rounding, axis=axis) if fine else AbsMax(bits, rounding=rounding)
        if t is g and scheme.groups > 1:
            q = TokenShiftQuant(bits, rounding=rounding, groups=scheme.groups)
        if t is x:
            q = dataclasses.replace(q, clip=scheme.clip)
        return q(t.detach(), stream).dequantize(torch.float64)

    x = codes(x, scheme.input, input_axis)
    w = torch.ones((), dtype=torch.float64) if gamma is None else codes(gamma, scheme.weight, None)
    b = 0.0 if beta is None else beta.detach().double()
    mu = x.mean(dims, keepdim=True)
    centred = x - mu
    if scheme.kind == "l1":
        d = L1_FACTOR * centred.abs().mean(dims, keepdim=True) + math.sqrt(eps)
    else:
        d = (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    xhat = centred / d
    top = 2 ** (scheme.normalized - 1) - 1
    step = xhat.abs().amax(sorted({*dims, *param_dims}), keepdim=True) / top
    k = torch.round(xhat / step).nan_to_num()  # a channel of one code: 0 / 0
    y = w * (k * step) + b
    k = narrowed(k, step, scheme)
    g = codes(g, scheme.gradient, gradient_axis, stream)
    h = w * g
    mean_hk = (h * k).mean(dims, keepdim=True)
    last = k * mean_hk
    if scheme.kind == "l1":
        last = L1_FACTOR * (k.sign() - k.sign().mean(dims, keepdim=True)) * mean_hk
    dx = (h - h.mean(dims, keepdim=True) - last) / d
    return y, dx, (g * k).sum(param_dims), g.sum(param_dims)


def run(layer, x, seed=5):
    """(y, dx, dgamma, dbeta, g) of the layer, and the gradient's stream."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    torch.manual_seed(seed)
    y = layer(x)
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(y.shape, generator=generator) * torch.linspace(0.1, 2, y.shape[1]).view(1, -1, *[1] * (y.ndim - 2))
    y.backward(g.to(y.dtype))
    torch.manual_seed(seed)
    grads = [None if p is None else p.grad.clone() for p in (layer.weight, layer.bias)]
    return (y.detach(), x.grad, *grads), g, draw_stream(STREAMS)[0]


def assert_close(ours, expected, exact):
    for name, a, b in zip(("y", "dx", "dgamma", "dbeta"), ours, expected, strict=True):
        if a is not None:
            assert a.shape == b.shape, name
            assert relative(a, b) < 1e-5, name
    for name, a, b in zip(("y", "dx", "dgamma", "dbeta"), ours, exact, strict=True):
        if a is not None:
            assert 1e-4 < distance(a, b) < 0.1, name


def exact(x, gamma, beta, g, dims, eps, kind):
    """The same without quantization, by autograd."""
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in (x, gamma, beta)]
    y = norm_float64(*leaves, dims, eps, kind)
    y.backward(g.double())
    return (y.detach(), *(None if t is None else t.grad.reshape(-1) if i else t.grad for i, t in enumerate(leaves)))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_equals_a_float64_model_of_the_same_codes(kind, granularity, affine):
    layer = batch_norm(scheme(kind, granularity=granularity), affine=affine)
    x = images() if granularity == "channel" else torch.randn(4, 5, 6, 7)
    ours, g, stream = run(layer, x)
    gamma, beta = (None if p is None else p.view(1, -1, 1, 1) for p in (layer.weight, layer.bias))
    dims = (0, 2, 3)
    expected = model(x, gamma, beta, g, layer.scheme, layer.eps, dims, dims, 1, 1, stream)
    assert_close(ours, expected, exact(x, gamma, beta, g, dims, layer.eps, kind))
    assert {"norm_forward", "norm_backward"} <= set(layer.record.kernels)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_layer_norm_equals_a_float64_model_of_the_same_codes(kind, granularity, affine):
    layer = layer_norm(scheme(kind, granularity=granularity), elementwise_affine=affine)
    torch.manual_seed(2)
    x = torch.randn(30, 24) * (torch.logspace(-2, 1, 30)[:, None] if granularity == "channel" else 1) + 0.3
    ours, g, stream = run(layer, x)
    gamma, beta = (None if p is None else p.view(1, -1) for p in (layer.weight, layer.bias))
    expected = model(x, gamma, beta, g, layer.scheme, layer.eps, (1,), (0,), 0, None, stream)
    assert_close(ours, expected, exact(x, gamma, beta, g, (1,), layer.eps, kind))
    assert {"norm_forward", "norm_backward"} <= set(layer.record.kernels)


@pytest.mark.parametrize("recipe", RECIPES)
def test_norms_of_the_recipes(recipe):
    for layer, x in (
        (batch_norm(Scheme.from_name(recipe).norm), images()),
        (layer_norm(Scheme.from_name(recipe).norm), torch.randn(30, 24)),
    ):
        ours, g, stream = run(layer, x)
        view = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
        gamma, beta = layer.weight.view(view), layer.bias.view(view)
        geometry = ((0, 2, 3), (0, 2, 3), 1, 1) if x.ndim == 4 else ((1,), (0,), 0, None)
        expected = model(x, gamma, beta, g, layer.scheme, layer.eps, *geometry, stream)
        assert_close(ours, expected, exact(x, gamma, beta, g, geometry[0], layer.eps, "l1"))


@pytest.mark.parametrize(("clip", "groups"), [(1.0, 1), (0.6, 2), (0.3, 1)])
@pytest.mark.parametrize("bits", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_any_bits(kind, bits, clip, groups):
    s = NormScheme(kind, bits, bits, bits, bits, bits, clip=clip, groups=groups if bits < 8 else 1)
    for layer, x in ((batch_norm(s), images()), (layer_norm(s), torch.randn(30, 24))):
        ours, g, stream = run(layer, x)
        view = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
        gamma, beta = (p.view(view) for p in (layer.weight, layer.bias))
        geometry = ((0, 2, 3), (0, 2, 3), 1, 1) if x.ndim == 4 else ((1,), (0,), 0, None)
        for a, b in zip(ours, model(x, gamma, beta, g, s, layer.eps, *geometry, stream), strict=True):
            assert relative(a, b) < 1e-5


# ---------------------------------------------------------------------------------------------------- pass-through


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_gradcheck(kind, training, affine):
    layer = batch_norm(float_scheme(kind), channels=3, affine=affine).double()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    layer.train(training)
    _gradcheck(layer, torch.randn(3, 3, 2, 4, dtype=torch.float64))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_layer_norm_gradcheck(kind, affine):
    layer = layer_norm(float_scheme(kind), (2, 4), elementwise_affine=affine).double()
    _gradcheck(layer, torch.randn(3, 2, 4, dtype=torch.float64))


def _gradcheck(layer, x):
    names = [n for n, _ in layer.named_parameters()]

    def call(x, *params):
        return torch.func.functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    params = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *params))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_l2_pass_through_equals_torch(dtype, bias):
    pairs = [
        (batch_norm(float_scheme("l2")), nn.BatchNorm2d(5), images()),
        (layer_norm(float_scheme("l2"), bias=bias), nn.LayerNorm(24, bias=bias), torch.randn(30, 24)),
        (layer_norm(float_scheme("l2"), (3, 4)), nn.LayerNorm((3, 4)), torch.randn(5, 3, 4)),
    ]
    for ours, theirs, x in pairs:
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        theirs.load_state_dict(ours.state_dict())
        for training in (True, False):
            results = []
            for layer in (ours, theirs):
                layer.train(training).zero_grad()
                data = x.to(dtype).requires_grad_()
                data.grad = None
                y = layer(data)
                torch.manual_seed(0)
                y.backward(torch.randn_like(y))
                results.append([y, data.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
            for a, b in zip(*results, strict=True):
                assert relative(a, b) < (2e-5 if dtype == torch.float32 else 1e-12)


def test_l1_is_not_l2():
    x = images()
    assert distance(batch_norm(float_scheme("l1"))(x), batch_norm(float_scheme("l2"))(x)) > 1e-3
