"""TokenShiftQuant with groups of channels where they lie apart: elsewhere the bits and kernels of one without."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import subbyte as sb
from subbyte import ops
from subbyte.numerics import IntFormat
from subbyte.qtensor import QTensor
from test_fusion import Block, Net, assert_same, images, pair, step
from test_quantizers_tokens import loud_and_silent
from test_quantizers_tokens_channels import APART, BOTH, far_apart

WITHOUT = dataclasses.replace(BOTH, channel_groups=1)


@pytest.mark.parametrize(
    ("octaves", "apart"),
    [
        ([0, 4, 1, 2], True),  # one of four, four octaves below
        ([0, 3.9, 1, 2], False),
        ([0, 4, 1, 2, 3], False),  # one of five
        ([0, 4, 1, 2, 30], True),  # what is far below counts too
        ([0, 4, 1, 2, math.inf], True),  # zeros do not
        ([0, 8, 8], True),
        ([0], False),
        ([math.inf], False),
    ],
)
def test_a_quarter_of_the_channels_decides(octaves, apart):
    x = torch.exp2(-torch.tensor([octaves])) * torch.tensor([[1.0], [-0.5]])
    ours, always, never = (q(x, torch.tensor(1)) for q in (APART, BOTH, WITHOUT))
    assert torch.equal(ours.shift, always.shift if apart else torch.zeros_like(always.shift))
    assert torch.equal(ours.codes, (always if apart else never).codes)
    assert torch.equal(ours.scale, never.scale)
    assert ours.max_shift == 8


def gradient_step(layer: nn.Module, quantizer: sb.Quantizer, x: torch.Tensor, g: torch.Tensor):
    """(gradients of x, weight and bias, kernels that ran)."""
    own = sb.LayerScheme(sb.AbsMax(4), sb.AbsMax(4), quantizer)
    model = sb.quantize_(nn.Sequential(layer), sb.Scheme("own", own))
    x = x.detach().requires_grad_()
    torch.manual_seed(3)
    model(x).backward(g)
    grads = [x.grad, *(p.grad.clone() for p in model.parameters())]
    model.zero_grad()
    return grads, dict(model[0].record.kernels), sb.dequantize_(model)[0]


@pytest.mark.parametrize("kind", ["rows", "three axes", "nhwc", "nchw", "grouped", "depthwise", "1d"])
@pytest.mark.parametrize("far", [False, True])
def test_the_same_bits_and_kernels_where_channels_lie_together(kind, far):
    torch.manual_seed(0)
    make = far_apart if far else loud_and_silent
    if kind in ("rows", "three axes"):
        layer, x, g = nn.Linear(24, 26), torch.randn(40, 24), make(40, 26)
        if kind == "three axes":
            x, g = x.view(8, 5, 24), g.view(8, 5, 26)
    elif kind == "1d":
        layer, x, g = nn.Conv1d(8, 16, 3), torch.randn(3, 8, 20), make(3, 16, 18)
    else:
        groups = {"grouped": 2, "depthwise": 16}.get(kind, 1)
        layer, x, g = nn.Conv2d(16, 16, 3, groups=groups), torch.randn(3, 16, 9, 8), make(3, 16, 7, 6)
        if kind == "nhwc":
            x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    ours, kernels, layer = gradient_step(layer, APART, x, g)
    with ops.use_backend("reference"):
        reference, _, layer = gradient_step(layer, APART, x, g)
    expected, expected_kernels, layer = gradient_step(layer, BOTH if far else WITHOUT, x, g)
    assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert ops.dispatch.REFERENCE not in kernels.values()
    assert kernels["grad_input"] == kernels["grad_weight"] == "integer"
    assert ("linear_backward" in kernels) == (kind in ("rows", "three axes"))
    names = [name for name in kernels if "grad" in name or "backward" in name]
    assert {kernels[n] for n in names} == {expected_kernels[n] for n in names}


def test_a_narrow_product_takes_the_narrow_kernel(monkeypatch):
    """Where no channel has an exponent, what the kernel is told is an operand of 8 bits without any."""
    from subbyte.backends import _cpu_convolutions as convolutions

    told = []
    original = convolutions.sum_is
    monkeypatch.setattr(convolutions, "sum_is", lambda a, b, n: (told.append(a), original(a, b, n))[1])
    layer = nn.Conv2d(16, 16, 3)
    for make, widths in ((loud_and_silent, (8, True, 0)), (far_apart, (8, True, 8))):
        told.clear()
        gradient_step(layer, APART, torch.randn(3, 16, 9, 8), make(3, 16, 7, 6))
        assert told.count(widths) == (2 if widths[2] == 0 else 1)  # grad_weight has no exponents in its sums


SCALES = [0.0, 2.0**-149, 2.0**-140, 2.0**-126, 1.3 * 2.0**-110, 1.0, 2.0**110, 2.0**116, 2.0**127, math.inf, math.nan]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("other", [1.0, 1.1 * 2.0**-20, 2.0**20])
@pytest.mark.parametrize("largest", [0, 3])
def test_exponents_that_are_not_there_at_the_ends_of_float32(scale, other, largest):
    """As the reference, which has the bits for all: so have kernels where a scale would be rounded, or overflow."""
    torch.manual_seed(1)
    a, w = (torch.randint(-127, 128, size, dtype=torch.int8) for size in ((2, 16, 3, 3), (16, 5, 1, 1)))
    a[0] = 0
    shift = torch.arange(16).clamp(max=largest).to(torch.uint8).view(1, 16, 1, 1)
    weights = (w, shift.view(16, 1, 1, 1) // 2, 8, True, 5)
    whole = torch.tensor(scale).view(1, 1, 1, 1)
    conv = (a, shift, 8, True, 12, *weights, whole * other, [2, 5, 3, 3], [1, 1], [0, 0], [1, 1], 1)
    rows, columns = a.flatten(2).mT.reshape(-1, 16), (w.flatten(1), shift.view(16, 1), 8, True, 4)
    scales = whole.view(1, 1), torch.tensor([[other]])
    matmul = (rows, shift.view(1, 16), 8, True, 12, *columns, *scales, None)
    for name, call in (("scaled_conv2d_grad_input", conv), ("scaled_matmul", matmul)):
        op = getattr(torch.ops.subbyte, name)
        ours = op(*call)
        assert ops.last_kernel[name] != ops.dispatch.REFERENCE
        with ops.use_backend("reference"):
            expected = op(*call)
        assert torch.equal(ours.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_fused_int4_as_without_groups_of_channels():
    """The whole step of a net with batch norms: its channels lie together, so nothing changes."""
    x, gradients = images(3, 3, 7, 5, layout=torch.channels_last), []
    for quantizer in (APART, WITHOUT):
        torch.manual_seed(0)
        model = Net(Block(8), Block(8, swapped=True)).to(memory_format=torch.channels_last)
        int4 = sb.Scheme.from_name("int4")
        own = dataclasses.replace(int4, name="own", layer=dataclasses.replace(int4.layer, gradient=quantizer))
        unfused, fused = pair(model, own, x)
        assert_same(unfused, fused, x)
        gradients.append(step(fused, x))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_qtensor_of_needless_exponents_is_one_without():
    q = APART(loud_and_silent(6, 16), torch.tensor(2))
    plain = QTensor(q.codes, q.scale, q.format, inside=q.inside)
    w = QTensor(torch.randint(-7, 8, (16, 9), dtype=torch.int8), torch.ones(1, 1), IntFormat(4))
    assert not q.shift.any()
    assert torch.equal(ops.matmul(q, w), ops.matmul(plain, w))
    assert torch.equal(q.dequantize(), plain.dequantize())


def test_a_linear_net_whose_channels_lie_apart_trains():
    """Gains of up to 2^12 behind a layer: its gradient's channels lie as far apart; tokens alone lose most of them."""
    errors = {}
    gains = torch.exp2(-torch.arange(24.0) / 2)
    x, y = torch.randn(64, 24), torch.randn(64, 24)
    for name, quantizer in (("apart", APART), ("without", WITHOUT)):
        torch.manual_seed(0)
        layer = nn.Linear(24, 24)
        model = sb.quantize_(nn.Sequential(layer), sb.Scheme("own", sb.LayerScheme(gradient=quantizer)))
        (F.mse_loss(model(x), y, reduction="none") * gains).sum().backward()
        ours = layer.weight.grad.clone()
        sb.dequantize_(model)
        layer.weight.grad = None
        (F.mse_loss(layer(x), y, reduction="none") * gains).sum().backward()
        exact = layer.weight.grad
        errors[name] = ((ours - exact).square().sum(1) / exact.square().sum(1)).mean().item()
    assert errors["apart"] < errors["without"] / 5
