"""Linear: output and gradients against float64 models of the same quantized computation, pass-through, shapes."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte as sb
from models_for_tests import BITS, INTEGER, RECIPES, assert_product, product_model, ran, relative
from subbyte import AbsMax, LayerScheme, Scheme, ShiftQuant, at_once

FLOAT = Scheme.from_name("float").layer


def make(scheme, bias=True, inputs=48, outputs=20) -> sb.nn.Linear:
    torch.manual_seed(1)
    return sb.nn.Linear(inputs, outputs, bias=bias, scheme=scheme)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_equals_a_float64_model_of_the_same_codes(recipe, bias):
    layer = make(Scheme.from_name(recipe).layer, bias)
    x = torch.randn(64, 48)
    found = product_model(layer, x, torch.randn_like, F.linear)
    assert_product(found, BITS[recipe])
    assert ran(layer) == INTEGER
    assert {"linear_forward", "linear_backward"} <= set(layer.record.kernels)


@pytest.mark.parametrize("recipe", RECIPES)
def test_unsigned_activations(recipe):
    layer = make(Scheme.from_name(recipe).layer.unsigned_activation())
    found = product_model(layer, torch.randn(40, 48).relu(), torch.randn_like, F.linear)
    assert_product(found, BITS[recipe])
    assert ran(layer) == INTEGER
    signed = product_model(make(Scheme.from_name(recipe).layer), torch.randn(40, 48).relu(), torch.randn_like, F.linear)
    assert_product(signed, BITS[recipe])


def test_unsigned_halves_the_step():
    x = torch.randn(40, 48).relu()
    layer = Scheme.from_name("int6").layer  # which clips nothing
    errors = [float((q(x).dequantize() - x).norm()) for q in (layer.activation, layer.unsigned_activation().activation)]
    assert 1.7 < errors[0] / errors[1] < 2.6


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_with_channels_of_very_different_ranges(recipe):
    layer = make(Scheme.from_name(recipe).layer)
    spread = torch.logspace(-3, 1, 20)
    found = product_model(layer, torch.randn(64, 48), lambda y: torch.randn_like(y) * spread, F.linear)
    assert_product(found)
    assert ran(layer) == INTEGER


@pytest.mark.parametrize("shape", [(48,), (3, 48), (2, 3, 48), (2, 1, 3, 48)])
def test_any_leading_shape(shape):
    layer = make(Scheme.from_name("int8").layer)
    found = product_model(layer, torch.randn(shape), torch.randn_like, F.linear)
    assert_product(found, 8)
    assert layer(torch.randn(shape)).shape == (*shape[:-1], 20)


def test_stochastic_forward_roles_use_streams_of_their_own():
    q = AbsMax(4, rounding="stochastic")
    layer = make(LayerScheme(q, q, ShiftQuant(4, rounding="stochastic", groups=9)))
    x = torch.randn(64, 48)
    found = product_model(layer, x, torch.randn_like, F.linear)
    assert_product(found, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("bias", [True, False])
def test_pass_through_gradcheck(bias):
    layer = make(FLOAT, bias, 5, 4).double()
    names = [n for n, _ in layer.named_parameters()]

    def run(x, *params):
        return torch.func.functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *(p.detach().requires_grad_() for p in layer.parameters())))
    assert ran(layer) == dict.fromkeys(("output", "grad_input", "grad_weight"), "float")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pass_through_equals_torch(dtype):
    layer, theirs = make(FLOAT).to(dtype), nn.Linear(48, 20).to(dtype)
    theirs.load_state_dict(layer.state_dict())
    g = torch.randn(7, 20, dtype=dtype)
    results = []
    for module in (layer, theirs):
        torch.manual_seed(2)
        x = torch.randn(7, 48, dtype=dtype, requires_grad=True)
        y = module(x)
        y.backward(g)
        results.append((y, x.grad, module.weight.grad, module.bias.grad))
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype == dtype
        assert relative(ours, expected) < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize(("x", "w"), [(True, False), (False, True), (False, False), (True, True)])
def test_only_the_gradients_that_are_wanted_are_computed(x, w):
    layer = make(Scheme.from_name("int4").layer, bias=False)
    layer.weight.requires_grad_(w)
    data = torch.randn(8, 48, requires_grad=x)
    y = layer(data)
    assert y.requires_grad == (x or w)
    if y.requires_grad:
        y.sum().backward()
    assert (data.grad is not None) == x
    assert (layer.weight.grad is not None) == w
    assert ("grad_input" in ran(layer), "grad_weight" in ran(layer)) == (x, w)


def test_bias_gradient_is_the_sum_of_the_quantized_gradient():
    layer = make(Scheme.from_name("int4").layer)
    found = product_model(layer, torch.randn(64, 48), torch.randn_like, F.linear)
    assert relative(found["b"], found["model_b"]) < 1e-6
    assert 1e-3 < relative(found["b"], found["float_b"]) < 0.5


def test_wrong_inputs():
    layer = make(Scheme.from_name("int4").layer)
    with pytest.raises(ValueError, match=r"48.*\(3, 5\)"):
        layer(torch.randn(3, 5))
    with pytest.raises(TypeError, match="int64"):
        layer(torch.ones(3, 48, dtype=torch.int64))


def test_backward_reads_what_was_saved_without_unpacking_it():
    layer = make(dataclasses.replace(Scheme.from_name("int4").layer, weight=AbsMax(4)))
    g = torch.randn(20, 9).T  # no matrix for linear_backward
    layer(torch.randn(9, 48, requires_grad=True)).backward(g)
    assert "linear_backward" not in layer.record.kernels
    assert "scaled_matmul_packed" in layer.record.kernels
    assert "unpack_codes" not in layer.record.kernels


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("bias", [True, False])
def test_at_once_equals_one_op_after_the_other(recipe, bias, monkeypatch):
    layer = make(Scheme.from_name(recipe).layer, bias)
    x, g = torch.randn(33, 48, requires_grad=True), torch.randn(33, 20)

    def step() -> list[torch.Tensor]:
        layer.record.kernels.clear()
        torch.manual_seed(2)
        y = layer(x)
        return [y, *torch.autograd.grad(y, (x, *layer.parameters()), g)]

    ours = step()
    assert layer.record.kernels.keys() == INTEGER.keys() | {"linear_forward", "linear_backward"}
    for one in ("forward", "backward"):
        monkeypatch.setattr(at_once, one, lambda *_: None)
        for a, b in zip(step(), ours, strict=True):
            assert torch.equal(a, b)
    assert not layer.record.kernels.keys() & {"linear_forward", "linear_backward"}


def test_frozen_and_observed_layers():
    layer = make(Scheme.from_name("int4").layer)
    x = torch.randn(9, 48, requires_grad=True)
    layer.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    layer.record.armed = True
    layer(x).sum().backward()
    assert set(layer.record.operands) == {"activation", "weight", "gradient"}
