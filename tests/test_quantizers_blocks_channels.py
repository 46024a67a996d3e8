"""BlockShiftQuant with groups of output channels: codes, products, packed; no exponents where channels lie together."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import subbyte as sb
from subbyte import ops
from subbyte.numerics import IntFormat
from subbyte.qtensor import Inside, QTensor
from test_fusion import Block, Net, assert_same, images, pair, step
from test_quantizers_blocks import filters

WIDE = sb.BlockShiftQuant(4, channel_groups=13)
APART = dataclasses.replace(WIDE, channels_apart=4)
WITHOUT = sb.BlockShiftQuant(4)


def far_apart(*shape: int) -> torch.Tensor:
    """Output channels up to 12 octaves apart."""
    gains = torch.exp2(-3.0 * (torch.arange(shape[0]) % 5))
    return filters(*shape) * gains.view(-1, *[1] * (len(shape) - 1))


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (7, 24), (5, 3), (1, 1), (3, 4, 5), (40,)], ids=str)
def test_codes_by_the_definition(shape):
    x = far_apart(*shape)
    q = WIDE(x)
    assert torch.equal(q.shift, sb.ShiftQuant(4, groups=13, axis=0)(x).shift)
    together = WITHOUT(x * torch.exp2(q.shift.float()))
    assert torch.equal(q.codes, together.codes)
    assert torch.equal(q.scale, together.scale)
    assert (q.max_shift, q.inside) == (12, together.inside)
    with ops.use_backend("reference"):
        assert torch.equal(q.codes, WIDE(x).codes)


def test_a_row_that_one_scale_loses_keeps_its_codes():
    x = torch.tensor([[8.0, 3.0, 1.0, 2.0], [0.002, 0.001, 0.0005, 0.002]])
    assert not sb.BlockShiftQuant(4, block=4)(x).codes[1].any()
    for q in (dataclasses.replace(WIDE, block=4)(x), dataclasses.replace(APART, block=4)(x)):
        assert q.shift.flatten().tolist() == [0, 11]
        assert (q.dequantize() / x - 1).abs().max() < 0.2


def test_packed_and_back():
    q = WIDE(far_apart(8, 4, 3, 3))
    packed = ops.pack(q)
    assert packed.nbytes == 8 * 36 // 2 + 8 * 36 // 8 * 2 // 8 + 4 + 8
    back = ops.unpack(packed)
    assert torch.equal(back.dequantize(), q.dequantize())
    assert (back.max_shift, back.inside, back.format) == (12, Inside(2, 8), IntFormat(6))


@pytest.mark.parametrize(("inside", "axis"), [(Inside(2, 8), 1), (Inside(2), 0)])
def test_a_shift_beside_exponents_inside_is_along_their_axis(inside, axis):
    shift = torch.zeros([8 if i == axis else 1 for i in range(2)], dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"along axis {1 - axis}, not"):
        QTensor(torch.zeros(8, 8, dtype=torch.int8), torch.ones(1, 1), IntFormat(6), shift, 3, inside)


def scheme(weight: sb.Quantizer) -> sb.Scheme:
    """int4-wide with that weight, and no layer of its own at the ends."""
    wide = sb.Scheme.from_name("int4-wide")
    return dataclasses.replace(
        wide, name="own", layer=dataclasses.replace(wide.layer, weight=weight), first=None, last=None
    )


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)),
        *(nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 12), nn.Linear(12, 5)),
    )


def gradients(model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x, y = torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("weight", [WIDE, APART], ids=str)
@pytest.mark.parametrize("far", [False, True])
def test_every_product_is_one_of_integers_as_in_the_reference(weight, far):
    model = net()
    if far:
        with torch.no_grad():
            for m in model:
                if isinstance(m, nn.Conv2d | nn.Linear):
                    m.weight.mul_(
                        torch.exp2(-3.0 * (torch.arange(len(m.weight)) % 5)).view(-1, *[1] * (m.weight.ndim - 1))
                    )
    sb.quantize_(model, scheme(weight))
    x, y = torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
    report = sb.report(model, x, y, F.cross_entropy)
    assert report.integer_share == 1.0
    ours = gradients(model)
    with ops.use_backend("reference"):
        reference = gradients(model)
    assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))


def test_weights_that_lie_together_have_none_and_change_nothing():
    steps = {}
    for weight in (APART, WITHOUT):
        model = sb.quantize_(net(), scheme(weight))
        steps[weight] = gradients(model)
        shifts = [weight(p.detach()).shift for p in model.parameters() if p.ndim > 1]
        assert all((s is None) == (weight is WITHOUT) and (s is None or not s.any()) for s in shifts)
    assert all(torch.equal(a, b) for a, b in zip(*steps.values(), strict=True))


def test_fused_as_unfused():
    x, steps = images(2, 3, 6, 6, layout=torch.channels_last), []
    for weight in (APART, WITHOUT):
        torch.manual_seed(0)
        model = Net(Block(8), Block(8, swapped=True)).to(memory_format=torch.channels_last)
        with torch.no_grad():
            for block in model.body:
                block.conv1.weight.mul_(torch.exp2(-1.5 * torch.arange(8.0)).view(-1, 1, 1, 1))
        unfused, fused = pair(model, dataclasses.replace(scheme(weight), norm=sb.NormScheme(saved=6)), x)
        assert_same(unfused, fused, x)
        steps.append(step(fused, x))
    assert any(not torch.equal(a, b) for a, b in zip(*steps, strict=True))


def test_json_and_what_it_refuses():
    assert sb.Scheme.from_json(scheme(APART).to_json()) == scheme(APART)
    assert str(APART) == "s4 BlockShiftQuant(3 groups of blocks of 8, 13 of channels from 4 octaves)"
    with pytest.raises(ValueError, match="BlockShiftQuant takes 1 to 24 channel_groups, not 25"):
        sb.BlockShiftQuant(4, channel_groups=25)
    with pytest.raises(ValueError, match="0 to 12, not 13"):
        dataclasses.replace(WIDE, channels_apart=13)


@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.zeros(3, 8), torch.full((2, 8), float("nan"))], ids=str)
def test_extremes(x):
    q = WIDE(x)
    assert q.codes.shape == x.shape
    assert not q.codes.any()
