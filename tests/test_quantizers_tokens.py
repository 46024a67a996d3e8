"""TokenShiftQuant: codes by the definition, no bias, no clipping, one scale, integer products, errors."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import subbyte as sb
from subbyte import ops
from subbyte.numerics import RANGE_FLOOR, draw_stream
from subbyte.qtensor import Inside
from test_fusion import TOKENS, Block, Net, images, pair
from token_calls import FORMS, token_codes

SHAPES = [(6, 5), (3, 4, 5, 7), (2, 3, 8), (2, 16, 3, 2, 2), (1, 1), (5, 1), (1, 9)]


def loud_and_silent(*shape: int, octaves: int = 8) -> torch.Tensor:
    """Normal numbers whose tokens lie `octaves` apart."""
    g = torch.Generator().manual_seed(sum(shape))
    tokens = [1 if i == 1 else n for i, n in enumerate(shape)]
    return torch.randn(shape, generator=g) * torch.exp2(-octaves * torch.rand(tokens, generator=g))


def laid_out(layout: str, make=loud_and_silent) -> tuple[torch.Tensor, torch.Tensor]:
    """(a row-major tensor, the same in this layout)."""
    x = make(8, 12) if layout in ("rows", "columns") else make(3, 8, 5, 4)
    if layout == "columns":
        return x, x.T.contiguous().T
    return x, x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def exponents(x: torch.Tensor, top: int, clip: float = 1.0) -> torch.Tensor:
    """By logarithm, which is exact enough where no range lies at a power of two."""
    r = x.abs().amax(1, keepdim=True)
    return (x.abs().max() * clip / r).log2().floor().clamp(0, top)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("bits", "groups", "clip"), [(4, 5, 1), (4, 1, 1), (2, 7, 0.7), (6, 3, 0.6), (4, 2, 0.3), (8, 1, 1)]
)
def test_codes_by_the_definition(shape, bits, groups, clip):
    x, top = loud_and_silent(*shape), groups - 1
    q = sb.TokenShiftQuant(bits, groups=groups, clip=float(clip))(x)
    e, big, r = exponents(x, top, clip), 2 ** (bits - 1) - 1, x.abs().max().item() * clip
    codes = (x.double() * big / r * 2**e).round().clamp(-big, big)
    assert (q.codes.double() - codes * 2 ** (top - e)).abs().max() <= 2 ** (top - e).max() * (codes.abs().max() > 0)
    wrong = q.codes != (codes * 2 ** (top - e)).to(torch.int8)
    assert wrong.double().mean() < 0.02  # rounding in fixed point differs from that of doubles at halves alone
    assert q.shift is None
    assert q.scale.numel() == 1
    assert q.scale.item() == pytest.approx(r / big * 2.0**-top)
    assert q.format == sb.IntFormat(bits + top)
    assert torch.equal(q.codes % 2 ** (top - e).to(torch.int8), torch.zeros_like(q.codes))


@pytest.mark.parametrize(("bits", "groups"), [(4, 3), (4, 5), (2, 7), (8, 1)])
def test_unsigned_codes_are_those_of_one_more_bit(bits, groups):
    """Of what is not negative; what is becomes 0."""
    x = loud_and_silent(9, 32)
    q = sb.TokenShiftQuant(bits, groups=groups, signed=False)(x.abs())
    assert q.format == sb.IntFormat(bits + groups - 1, signed=False)
    assert q.codes.max() == (2**bits - 1) * 2 ** (groups - 1)
    assert not sb.TokenShiftQuant(bits, groups=groups, signed=False)(-x.abs()).codes.any()
    if bits + groups <= 8:
        signed = sb.TokenShiftQuant(bits + 1, groups=groups)(x.abs())
        assert torch.equal(q.codes.to(torch.int16), signed.codes.to(torch.int16))
        assert torch.equal(q.scale, signed.scale)


def test_activations_by_tokens_are_closer_than_with_one_scale():
    """Behind a ReLU; and the layer's products stay integers."""
    x = loud_and_silent(64, 32, octaves=3).relu()
    error = {
        name: (q(x).dequantize() - x).square().sum().item()
        for name, q in {
            "tokens": sb.TokenShiftQuant(4, groups=3, signed=False),
            "one": sb.AbsMax(4, signed=False),
        }.items()
    }
    assert error["tokens"] < error["one"] / 2
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    scheme = sb.Scheme.from_name("int4")
    layer = dataclasses.replace(scheme.layer, activation=sb.TokenShiftQuant(4, groups=3))
    sb.quantize_(model, dataclasses.replace(scheme, layer=layer))
    assert not model[2].scheme.activation.signed
    report = sb.report(model, torch.randn(64, 32), torch.randint(5, (64,)), F.cross_entropy)
    assert report.integer_share == 1.0
    assert "quantize_tokens" in report.layers["2"].kernels


