"""Lazy layers, tied weights, parametrizations, frozen layers, adapters, and layers of the user's own."""

import copy
import math

import pytest
import torch
from torch import nn

import subbyte as sb
from models_for_tests import relative
from subbyte import AbsMax, Scheme

INT4 = Scheme.from_name("int4").layer


def train(model, steps, lr=0.02, x=None, target=None):
    """(first loss, last loss) of a regression that the model can learn."""
    torch.manual_seed(3)
    x = torch.randn(64, 12) if x is None else x
    target = torch.randn(64, 4) if target is None else target
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    losses = []
    for _ in range(steps):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


# -------------------------------------------------------------------------------------------------------------- lazy

LAZY = [n for n in dir(nn) if n.startswith("Lazy")]


def lazy_model(name):
    args = (4,) if name == "LazyLinear" else (4, 3) if "Conv" in name else ()
    return nn.Sequential(getattr(nn, name)(*args))


def lazy_input(name):
    return torch.randn(2, 4, *[6] * (int(name[-2]) if name.endswith("d") else 0))


@pytest.mark.parametrize("name", LAZY)
def test_lazy_layers_convert_when_they_materialize(name):
    model, eager = lazy_model(name), lazy_model(name)
    x = lazy_input(name)
    torch.manual_seed(0)
    eager(x)
    sb.quantize_(eager, "int4")
    sb.quantize_(model, "int4")
    assert isinstance(model[0], getattr(nn, name))
    torch.manual_seed(0)
    model(x)
    assert type(model[0]) is type(eager[0]) is getattr(sb.nn, name[4:])
    assert model[0].record.kernels  # the very first call ran in integers
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), eager.parameters(), strict=True))
    assert str(model[0].scheme) == str(eager[0].scheme)
    sb.dequantize_(model)
    assert type(model[0]) is getattr(nn, name[4:])


@pytest.mark.parametrize("name", ["LazyLinear", "LazyBatchNorm2d"])
def test_lazy_layers_go_back_before_they_materialize(name):
    model = sb.dequantize_(sb.quantize_(lazy_model(name), "int4"))
    assert type(model[0]) is getattr(nn, name)
    model(lazy_input(name))
    assert type(model[0]) is getattr(nn, name[4:])


def test_every_lazy_layer_of_torch_is_known():
    assert {getattr(nn, n) for n in LAZY} <= set(sb.nn.REGISTRY)


# ------------------------------------------------------------------------------- tied, parametrized, frozen weights


class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.head = nn.Embedding(20, 16), nn.RMSNorm(16), nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, index):
        return self.head(self.norm(self.embed(index)))


