"""Conv1d, Conv3d, ConvTranspose1d/2d/3d, depthwise scales: against float64 models of the same quantized computation."""

import math

import pytest
import torch
from torch import nn

import subbyte as sb
from models_for_tests import (
    BITS,
    INTEGER,
    RECIPES,
    assert_product,
    dequantized,
    product_model,
    ran,
    relative,
    scheme_of,
)
from subbyte import AbsMax, PerChannel, Scheme, ShiftQuant
from subbyte.autograd import STREAMS
from subbyte.numerics import draw_stream

FLOAT = Scheme.from_name("float").layer
INT4 = Scheme.from_name("int4").layer

DIMENSIONS = {"Conv1d": 1, "Conv3d": 3, "ConvTranspose1d": 1, "ConvTranspose2d": 2, "ConvTranspose3d": 3}
SIZES = {1: (11,), 2: (5, 6), 3: (4, 5, 6)}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}

BOTH = {
    "plain": dict(kernel_size=3),
    "stride, padding": dict(kernel_size=3, stride=2, padding=1),
    "dilation": dict(kernel_size=2, dilation=2, padding=1),
    "groups": dict(kernel_size=3, padding=1, groups=2),
    "depthwise": dict(kernel_size=3, padding=1, stride=2, groups=4),
    "pointwise": dict(kernel_size=1, bias=False),
}
FORWARD_ONLY = {
    "same, even kernel": dict(kernel_size=2, padding="same"),
    "circular": dict(kernel_size=3, padding=1, padding_mode="circular"),
    "reflect, same": dict(kernel_size=3, padding="same", padding_mode="reflect"),
}
TRANSPOSED_ONLY = {
    "output_padding": dict(kernel_size=3, stride=3, padding=1, output_padding=2),
    "output_padding of a stride": dict(kernel_size=3, stride=2, dilation=3, output_padding=2),
    "output_padding of two strides, groups": dict(kernel_size=2, stride=1, dilation=3, output_padding=2, groups=2),
}
CASES = [
    pytest.param(name, geometry, id=f"{name}: {label}")
    for name in DIMENSIONS
    for label, geometry in {**BOTH, **(TRANSPOSED_ONLY if "T" in name else FORWARD_ONLY)}.items()
]


def make(name, scheme, outputs=8, **geometry):
    torch.manual_seed(1)
    return getattr(sb.nn, name)(4, outputs, scheme=scheme, **geometry)


def input_of(name, n=3, channels=4):
    torch.manual_seed(2)
    return torch.randn(n, channels, *SIZES[DIMENSIONS[name]])


def formula(layer):
    """torch's own layer in float64, as a function of x, w, b."""
    names = ["kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    names += ["output_padding"] if "T" in type(layer).__name__ else []
    kwargs = {n: getattr(layer, n) for n in names}
    theirs = layer.replaces(layer.in_channels, layer.out_channels, bias=layer.bias is not None, **kwargs).double()

    def run(x, w, b):
        values = {"weight": w} if b is None else {"weight": w, "bias": b}
        return torch.func.functional_call(theirs, values, (x,))

    return run


def step(layer, x, seed=5):
    """(y, dx, dw, db) of one backward; the gradient of y is random."""
    layer.zero_grad()
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(seed)
    y = layer(leaf)
    torch.manual_seed(seed)
    y.backward(torch.randn(y.shape).to(y.dtype))
    return [y.detach(), leaf.grad, *[p.grad.clone() for p in layer.parameters()]]


@pytest.mark.parametrize(("name", "geometry"), CASES)
def test_equals_a_float64_model_of_the_same_codes(name, geometry):
    layer = make(name, INT4, **geometry)
    found = product_model(layer, input_of(name), torch.randn_like, formula(layer))
    assert_product(found, 4)
    assert ran(layer) == INTEGER


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", DIMENSIONS)
def test_every_recipe_with_unsigned_inputs_and_spread_gradients(name, recipe):
    layer = make(name, Scheme.from_name(recipe).layer.unsigned_activation(), kernel_size=3, stride=2, groups=2)
    spread = torch.logspace(-2, 0, 8).view(-1, *[1] * DIMENSIONS[name])
    x = input_of(name).relu()
    assert_product(product_model(layer, x, torch.randn_like, formula(layer)), BITS[recipe])
    assert_product(product_model(layer, x, lambda y: torch.randn_like(y) * spread, formula(layer)))


@pytest.mark.parametrize("name", DIMENSIONS)
def test_backends_agree(name):
    layer = make(name, INT4, kernel_size=3, stride=2, padding=1, groups=2)
    found = step(layer, input_of(name))
    with sb.ops.use_backend("reference"):
        for a, b in zip(found, step(layer, input_of(name)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_memory_layout_does_not_matter(name):
    layer = make(name, INT4, kernel_size=3, stride=2)
    x = input_of(name)
    want = step(layer, x)
    wide = torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)
    last = FORMATS.get(DIMENSIONS[name])
    variants = [wide] if last is None else [wide, x.contiguous(memory_format=last)]
    for variant in variants:
        assert not variant.is_contiguous()
        for a, b in zip(want, step(layer, variant), strict=True):
            assert torch.equal(a, b)
    if last is not None:
        assert layer(x.contiguous(memory_format=last)).is_contiguous(memory_format=last)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_empty_batch_and_no_batch_axis(name):
    layer = make(name, INT4, kernel_size=3)
    empty = step(layer, input_of(name, n=0))
    assert empty[0].shape[:2] == (0, 8)
    assert all(not t.any() for t in empty[2:])
    x = input_of(name, n=1)
    torch.manual_seed(0)
    alone = layer(x[0])
    torch.manual_seed(0)
    assert torch.equal(alone, layer(x)[0])


@pytest.mark.parametrize(("name", "geometry"), CASES)
def test_float_scheme_is_torchs_layer(name, geometry):
    layer = make(name, FLOAT, outputs=4, **geometry).double()
    x = input_of(name, n=2).double().requires_grad_()
    y, theirs = layer(x), formula(layer)(x, layer.weight, layer.bias)
    leaves = [x, *layer.parameters()]
    c = torch.randn_like(y)
    assert relative(y, theirs) < 1e-13
    for a, b in zip(torch.autograd.grad(y, leaves, c), torch.autograd.grad(theirs, leaves, c), strict=True):
        assert relative(a, b) < 1e-12


@pytest.mark.parametrize("name", DIMENSIONS)
def test_gradcheck(name):
    layer = make(name, FLOAT, outputs=2, kernel_size=2, stride=2, groups=2).double()
    x = torch.randn(1, 4, *[3] * DIMENSIONS[name], dtype=torch.float64, requires_grad=True)

    def run(x, w, b):
        return torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,))

    fast = DIMENSIONS[name] == 3  # one random direction instead of every element
    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias), fast_mode=fast)


