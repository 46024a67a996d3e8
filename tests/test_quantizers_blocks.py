"""BlockShiftQuant: codes by the definition, one scale, any layout, integer products, errors."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import subbyte as sb
from integer_nets import needs_library
from subbyte import ops
from subbyte.numerics import IntFormat, draw_stream
from subbyte.qtensor import Inside, QTensor
from test_fusion import Block, Net, assert_same, images, pair


def filters(*shape: int, octaves: int = 4) -> torch.Tensor:
    """Weights whose filters lie octaves apart."""
    g = torch.Generator().manual_seed(sum(shape))
    size = [n if i < 2 else 1 for i, n in enumerate(shape)]
    return torch.randn(shape, generator=g) * torch.exp2(-octaves * torch.rand(size, generator=g))


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (7, 24), (5, 3), (1, 1), (3, 4, 5), (40,)], ids=str)
@pytest.mark.parametrize(
    ("bits", "groups", "block", "clip"), [(4, 3, 8, 1.0), (4, 5, 9, 0.7), (6, 3, 1, 1.0), (8, 1, 4, 0.5)]
)
def test_codes_by_the_definition(shape, bits, groups, block, clip):
    x, big, top = filters(*shape), 2 ** (bits - 1) - 1, groups - 1
    q = sb.BlockShiftQuant(bits, groups=groups, block=block, clip=clip)(x)
    r, unit = (x.abs().max() * clip).item(), 2**top
    wrong = 0
    for first in range(0, x.numel(), block):
        values = x.flatten()[first : first + block]
        e = max(n for n in range(groups) if n == 0 or values.abs().max().item() <= r * 2.0**-n)
        codes = (values.double() * big / r * 2**e).round().clamp(-big, big) * 2 ** (top - e)
        ours = q.codes.flatten()[first : first + block].double()
        assert (ours - codes).abs().max() <= 2 ** (top - e)
        wrong += int((ours != codes).sum())
    assert wrong <= 0.02 * x.numel()  # rounding in fixed point differs from that of doubles at halves alone
    assert q.scale.item() == pytest.approx(r / big / unit)
    assert q.scale.shape == (1,) * x.ndim
    assert (q.shift, q.format) == (None, sb.IntFormat(bits + top))


def test_the_layout_changes_nothing_and_stays():
    w = filters(8, 6, 3, 3)
    quantizer = sb.BlockShiftQuant(4, rounding="stochastic")
    ours = quantizer(w.contiguous(memory_format=torch.channels_last), torch.tensor(5))
    with ops.use_backend("reference"):
        assert torch.equal(ours.codes, quantizer(w, torch.tensor(5)).codes)
    assert ours.codes.is_contiguous(memory_format=torch.channels_last)


@needs_library
@pytest.mark.parametrize(
    ("x", "block", "kernel"),
    [
        (filters(6, 16, 3, 3).contiguous(memory_format=torch.channels_last), 8, "quantize_blocks"),
        (filters(6, 16, 3, 3).contiguous(memory_format=torch.channels_last), 72, "quantize_blocks"),
        (filters(24, 10).t(), 8, "quantize_blocks"),
        (filters(6, 16, 3, 3), 8, "quantize_tokens"),
        (filters(6, 5, 3, 3).contiguous(memory_format=torch.channels_last), 8, "quantize_tokens"),  # no whole blocks
        (filters(2, 3, 4, 5).permute(2, 0, 3, 1), 8, "quantize_tokens"),
        (filters(1, 1)[0, 0], 8, "quantize_tokens"),
        (filters(6, 16, 3, 3)[:, ::2], 8, "quantize_tokens"),
    ],
    ids=lambda v: str(tuple(v.shape)) if isinstance(v, torch.Tensor) else str(v),
)
@pytest.mark.parametrize("stream", [None, torch.tensor(5)], ids=["nearest", "stochastic"])
def test_each_layout_has_its_kernel_and_equals_the_reference(x, block, kernel, stream):
    quantizer = sb.BlockShiftQuant(4, block=block, clip=0.9, rounding="nearest" if stream is None else "stochastic")
    ours = quantizer(x, stream).codes
    ran = ops.last_kernel["quantize_blocks"]
    with ops.use_backend("reference"):
        reference = quantizer(x, stream).codes
    assert torch.equal(ours, reference)
    assert ours.stride() == reference.stride() == torch.empty_like(x).stride()
    assert ran.startswith(kernel if stream is None else "quantize_tokens")


def test_weights_by_blocks_are_closer_than_by_output_channels():
    w = filters(32, 16, 3, 3)
    by_blocks, by_outputs = (
        (q(w).dequantize() - w).square().sum().item()
        for q in (sb.BlockShiftQuant(4), sb.ShiftQuant(4, groups=5, axis=0, clip=0.7))
    )
    assert by_blocks < by_outputs / 2


def test_rounding_is_unbiased_where_nothing_is_clipped():
    x = filters(4, 4, 3, 3)
    quantizer = sb.BlockShiftQuant(4, rounding="stochastic")
    streams = draw_stream(400)
    mean = sum(quantizer(x, s).dequantize() for s in streams) / len(streams)
    q = quantizer(x, streams[0])
    step = q.scale.item() * 2 ** (quantizer.groups - 1)  # the largest
    assert (mean - x).abs().max() < 5 * step / 2 / len(streams) ** 0.5


def scheme() -> sb.Scheme:
    """int4 with weights by blocks, in every layer."""
    int4 = sb.Scheme.from_name("int4")
    layer = dataclasses.replace(int4.layer, weight=sb.BlockShiftQuant(4))
    return dataclasses.replace(int4, name="own", layer=layer, first=layer, last=layer)


def test_every_product_is_one_of_integers():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Flatten(), nn.LazyLinear(5)),
    )
    x, y = torch.randn(16, 3, 8, 8), torch.randint(5, (16,))
    model(x)
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # one in three blocks has an exponent
    sb.quantize_(model, scheme())
    report = sb.report(model, x, y, F.cross_entropy)
    assert report.integer_share == 1.0
    assert {layer.operands["weight"].format for layer in report.layers.values()} == {"s4"}
    assert max(layer.row()["weight_groups_used"] for layer in report.layers.values()) > 1


def test_fused_chains_give_the_same_bits():
    x = images(2, 3, 6, 6)
    assert_same(*pair(Net(Block(8)), scheme(), x), x)


def test_packed_are_the_bits_of_a_code_and_two_a_block():
    quantizer = sb.BlockShiftQuant(4)
    w = torch.randn(6, 4, 3, 3) * torch.exp2(-torch.arange(6.0))[:, None, None, None]
    q = quantizer(w)
    packed = ops.pack(q)
    assert packed.nbytes == w.numel() // 2 + math.ceil(w.numel() / 8 * 2 / 8) + 4
    back = ops.unpack(packed)
    assert torch.equal(back.codes, q.codes)
    assert (back.inside, back.format) == (q.inside, q.format) == (Inside(2, 8), IntFormat(6))
    for other in (w[:, :, 0, :2].contiguous()[:5, :3], w.contiguous(memory_format=torch.channels_last), w[0, 0]):
        q = quantizer(other)
        assert q.inside is None
        packed = ops.pack(q)
        assert packed.packed.numel() == math.ceil(other.numel() * 6 / 8)
        assert torch.equal(ops.unpack(packed).codes, q.codes)


def test_blocks_of_a_qtensor_fit():
    codes = torch.zeros(3, 8, dtype=torch.int8)
    for wrong, message in (
        (Inside(2, 5), "blocks of 5"),
        (Inside(2, -8), "blocks of -8"),
        (Inside(6, 8), r"1\.\.5, not 6"),
    ):
        with pytest.raises(ValueError, match=message):
            QTensor(codes, torch.ones(1, 1), IntFormat(6), inside=wrong)


def test_json_and_names():
    assert sb.Scheme.from_json(scheme().to_json()) == scheme()
    assert str(sb.BlockShiftQuant(4, clip=0.5)) == "s4 BlockShiftQuant(3 groups of blocks of 8, clip 0.5)"


def test_an_empty_tensor_and_one_of_zeros():
    assert sb.BlockShiftQuant(4)(torch.zeros(0, 3)).codes.shape == (0, 3)
    assert not sb.BlockShiftQuant(4)(torch.zeros(3, 3)).codes.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": 0}, "1 element or more, not 0"),
        ({"groups": 6}, "room in 8 for 1 to 5 groups, not 6"),
        ({"clip": 0.0}, "above 0 and at most 1"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        sb.BlockShiftQuant(4, **settings)
