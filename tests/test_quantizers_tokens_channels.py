"""TokenShiftQuant with groups of channels: codes by the definition, integer products, fused as unfused, packed."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import subbyte as sb
from subbyte import ops
from subbyte.numerics import RANGE_FLOOR, draw_stream
from test_fusion import PASSES, Block, Net, assert_same, images, pair, step
from test_quantizers_tokens import laid_out, loud_and_silent

BOTH = sb.TokenShiftQuant(4, rounding="stochastic", channel_groups=9)
APART = dataclasses.replace(BOTH, channels_apart=4)


def far_apart(*shape: int) -> torch.Tensor:
    """Tokens 8 octaves apart, and channels up to 12."""
    gains = torch.exp2(torch.arange(shape[1]) % 13 * -1.0)
    return loud_and_silent(*shape) * gains.view([-1 if i == 1 else 1 for i in range(len(shape))])


@pytest.mark.parametrize("shape", [(6, 5), (3, 16, 5, 7), (2, 13, 8), (2, 16, 3, 2, 2), (1, 1), (1, 9)], ids=str)
@pytest.mark.parametrize(("groups", "channel_groups", "clip"), [(5, 9, 1.0), (3, 24, 0.6), (1, 4, 1.0)])
def test_codes_by_the_definition(shape, groups, channel_groups, clip):
    x = far_apart(*shape)
    q = sb.TokenShiftQuant(4, groups=groups, clip=clip, channel_groups=channel_groups)(x)
    by_channel = sb.ShiftQuant(4, groups=channel_groups)(x)
    assert torch.equal(q.shift, by_channel.shift)
    assert q.max_shift == channel_groups - 1
    together = sb.TokenShiftQuant(4, groups=groups, clip=clip)(x * torch.exp2(q.shift.float()))
    assert torch.equal(q.codes, together.codes)
    assert torch.equal(q.scale, together.scale)
    assert torch.equal(q.dequantize(), together.dequantize() * torch.exp2(-q.shift.float()))


def test_one_group_of_channels_is_none():
    x = far_apart(8, 16)
    one, none = sb.TokenShiftQuant(4, channel_groups=1)(x), sb.TokenShiftQuant(4)(x)
    assert one.shift is None
    assert torch.equal(one.codes, none.codes)


def error(quantizer: sb.Quantizer, x: torch.Tensor) -> float:
    """Squared error over the square of its channel, the mean over channels."""
    rest = [i for i in range(x.ndim) if i != 1]
    d = quantizer(x, torch.tensor(5)).dequantize() - x
    return (d.square().sum(rest) / x.square().sum(rest)).mean().item()


def test_less_noise_than_either_where_channels_and_tokens_lie_far_apart():
    x = far_apart(256, 13)
    how = {"rounding": "stochastic"}
    tokens, channels = error(sb.TokenShiftQuant(4, **how), x), error(sb.ShiftQuant(4, groups=13, **how), x)
    assert error(sb.TokenShiftQuant(4, channel_groups=13, **how), x) < min(tokens, channels) / 3


def test_the_mean_is_exact():
    x, n = far_apart(16, 26), 4000
    total = sum(BOTH(x, stream).dequantize(torch.float64) for stream in draw_stream(n))
    by_channel = BOTH(x, torch.tensor(1)).shift.double()
    one = x.double() * 2**by_channel
    e = (one.abs().max() / one.abs().amax(1, keepdim=True)).log2().floor().clamp(0, 4)
    step = x.abs().max().double() / 7 * 2.0 ** -(e + by_channel)
    deviation = (total / n - x).abs() / step
    assert deviation.max() < 5 * 0.5 / math.sqrt(n)
    assert deviation.mean() > 0


@pytest.mark.parametrize("layout", ["rows", "columns", "channels_last", "planes"])
def test_the_layout_and_the_backend_change_nothing(layout):
    x, same = laid_out(layout, far_apart)
    ours = BOTH(same, torch.tensor(77))
    with ops.use_backend("reference"):
        reference = BOTH(x, torch.tensor(77))
    assert torch.equal(ours.codes, reference.codes)
    assert torch.equal(ours.shift, reference.shift)
    assert ours.codes.stride() == same.stride()
    packed = ops.pack(ours)
    assert packed.nbytes == x.numel() // 2 + packed.places.numel() + 4 + x.shape[1]
    back = ops.unpack(packed)
    assert torch.equal(back.dequantize(), ours.dequantize())
    assert (back.max_shift, back.inside, back.codes.stride()) == (8, ours.inside, same.stride())


def scheme() -> sb.Scheme:
    int4 = sb.Scheme.from_name("int4")
    return dataclasses.replace(int4, name="own", layer=dataclasses.replace(int4.layer, gradient=BOTH))


@pytest.mark.parametrize("samples", [1, 2])
def test_the_products_of_layers_are_integers(samples):
    own = scheme()
    own = sb.Scheme("all", dataclasses.replace(own.layer, gradient_samples=samples))
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 5)),
    )
    sb.quantize_(model, own)
    report = sb.report(model, torch.randn(4, 3, 8, 8), torch.arange(4), F.cross_entropy)
    assert report.integer_share == 1.0
    assert {row["gradient_format"] for row in report.rows} == {"s4"}
    assert "quantize_tokens" in report.layers["2"].kernels


@pytest.mark.parametrize("make", [lambda: nn.Linear(24, 26), lambda: nn.Conv2d(24, 26, 3, bias=True)])
def test_gradients_are_those_of_the_dequantized_gradient(make):
    """In float64, from the same codes: what the integer products compute, up to their rounding to float32."""
    layer, g = make(), far_apart(6, 26, 4, 4)
    x = torch.randn(6, 24, 6, 6)
    if isinstance(layer, nn.Linear):
        g, x = far_apart(96, 26), torch.randn(96, 24)
    only = dataclasses.replace(scheme().layer, weight=sb.AbsMax(8), activation=sb.AbsMax(8))
    quantized = sb.quantize_(nn.Sequential(layer), sb.Scheme("own", only))
    x.requires_grad_()
    torch.manual_seed(0)
    y = quantized(x)
    y.backward(g)
    torch.manual_seed(0)
    streams = draw_stream(3, x.device)
    dg = BOTH(g, streams[0]).dequantize(torch.float64)
    dx, dw = (sb.AbsMax(8)(t).dequantize(torch.float64).requires_grad_() for t in (x, quantized[0].weight))
    bias = torch.zeros(26, dtype=torch.float64, requires_grad=True)
    (F.linear if isinstance(layer, nn.Linear) else F.conv2d)(dx, dw, bias).backward(dg)
    for ours, expected in ((x.grad, dx.grad), (quantized[0].weight.grad, dw.grad), (quantized[0].bias.grad, bias.grad)):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
def test_fused_as_unfused(layout):
    """And not as without the groups: the channels of these gradients are octaves apart, as 1 / D of their norms is."""
    x, gradients = images(3, 3, 7, 5, layout=layout), {}
    for quantizer in (BOTH, dataclasses.replace(BOTH, channel_groups=1)):
        torch.manual_seed(0)
        model = Net(Block(8), Block(8, swapped=True)).to(memory_format=layout)
        with torch.no_grad():
            for block in model.body:
                for conv in (block.conv1, block.conv2):
                    conv.weight.mul_(torch.exp2(-torch.arange(8.0)).view(-1, 1, 1, 1))
        own = sb.LayerScheme(sb.PerChannel(8, axis=0), sb.AbsMax(8), quantizer)
        unfused, fused = pair(model, sb.Scheme("own", own, sb.NormScheme(saved=6)), x)
        shifts = sb.report(unfused, x).layers["body.0.conv2"].gradient_exponents
        assert (shifts is None) == (quantizer is not BOTH)
        if shifts is not None:
            assert shifts.max() >= 4
        assert_same(unfused, fused, x)
        assert set(PASSES) - {"norm_relu_tokens"} <= set(fused.body[0].bn1.record.kernels)
        assert ops.dispatch.REFERENCE not in fused.body[0].bn1.record.kernels.values()
        gradients[quantizer.channel_groups] = step(fused, x)
    assert any(not torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, RANGE_FLOOR, RANGE_FLOOR / 4, 3e38])
def test_extremes(value):
    x = torch.tensor([[value, -value, 1e-38], [0.0, 0.0, 0.0]])
    q = sb.TokenShiftQuant(4, channel_groups=24)(x)
    if math.isfinite(value):
        expected = x if value >= RANGE_FLOOR else torch.zeros_like(x)
        assert torch.allclose(q.dequantize(), expected, rtol=1e-6, atol=1e-37)
    else:
        assert q.scale.isnan().all()
        assert not q.codes.any()


def test_json_and_what_it_refuses():
    own = scheme()
    assert sb.Scheme.from_json(own.to_json()) == own
    assert str(BOTH) == "s4 TokenShiftQuant(5 groups of tokens, 9 of channels, stochastic)"
    assert "9 of channels from 4 octaves" in str(APART)
    for n in (0, 25):
        with pytest.raises(ValueError, match=f"1 to 24 channel_groups, not {n}"):
            sb.TokenShiftQuant(4, channel_groups=n)
    for n in (-1, 9):
        with pytest.raises(ValueError, match=f"one of the 9 channel_groups, 0 to 8, not {n}"):
            sb.TokenShiftQuant(4, channel_groups=9, channels_apart=n)