# ------------------------------------------------------------------------------------------------ transposed alone


@pytest.mark.parametrize("size", [(11, 13), (12, 14), (3, 8, 11, 14)])
def test_output_size(size):
    layer = make("ConvTranspose2d", INT4, kernel_size=3, stride=2)
    assert layer(input_of("ConvTranspose2d"), size).shape == (3, 8, *size[-2:])


def test_wrong_output_sizes_and_paddings():
    x, layer = input_of("ConvTranspose2d"), make("ConvTranspose2d", INT4, kernel_size=3, stride=2)
    with pytest.raises(ValueError, match="valid sizes range"):
        layer(x, (20, 20))
    with pytest.raises(ValueError, match=r"output_padding .* must be smaller"):
        make("ConvTranspose2d", INT4, kernel_size=3, stride=2, output_padding=2)(x)
    with pytest.raises(ValueError, match=r"expects inputs \(N, 4, H, W\)"):
        layer(torch.randn(3, 5, 8, 8))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_scale_for_each_output_channel_of_a_transposed_convolution(groups):
    """Axis 0 of its weight is the output channels, though torch keeps input channels first."""
    scheme = scheme_of(AbsMax(8), weight=PerChannel(4, axis=0))
    layer = make("ConvTranspose2d", scheme, kernel_size=3, groups=groups)
    with torch.no_grad():  # very different output channels
        w = layer.weight.view(groups, 4 // groups, 8 // groups, 3, 3)
        w.mul_(torch.logspace(-3, 0, 8).view(groups, 1, 8 // groups, 1, 1))
    x = input_of("ConvTranspose2d")
    y = layer(x)
    per_output = layer.weight.detach().view(groups, 4 // groups, 8 // groups, 9).transpose(1, 2).reshape(8, -1)
    codes = PerChannel(4, axis=0)(per_output).dequantize(torch.float64)
    w = codes.view(groups, 8 // groups, 4 // groups, 9).transpose(1, 2).reshape(layer.weight.shape)
    want = formula(layer)(dequantized(AbsMax(8), x, None), w, layer.bias.detach().double())
    assert relative(y, want) < 3e-6
    # with some groups of several channels there is no integer product: one scale along two axes of torch's layout
    assert ran(layer)["output"] == ("emulated" if groups == 2 else "integer")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axis", [0, 1])
def test_shiftquant_on_the_weight_of_a_transposed_convolution(groups, axis):
    quantizer = ShiftQuant(4, groups=3, axis=axis)
    layer = make("ConvTranspose2d", scheme_of(AbsMax(4), weight=quantizer), kernel_size=3, groups=groups)
    x = input_of("ConvTranspose2d")
    swapped = layer.weight.detach().view(groups, 4 // groups, 8 // groups, 9).transpose(1, 2).reshape(8, -1, 9)
    codes = quantizer(swapped).dequantize(torch.float64)
    w = codes.view(groups, 8 // groups, 4 // groups, 9).transpose(1, 2).reshape(layer.weight.shape)
    want = formula(layer)(dequantized(AbsMax(4), x, None), w, layer.bias.detach().double())
    assert relative(layer(x), want) < 3e-6


# ------------------------------------------------------------------------------------------------------- depthwise


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d"])
def test_depthwise_takes_a_scale_for_each_channel_everywhere(name):
    """groups = C: a channel is a reduction of its own, so PerChannel(1) is outer in all three products."""
    DIMENSIONS.setdefault("Conv2d", 2)
    scheme = scheme_of(PerChannel(8, axis=1), weight=PerChannel(8, axis=0))
    layer = make(name, scheme, outputs=4, kernel_size=3, padding=1, groups=4)
    spread = torch.logspace(-3, 0, 4).view(-1, *[1] * DIMENSIONS[name])
    x = (input_of(name) * spread).requires_grad_()
    torch.manual_seed(3)
    y = layer(x)
    g = torch.randn(y.shape) * spread
    y.backward(g)
    assert ran(layer) == INTEGER
    qx, qg = (PerChannel(8, axis=1)(t.detach()).dequantize(torch.float64).requires_grad_() for t in (x, g))
    qw = PerChannel(8, axis=0)(layer.weight.detach()).dequantize(torch.float64).requires_grad_()
    want = formula(layer)(qx, qw, layer.bias.detach().double())
    want.backward(qg.detach())
    for a, b in ((y, want), (x.grad, qx.grad), (layer.weight.grad, qw.grad)):
        channels = [i for i in range(a.ndim) if i != (0 if a is layer.weight.grad else 1)]
        error = (a.detach().double() - b).abs().amax(channels) / b.abs().amax(channels)  # of each channel
        assert float(error.max()) < 3e-6


# --------------------------------------------------------------------------------------------------- counted, named


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", DIMENSIONS)
def test_multiply_accumulates_are_counted_exactly(name, groups):
    layer, x = make(name, INT4, kernel_size=3, stride=2, groups=groups), input_of(name).requires_grad_()
    with sb.MacCounter() as counter:
        y = layer(x)
        y.sum().backward()
    pixels = x.numel() if "T" in name else y.numel()
    assert counter.integer == 3 * pixels * math.prod(layer.weight.shape[1:])
    assert counter.floats == {}
    layer.scheme = FLOAT
    with sb.MacCounter() as floats:
        layer(x).sum().backward()
    assert (floats.integer, sum(floats.floats.values())) == (0, counter.integer)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_quantize_report_dequantize(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), getattr(nn, name)(4, 8, 3), nn.ReLU(), getattr(nn, name)(8, 4, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sb.quantize_(model, "int4")
    assert type(model[1]) is getattr(sb.nn, name)
    assert isinstance(model[1], getattr(nn, name))
    assert "s8 AbsMax" in repr(model[3])
    assert not model[3].scheme.activation.signed  # behind a ReLU
    x = input_of(name)
    found = sb.report(model, x)
    assert found.integer_share == 1.0
    row = found.layers["3"].row()
    assert (row["type"], row["activation_format"]) == (name, "u8")
    assert [row[k] for k in INTEGER] == ["integer"] * 3
    sb.dequantize_(model)
    assert type(model[1]) is getattr(nn, name)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_opcheck_with_three_spatial_dimensions():
    torch.manual_seed(0)
    params = sb.ops.ConvParams((2, 1, 1), (1, 0, 1), (1, 1, 2), 2)
    x, w = AbsMax(4)(torch.randn(2, 4, 5, 4, 6)), AbsMax(4)(torch.randn(6, 2, 3, 2, 2))
    g = AbsMax(4)(torch.randn(params.output_size(x.shape, w.shape)))
    scale = torch.ones(1, 1, 1, 1, 1)

    def fields(q):
        return q.codes, q.shift, q.format.bits, q.format.signed, q.max_shift

    library, rest = torch.ops.subbyte, params.flat()
    torch.library.opcheck(library.scaled_conv2d.default, (*fields(x), *fields(w), scale, torch.randn(6), *rest))
    for a, b, size, op in (
        (g, w, x.shape, library.scaled_conv2d_grad_input),
        (g, x, w.shape, library.scaled_conv2d_grad_weight),
    ):
        torch.library.opcheck(op.default, (*fields(a), *fields(b), scale, list(size), *rest))


def test_streams_are_drawn_in_the_order_of_every_layer():
    """The weight of a transposed convolution rounds stochastically in its own layout: equal codes for an equal seed."""
    quantizer = AbsMax(4, rounding="stochastic")
    layer = make("ConvTranspose2d", scheme_of(quantizer), kernel_size=3)
    x = input_of("ConvTranspose2d")
    torch.manual_seed(7)
    y = layer(x)
    torch.manual_seed(7)
    streams = draw_stream(STREAMS)
    w = dequantized(quantizer, layer.weight.transpose(0, 1), streams[2]).transpose(0, 1)
    want = formula(layer)(dequantized(quantizer, x, streams[1]), w, layer.bias.detach().double())
    assert relative(y, want) < 3e-6
