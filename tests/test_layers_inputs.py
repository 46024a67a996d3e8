"""Hard inputs of every layer: NaN, zeros, empty batches, strides, other dtypes, autocast."""

import math

import pytest
import torch

import subbyte as sb
from models_for_tests import NETS, distance, equal, gradients, layers, quantized, ran
from subbyte import Scheme

INT4 = Scheme.from_name("int4")


def hard_layers():
    torch.manual_seed(0)
    conv, linear = sb.nn.Conv2d(4, 4, 3, padding=1, scheme=INT4.layer), sb.nn.Linear(6, 6, scheme=INT4.layer)
    return [(conv, (3, 4, 6, 6)), (linear, (5, 6))]


NORMS = [
    (lambda: sb.nn.BatchNorm2d(4, scheme=INT4.norm), (3, 4, 6, 6)),
    (lambda: sb.nn.LayerNorm(6, scheme=INT4.norm), (5, 6)),
]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 1])
def test_nan_and_inf_surface(index, bad):
    layer, shape = hard_layers()[index]
    for training in (True, False):
        layer.train(training)
        x = torch.randn(shape)
        x.view(-1)[7] = bad
        assert layer(x).isnan().all()
        x = torch.randn(shape, requires_grad=True)
        g = torch.randn_like(layer(x))
        g.view(-1)[3] = bad
        layer.zero_grad()
        layer(x).backward(g)
        for t in (x.grad, layer.weight.grad, layer.bias.grad):
            assert t.isnan().any()
        with torch.no_grad():
            weight = layer.weight.clone()
            layer.weight.view(-1)[2] = bad
            assert layer(x).isnan().all()
            layer.weight.copy_(weight)
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("index", [0, 1])
def test_zero_tensors(index):
    layer, shape = hard_layers()[index]
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    bias = layer.bias.detach().view(-1, *[1] * (len(shape) - 2))
    assert torch.equal(y, bias.expand_as(y))
    y.backward(torch.zeros_like(y))
    assert not any(t.any() for t in (x.grad, layer.weight.grad, layer.bias.grad))
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(layer(torch.randn(shape)), bias.expand_as(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("which", range(4))
def test_empty_batches(which, training, dtype):
    made = [*hard_layers(), *((make(), shape) for make, shape in NORMS)]
    layer, shape = made[which]
    layer.train(training)
    x = torch.zeros((0, *shape[1:]), dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    for p in layer.parameters():
        assert torch.equal(p.grad, torch.zeros_like(p))
    assert all(b.isfinite().all() for b in layer.buffers())


@pytest.mark.parametrize("which", range(4))
def test_strided_inputs_and_gradients_give_the_same_numbers(which):
    made = [*hard_layers(), *((make(), shape) for make, shape in NORMS)]
    layer, shape = made[which]
    results = []
    for strided in (False, True):
        layer.zero_grad()
        torch.manual_seed(4)
        x, g = torch.randn(shape), torch.randn(shape)
        if strided:
            x, g = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, g))
            assert not x.is_contiguous()
        x.requires_grad_()
        y = layer(x)
        y.backward(g)
        results.append([y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())])
    assert equal(*results)
    layer.zero_grad()
    layer(x).sum().backward()  # an expanded gradient
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_channels_last_networks_give_the_same_numbers():
    model, x = quantized("conv")
    plain = gradients(model, lambda: model(x))
    last = gradients(model, lambda: model(x.to(memory_format=torch.channels_last)))
    model.to(memory_format=torch.channels_last)
    assert equal(plain, last)
    assert equal(plain, gradients(model, lambda: model(x.to(memory_format=torch.channels_last))))


# -------------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("net", NETS)
def test_modules_of_other_dtypes(net, dtype):
    model, x = quantized(net)
    wide = gradients(model, lambda: model(x))
    expected = model(x)
    model.to(dtype)
    y = model(x.to(dtype))
    assert y.dtype == dtype
    assert distance(y, expected) < (0.2 if dtype != torch.float64 else 0.02)
    grads = gradients(model, lambda: model(x.to(dtype)))
    assert {g.dtype for g in grads} == {dtype}
    assert all(g.isfinite().all() for g in grads)
    assert distance(grads[-1], wide[-1]) < 0.5
    assert all(ran(m).get("grad_weight", "integer") == "integer" for m in layers(model))


@pytest.mark.parametrize("net", NETS)
def test_autocast_on_the_cpu(net):
    model, x = quantized(net)
    torch.manual_seed(0)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), sb.MacCounter() as counter:
        torch.manual_seed(0)
        y = model(x)
        loss = y.float().square().sum()
        loss.backward()
    assert y.dtype == torch.bfloat16
    assert 0 < distance(y, expected) < 0.2
    assert counter.integer_share == 1.0
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert {v for m in layers(model) for v in ran(m).values()} == {"integer"}


@pytest.mark.parametrize("index", [0, 1])
def test_products_under_autocast_are_exact(index):
    """Equal to those without it, up to the one rounding of the output: nothing inside became bfloat16."""
    layer, shape = hard_layers()[index]
    layer.eval()
    x = torch.randn(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        double = layer.double()(x.double())
    layer.float()
    assert torch.equal(y, layer(x).bfloat16())
    assert double.dtype == torch.float64
    assert ran(layer)["output"] == "integer"
