"""Conv2d: output and gradients against float64 models of the same quantized computation, for every geometry."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte as sb
from models_for_tests import BITS, INTEGER, RECIPES, assert_product, product_model, ran, relative
from subbyte import Scheme

FLOAT = Scheme.from_name("float").layer
INT4 = Scheme.from_name("int4").layer

GEOMETRIES = {
    "plain": dict(kernel_size=3),
    "padded": dict(kernel_size=3, padding=1),
    "stride": dict(kernel_size=3, stride=2, padding=1),
    "uneven": dict(kernel_size=(1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "dilation": dict(kernel_size=3, dilation=2, padding=2),
    "pointwise": dict(kernel_size=1),
    "stride leaves a rest": dict(kernel_size=3, stride=3),
    "same": dict(kernel_size=3, padding="same"),
    "same, even kernel": dict(kernel_size=(4, 2), padding="same"),
    "same, even, dilated": dict(kernel_size=2, dilation=3, padding="same"),
    "valid": dict(kernel_size=3, padding="valid"),
    "reflect": dict(kernel_size=3, padding=(1, 2), padding_mode="reflect"),
    "circular": dict(kernel_size=3, padding=2, padding_mode="circular", stride=2),
    "replicate": dict(kernel_size=5, padding=2, padding_mode="replicate"),
    "reflect, same": dict(kernel_size=4, padding="same", padding_mode="reflect"),
    "groups": dict(kernel_size=3, padding=1, groups=2),
    "depthwise": dict(kernel_size=3, padding=1, groups=4),
    "depthwise, stride": dict(kernel_size=5, padding=2, stride=2, groups=4),
}


def make(scheme, bias=True, outputs=8, **geometry) -> sb.nn.Conv2d:
    torch.manual_seed(1)
    return sb.nn.Conv2d(4, outputs, bias=bias, scheme=scheme, **geometry)


def formula(layer):
    """torch's own layer in float64, as a function of x, w, b; its geometry as the layer's at this moment."""
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    theirs = nn.Conv2d(layer.in_channels, layer.out_channels, **{n: getattr(layer, n) for n in names}).double()

    def run(x, w, b):
        return theirs._conv_forward(x, w, b)

    return run


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_equals_a_float64_model_of_the_same_codes(geometry):
    layer = make(INT4, **geometry)
    found = product_model(layer, torch.randn(3, 4, 9, 10), torch.randn_like, formula(layer))
    assert_product(found, 4)
    assert ran(layer) == INTEGER
    assert {"scaled_conv2d", "scaled_conv2d_grad_input", "scaled_conv2d_grad_weight"} <= set(layer.record.kernels)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("geometry", ["stride", "depthwise", "same, even kernel"])
def test_every_recipe(recipe, geometry):
    layer = make(Scheme.from_name(recipe).layer.unsigned_activation(), bias=False, **GEOMETRIES[geometry])
    x = torch.randn(3, 4, 9, 10).relu()
    spread = torch.logspace(-2, 0, 8).view(-1, 1, 1)
    assert_product(product_model(layer, x, torch.randn_like, formula(layer)), BITS[recipe])
    assert_product(product_model(layer, x, lambda y: torch.randn_like(y) * spread, formula(layer)))
    assert ran(layer) == INTEGER


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_multiplier(multiplier):
    layer = make(INT4, outputs=4 * multiplier, kernel_size=3, groups=4)
    assert_product(product_model(layer, torch.randn(3, 4, 8, 8), torch.randn_like, formula(layer)), 4)


def test_without_a_batch_axis():
    layer = make(INT4, kernel_size=3, padding=1)
    x = torch.randn(4, 9, 10)
    torch.manual_seed(0)
    alone = layer(x)
    torch.manual_seed(0)
    assert torch.equal(alone, layer(x[None])[0])
    assert alone.shape == (8, 9, 10)


@pytest.mark.parametrize(
    "change", [dict(padding=(3, 2)), dict(padding=(2, 2), dilation=(2, 2)), dict(stride=(1, 1), padding=(0, 0))]
)
def test_geometry_that_is_changed_after_construction(change):
    """Segmentation networks dilate a pretrained backbone by assigning to its layers."""
    layer = make(INT4, kernel_size=3, padding=1, stride=2)
    for name, value in change.items():
        setattr(layer, name, value)
    found = product_model(layer, torch.randn(3, 4, 9, 10), torch.randn_like, formula(layer))
    assert_product(found, 4)


def test_geometry_as_plain_numbers():
    layer = make(INT4, kernel_size=3)
    layer.stride, layer.padding, layer.dilation = 2, 1, 1
    assert layer(torch.randn(1, 4, 9, 9)).shape == (1, 8, 5, 5)


@pytest.mark.parametrize("geometry", ["stride", "uneven", "same, even kernel", "circular", "groups", "depthwise"])
def test_pass_through_gradcheck(geometry):
    layer = make(FLOAT, outputs=4, **GEOMETRIES[geometry]).double()
    names = [n for n, _ in layer.named_parameters()]

    def run(x, *params):
        return torch.func.functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    params = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x, *params), fast_mode=True)
    assert set(ran(layer).values()) == {"float"}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_pass_through_equals_torch(geometry):
    layer = make(FLOAT, **geometry)
    theirs = nn.Conv2d(4, 8, **geometry)
    theirs.load_state_dict(layer.state_dict())
    results = []
    for module in (layer, theirs):
        torch.manual_seed(2)
        x = torch.randn(3, 4, 9, 10, requires_grad=True)
        y = module(x)
        y.backward(torch.randn_like(y))
        results.append((y, x.grad, module.weight.grad, module.bias.grad))
    for ours, expected in zip(*results, strict=True):
        assert relative(ours, expected) < 2e-6


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("scheme", [INT4, FLOAT])
def test_channels_last_gives_the_same_numbers(scheme, padding_mode):
    layer = make(scheme, kernel_size=3, padding=1, padding_mode=padding_mode)
    results = []
    for memory in (torch.contiguous_format, torch.channels_last):
        layer.zero_grad()
        torch.manual_seed(4)
        x = torch.randn(3, 4, 9, 10).to(memory_format=memory).requires_grad_()
        y = layer(x)
        g = torch.randn(3, 8, 9, 10).to(memory_format=memory)
        y.backward(g)
        results.append((y.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) if scheme is INT4 else relative(a, b) < 1e-5


def test_the_sum_is_exact_where_float32_would_round():
    """All operands at the largest code: every accumulator is C R S Q^2 + 1 term off by one unit, above 2^24."""
    layer = sb.nn.Conv2d(1200, 1, 1, bias=False, scheme=Scheme.from_name("int8").layer)
    x = torch.full((1, 1200, 1, 2), 127.0)
    with torch.no_grad():
        layer.weight.fill_(127.0)
        layer.weight[0, 0] = 1.0
        x[0, 0, 0, 1] = 1.0
        y = layer(x).flatten()
    full = 1199 * 127 * 127
    assert full > 1 << 24
    assert [float(v) for v in y] == [float(torch.tensor(full + n, dtype=torch.float32)) for n in (127, 1)]


def test_wrong_inputs():
    layer = make(INT4, kernel_size=3)
    with pytest.raises(ValueError, match=r"\(N, 4, H, W\).*\(1, 3, 8, 8\)"):
        layer(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match="exceeds the padded input"):
        layer(torch.randn(1, 4, 2, 2))
    with pytest.raises(ValueError, match="Conv2d expects"):
        layer(torch.randn(4, 8))


def test_formula_of_this_file_is_torch():
    layer = make(FLOAT, kernel_size=3, padding=1).double()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    theirs = F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert relative(formula(layer)(x, layer.weight, layer.bias), theirs) < 1e-14