def test_an_embedding_tied_to_a_head_stays_one_parameter_and_trains():
    model = sb.quantize_(TiedLanguageModel(), "int8")
    assert model.head.weight is model.embed.weight
    index = torch.randint(0, 20, (4, 8))
    model(index).square().mean().backward()
    both = model.embed.weight.grad.clone()
    model.zero_grad()
    model.head(model.norm(model.embed(index)).detach()).square().mean().backward()
    assert not torch.equal(both, model.embed.weight.grad)  # the look-up's gradient is in there too
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(index).flatten(0, 1), index.roll(-1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.head.weight is model.embed.weight
    assert sb.report(model, index).integer_share == 1.0
    sb.dequantize_(model)
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("parametrization", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize(
    "layer", [nn.Linear(12, 4), nn.Conv1d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv3d(4, 2, 2), nn.Embedding(9, 3)]
)
def test_parametrized_layers(layer, parametrization):
    model = nn.Sequential(copy.deepcopy(layer))
    name = type(layer).__name__
    getattr(torch.nn.utils.parametrizations, parametrization)(model[0])
    x = torch.randint(0, 9, (3,)) if name == "Embedding" else torch.randn(2, *{"L": (12,)}.get(name[0], (4, 6, 6, 6)))
    if "Conv" in name:
        x = torch.randn(2, 4, *[6] * int(name[-2]))
    keys = list(model.state_dict())
    sb.quantize_(model, "int8")
    assert isinstance(model[0], getattr(sb.nn, name))
    y = model(x)
    y.square().sum().backward()
    assert model[0].record.kernels["output"] == model[0].record.kernels["grad_weight"] == "integer"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert list(model.state_dict()) == keys
    sb.dequantize_(model)
    model.eval()
    assert isinstance(model[0], getattr(nn, name))
    assert not isinstance(model[0], sb.nn.QuantizedLayer)
    assert relative(y, model(x)) < 0.1


def test_the_old_weight_norm_of_hooks():
    with pytest.warns(FutureWarning, match="deprecated"):
        layer = torch.nn.utils.weight_norm(nn.Linear(12, 4))
    model = sb.quantize_(nn.Sequential(layer), "int8")
    model(torch.randn(3, 12)).sum().backward()
    assert layer.weight_g.grad is not None
    assert layer.weight_v.grad is not None


@pytest.mark.parametrize("name", ["Conv1d", "ConvTranspose2d", "Embedding", "GroupNorm", "RMSNorm", "Bilinear"])
def test_frozen_layers_pass_gradients_and_keep_their_weights(name):
    args = {"Embedding": (9, 4), "GroupNorm": (2, 4), "RMSNorm": (6,), "Bilinear": (4, 5, 3)}.get(name, (4, 4, 3))
    layer = sb.quantize_(nn.Sequential(getattr(nn, name)(*args)), "int8")[0].requires_grad_(False)
    x = torch.randn(2, 4, *{"Conv1d": (6,), "Bilinear": ()}.get(name, (6, 6)), requires_grad=True)
    if name == "Embedding":
        assert not layer(torch.tensor([1, 2])).requires_grad
        return
    inputs = (x, torch.randn(2, 5)) if name == "Bilinear" else (x,)
    layer(*inputs).sum().backward()
    assert x.grad is not None
    assert "grad_weight" not in layer.record.kernels
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize(
    ("between", "last"),
    [
        (nn.MaxPool3d(2), nn.Conv3d(4, 2, 2)),
        (nn.AvgPool3d(2), nn.ConvTranspose3d(4, 2, 2)),
        (nn.ReflectionPad2d(1), nn.ConvTranspose2d(4, 2, 2)),
        (nn.AdaptiveMaxPool1d(4), nn.Conv1d(4, 2, 2)),
        (nn.PixelShuffle(2), nn.Conv2d(1, 2, 2)),
    ],
)
def test_inputs_behind_a_relu_and_what_keeps_signs_are_unsigned(between, last):
    for first in (nn.ReLU(), nn.Tanh()):
        model = sb.quantize_(nn.Sequential(first, between, copy.deepcopy(last)), "int8")
        assert model[2].scheme.activation.signed == isinstance(first, nn.Tanh)


# ------------------------------------------------------------------------------------------------------------ LoRA


def test_lora_starts_as_the_quantized_layer_and_learns():
    model = sb.quantize_(mlp(), "int4").eval()
    x = torch.randn(64, 12)
    before = model(x)
    sb.nn.add_lora_(model, rank=4, alpha=8)
    assert relative(model(x), before) < 1e-6  # B is zero
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{i}.lora_{ab}.weight" for i in (0, 2) for ab in "AB"}
    assert model[0].base_codes.dtype == torch.uint8
    codes = model[0].base_codes.clone()
    first, last = train(model.train(), 60)
    assert last < 0.75 * first
    assert torch.equal(model[0].base_codes, codes)
    assert all(p.grad is None for p in (model[0].bias, model[2].bias))


@pytest.mark.parametrize("recipe", ["int4", "int6", "int8"])
def test_lora_base_is_packed_and_equals_the_quantizers_codes(recipe):
    scheme = Scheme.from_name(recipe).layer
    torch.manual_seed(0)
    plain = sb.nn.Linear(48, 40, scheme=scheme)
    model = nn.Sequential(copy.deepcopy(plain))
    sb.nn.add_lora_(model, rank=2)
    assert model[0].base_codes.numel() == math.ceil(48 * 40 * scheme.weight.bits / 8)
    by_block = isinstance(scheme.weight, sb.BlockShiftQuant)  # two bits for each 8 weights
    assert by_block == (recipe == "int4")
    places = model[0].base_places
    assert (None if places is None else places.numel()) == (48 * 40 // 8 // 4 if by_block else None)
    assert torch.equal(model[0].weight, scheme.weight(plain.weight.detach()).dequantize())
    assert isinstance(model[0], nn.Linear)
    assert "rank=2" in repr(model[0])


def test_lora_in_every_product_is_integer_and_counted():
    model = sb.nn.add_lora_(sb.quantize_(mlp(), "int4"), rank=4)
    x = torch.randn(8, 12)
    found = sb.report(model, x)
    assert found.integer_share == 1.0
    assert not found.float_macs
    forward = 8 * (12 * 32 + 32 * 4 + 4 * (12 + 32) + 4 * (32 + 4))
    base = 8 * 32 * 4  # the frozen second layer still sends a gradient down; the first has no one to send it to
    adapters = 2 * 8 * (4 * (12 + 32) + 4 * (32 + 4)) - 8 * 4 * 12
    assert found.integer_macs == forward + base + adapters
    assert found.layers["2.lora_B"].operands["activation"].clipped_pct == 0  # A(x) is signed, whatever x is
    assert set(found.layers) == {"0", "0.lora_A", "0.lora_B", "2", "2.lora_A", "2.lora_B"}


def test_lora_state_dict_round_trip_and_copies():
    model = sb.nn.add_lora_(sb.quantize_(mlp(), "int4"), rank=4)
    train(model, 5)
    names = ["bias", "base_codes", "base_scale", "lora_A.weight", "lora_B.weight"]
    assert list(model.state_dict()) == [f"{i}.{n}" for i in (0, 2) for n in names]
    other = sb.nn.add_lora_(sb.quantize_(mlp(), "int4"), rank=4)
    other.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(5, 12)
    for twin in (other, copy.deepcopy(model)):
        assert torch.equal(twin.eval()(x), model.eval()(x))
        model.train()


def test_lora_merges_back():
    model = sb.nn.add_lora_(sb.quantize_(mlp(), "int8"), rank=4, alpha=8)
    train(model, 20)
    model.eval()
    x = torch.randn(64, 12)
    y = model(x)
    merged = [m.merged_weight().detach() for m in (model[0], model[2])]
    floats = mlp()
    floats.load_state_dict(sb.float_state_dict(model), strict=True)
    assert all(torch.equal(floats[i].weight, w) for i, w in zip((0, 2), merged, strict=True))
    again = sb.nn.merge_lora_(copy.deepcopy(model))
    assert [type(m) for m in again] == [sb.nn.Linear, nn.ReLU, sb.nn.Linear]
    assert list(again.state_dict()) == list(mlp().state_dict())
    assert relative(again(x), y) < 0.1
    assert again[0].weight.requires_grad
    sb.dequantize_(model)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert torch.equal(model(x), floats(x))
    assert relative(model(x), y) < 0.1
    assert list(model.state_dict()) == list(mlp().state_dict())


def test_lora_on_a_base_with_a_shift():
    scheme = sb.LayerScheme(sb.ShiftQuant(4, groups=4), AbsMax(8), AbsMax(8))
    torch.manual_seed(0)
    layer = sb.nn.LoRALinear(16, 8, scheme=scheme, rank=2, dropout=0.5)
    assert "base_shift" in layer.state_dict()
    x = torch.randn(4, 16, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.record.kernels["output"] == layer.record.kernels["grad_input"] == "integer"


def test_what_lora_refuses():
    with pytest.raises(TypeError, match="quantize_"):
        sb.nn.add_lora_(mlp(), 4)
    with pytest.raises(ValueError, match="no layer to adapt"):
        sb.nn.add_lora_(sb.quantize_(mlp(), "int4"), 4, filter_fn=lambda m, n: False)
    with pytest.raises(ValueError, match="rank"):
        sb.nn.add_lora_(sb.quantize_(mlp(), "int4"), 0)
    with pytest.raises(ValueError, match="tied"):
        sb.nn.add_lora_(sb.quantize_(TiedLanguageModel(), "int4"), 2)
    with pytest.raises(ValueError, match="integer codes"):
        sb.nn.add_lora_(sb.quantize_(mlp(), Scheme(layer=sb.LayerScheme(None, AbsMax(8), AbsMax(8)))), 2)
    with pytest.raises(TypeError, match="no LoRALinear"):
        sb.nn.merge_lora_(mlp())
    normed = mlp()
    torch.nn.utils.parametrizations.weight_norm(normed[0])
    with pytest.raises(ValueError, match="is parametrized"):
        sb.nn.add_lora_(sb.quantize_(normed, "int4"), 2)


def test_lora_only_where_the_filter_says():
    model = sb.nn.add_lora_(sb.quantize_(mlp(), "int4"), 2, filter_fn=lambda m, n: n == "2")
    assert [type(m) for m in model] == [sb.nn.Linear, nn.ReLU, sb.nn.LoRALinear]
    assert not model[0].weight.requires_grad


# --------------------------------------------------------------------------------------------- layers of one's own


def test_a_layer_of_the_users_own():
    class StandardizedConv2d(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
            return self._conv_forward(x, w, self.bias)

    model = nn.Sequential(StandardizedConv2d(3, 4, 3), nn.Linear(6, 2))
    sb.quantize_(model, "int8")
    assert "a subclass of Conv2d" in sb.report(model).conversion.left_float["0"]  # not known: left alone, and said
    sb.dequantize_(model)
    registered = dict(sb.nn.REGISTRY)
    try:

        class IntStandardizedConv2d(sb.nn.ProductLayer, StandardizedConv2d, replaces=StandardizedConv2d):
            def forward(self, x):
                w = self.weight
                w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
                params = sb.ops.ConvParams(self.stride, self.padding, self.dilation, self.groups)
                return self.multiply(x, sb.products.ConvProducts(params), w)

        x = torch.randn(2, 3, 8, 8)
        want = model[0](x)
        sb.quantize_(model, "int8")
        assert type(model[0]) is IntStandardizedConv2d
        assert 1e-4 < relative(model[0](x), want) < 0.05
        model[0](x).sum().backward()
        assert model[0].record.kernels["grad_weight"] == "integer"
        sb.dequantize_(model)
        assert type(model[0]) is StandardizedConv2d
    finally:
        sb.nn.REGISTRY.clear()
        sb.nn.REGISTRY.update(registered)