@pytest.mark.parametrize("layout", ["rows", "columns", "channels_last", "planes"])
def test_the_layout_changes_nothing(layout):
    x, same = laid_out(layout)
    quantizer = sb.TokenShiftQuant(4, rounding="stochastic")
    stream = torch.tensor(77)
    ours = quantizer(same, stream)
    with ops.use_backend("reference"):
        reference = quantizer(x, stream)
    assert torch.equal(ours.codes, reference.codes)
    assert ours.codes.stride() == same.stride()


@pytest.mark.parametrize("layout", ["rows", "columns", "channels_last", "planes"])
@pytest.mark.parametrize("signed", [True, False])
def test_packed_are_the_bits_of_a_code_and_two_a_token(layout, signed):
    _, x = laid_out(layout)
    q = sb.TokenShiftQuant(4, groups=3, signed=signed)(x if signed else x.abs())
    kernels: dict[str, str] = {}
    with ops.recording(kernels):
        packed = ops.pack(q)
    assert packed.packed.numel() == x.numel() // 2
    assert packed.places.numel() == ops.packed_bytes(x.numel() // x.shape[1], 2)
    assert packed.nbytes == packed.packed.nbytes + packed.places.nbytes + 4
    with ops.recording(kernels):
        back = ops.unpack(packed)
    assert kernels.keys() >= {"pack_tokens", "unpack_tokens"}
    assert ops.dispatch.REFERENCE not in kernels.values()
    assert torch.equal(back.codes, q.codes)
    assert (back.codes.stride(), back.format, back.inside) == (q.codes.stride(), q.format, Inside(2))
    assert torch.equal(back.scale, q.scale)
    with ops.use_backend("reference"):
        assert torch.equal(ops.pack(q).packed, packed.packed)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (2, 3, 1100, 3), (1, 40, 2), (4, 1, 8, 8)])
def test_channels_that_lie_apart_are_packed_to_the_same_bytes(shape, form):
    codes, (bits, signed, top) = token_codes(shape, *form), form
    kernels: dict[str, str] = {}
    with ops.recording(kernels):
        packed = ops.pack_tokens(codes, bits, top)
        back = ops.unpack_tokens(*packed, list(shape), list(codes.stride()), bits, signed, top)
    assert ops.dispatch.REFERENCE not in kernels.values()
    with ops.use_backend("reference"):
        want = ops.pack_tokens(codes, bits, top)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(packed, want, strict=True))
    assert torch.equal(back, codes)


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(16, 8, 3, bias=False), lambda: nn.Linear(16, 8, bias=False)])
def test_four_bits_are_saved_for_backward(make):
    layer = dataclasses.replace(sb.Scheme.from_name("int4").layer, activation=sb.TokenShiftQuant(4, groups=3))
    model = sb.quantize_(nn.Sequential(make()), sb.Scheme("own", layer))
    x = torch.randn(8, 16, 6, 6) if isinstance(model[0], nn.Conv2d) else torch.randn(288, 16)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        model(x.requires_grad_()).sum().backward()
    assert x.numel() // 2 in sizes
    assert x.numel() // 16 // 4 in sizes  # two bits a token
    assert x.numel() not in sizes
    assert x.grad.abs().sum() > 0


def test_activations_by_tokens_are_made_in_one_pass():
    x = images(2, 3, 6, 6)
    _, fused = pair(Net(Block(8)), TOKENS, x)
    fused(x).sum().backward()
    record = fused.body[0].bn1.record.kernels
    assert "norm_relu_tokens" in record
    assert "quantize_tokens" not in record


def test_only_a_shift_of_channels_is_beside_those_of_tokens():
    q = sb.TokenShiftQuant(4, groups=3)(torch.randn(4, 6))
    assert dataclasses.replace(q, shift=torch.zeros(1, 6, dtype=torch.uint8), max_shift=1).shift is not None
    with pytest.raises(ValueError, match="tokens inside of codes a shift is along axis 1, not"):
        dataclasses.replace(q, shift=torch.zeros(4, 1, dtype=torch.uint8), max_shift=1)
    assert q.T.inside is None  # its tokens lie along the other axis


def test_nothing_is_clipped_and_the_mean_is_exact():
    x = loud_and_silent(16, 32)
    quantizer = sb.TokenShiftQuant(4, rounding="stochastic")
    n = 4000
    total = sum(quantizer(x, stream).dequantize(torch.float64) for stream in draw_stream(n))
    step = x.abs().max() / 7 * 2.0 ** -exponents(x, 4)
    error = (total / n - x).abs() / step  # of a mean of n numbers with a deviation of half a step at most
    assert error.max() < 5 * 0.5 / math.sqrt(n)
    assert error.mean() > 0  # it is random at all
    assert ((quantizer(x, torch.tensor(1)).dequantize() - x).abs() <= step).all()


def test_less_noise_than_groups_of_channels():
    x = loud_and_silent(64, 32)
    noise = {
        name: (q(x, torch.tensor(5)).dequantize() - x).square().sum().item()
        for name, q in {
            "tokens": sb.TokenShiftQuant(4, rounding="stochastic"),
            "channels": sb.ShiftQuant(4, groups=9, rounding="stochastic"),
        }.items()
    }
    assert noise["tokens"] < noise["channels"] / 2


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, RANGE_FLOOR, RANGE_FLOOR / 4, 3e38])
def test_extremes(value):
    x = torch.tensor([[value, -value], [0.0, 0.0]])
    q = sb.TokenShiftQuant(4)(x)
    if math.isfinite(value):
        expected = x if value >= RANGE_FLOOR else torch.zeros_like(x)
        assert torch.allclose(q.dequantize(), expected, rtol=1e-6, atol=0)
    else:
        assert q.scale.isnan().all()
        assert not q.codes.any()


def test_a_range_at_a_power_of_two_takes_the_exponent():
    x = torch.tensor([[16.0], [1.0], [1.0000001], [0.9], [15.9]])
    assert ops.token_exponents(x, torch.tensor([[16.0]]), 4).flatten().tolist() == [0, 4, 3, 4, 0]


def test_the_products_of_layers_are_integers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    sb.quantize_(model, sb.Scheme("all", sb.Scheme.from_name("int4").layer))
    report = sb.report(model, torch.randn(4, 3, 8, 8), torch.arange(4), F.cross_entropy)
    assert report.integer_share == 1.0
    row = report.rows[1]
    assert row["gradient_format"] == "s4"
    assert 2 <= row["gradient_groups_used"] <= 5
    assert row["gradient_clipped_pct"] == 0
    assert "quantize_tokens" in report.layers["2"].kernels


def test_recipes_and_json():
    for name, q in (("int4", sb.TokenShiftQuant(4, rounding="stochastic")), ("int6", None)):
        gradient = sb.Scheme.from_name(name).layer.gradient
        assert gradient.bits + gradient.top == 8
        assert q is None or gradient == q
        scheme = sb.Scheme.from_name(name)
        assert sb.Scheme.from_json(scheme.to_json()) == scheme


def test_what_it_refuses():
    with pytest.raises(ValueError, match="1 to 5 groups, not 6"):
        sb.TokenShiftQuant(4, groups=6)
    with pytest.raises(ValueError, match="needs an axis 1"):
        sb.TokenShiftQuant(4)(torch.randn(5))
