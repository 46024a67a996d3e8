"""quantize_, dequantize_, float_state_dict: what converts, what stays, and that everything comes back."""

import copy

import pytest
import torch
from torch import nn

import subbyte as sb
from models_for_tests import conv_net, mlp, relative
from subbyte import AbsMax, LayerScheme, NormScheme, Scheme
from subbyte.convert import CONVERSION, STATE_SUFFIX
from subbyte.nn import REGISTRY, QuantizedLayer


def converted(model) -> list[str]:
    return list(getattr(model, CONVERSION).converted)


class SubLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


class BatchNormAct2d(nn.BatchNorm2d):
    """Norm and activation in one, as timm has it."""

    def forward(self, x):
        return super().forward(x).relu()


# ------------------------------------------------------------------------------------------------------ what converts


def test_layers_change_class_and_nothing_else():
    model = conv_net()
    before = {n: (p, p.data_ptr()) for n, p in model.named_parameters()}
    keys, modules = list(model.state_dict()), list(model.modules())
    assert sb.quantize_(model, "int4") is model
    assert [type(m) for m in model] == [
        *(sb.nn.Conv2d, sb.nn.BatchNorm2d, nn.ReLU, sb.nn.Conv2d, sb.nn.BatchNorm2d, nn.ReLU, nn.Flatten),
        sb.nn.Linear,
    ]
    assert list(model.modules()) == modules
    assert list(model.state_dict()) == keys
    for name, p in model.named_parameters():
        assert p is before[name][0]
        assert p.data_ptr() == before[name][1]
        assert type(p) is nn.Parameter
    assert isinstance(model[0], nn.Conv2d)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert isinstance(model[7], nn.Linear)
    assert converted(model) == ["0", "1", "3", "4", "7"]
    assert getattr(model, CONVERSION).left_float == {}


def test_subclasses_are_left_alone_and_listed():
    model = nn.Sequential(
        nn.Linear(4, 4), SubLinear(4, 4), BatchNormAct2d(4), nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4)
    )
    sb.quantize_(model, "int4")
    assert [type(m) for m in model][1:] == [
        SubLinear,
        BatchNormAct2d,
        nn.modules.linear.NonDynamicallyQuantizableLinear,
    ]
    left = getattr(model, CONVERSION).left_float
    assert set(left) == {"1", "2", "3"}
    assert "subclass of Linear" in left["1"]
    assert "subclass of BatchNorm2d" in left["2"]


def test_modules_without_an_integer_layer_are_listed():
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.LSTM(4, 4), nn.ReLU())
    sb.quantize_(model, "int4")
    assert getattr(model, CONVERSION).left_float == {
        "1": "no integer layer for PReLU",
        "2": "no integer layer for LSTM",
    }


def test_filter():
    model = conv_net()
    sb.quantize_(model, "int4", lambda m, name: isinstance(m, nn.Conv2d) and name != "3")
    assert converted(model) == ["0"]
    assert getattr(model, CONVERSION).left_float == dict.fromkeys(["1", "3", "4", "7"], "filter_fn said no")


def test_nothing_to_convert():
    model = nn.Sequential(nn.ReLU(), nn.PReLU())
    with pytest.raises(ValueError, match=r"has PReLU, ReLU, Sequential.*BatchNorm2d.*Linear"):
        sb.quantize_(model, "int4")
    with pytest.raises(ValueError, match="nothing to quantize"):
        sb.quantize_(conv_net(), "int4", lambda m, name: False)
    with pytest.raises(ValueError, match="nothing to quantize"):
        sb.quantize_(conv_net(), Scheme.from_name("int4").override("*", None))
    assert not any(hasattr(m, CONVERSION) for m in model.modules())


def test_wrong_schemes():
    with pytest.raises(ValueError, match="did you mean 'int4'"):
        sb.quantize_(conv_net(), "int44")
    with pytest.raises(TypeError, match="takes a Scheme"):
        sb.quantize_(conv_net(), LayerScheme())


def test_twice():
    model = sb.quantize_(conv_net(), "int4")
    with pytest.raises(TypeError, match=r"quantized already \(5 layers, first '0'\)"):
        sb.quantize_(model, "int8")
    with pytest.raises(TypeError, match="quantized already"):
        sb.quantize_(nn.Sequential(model), "int8")


def test_the_float_scheme_passes_and_can_be_followed_by_another():
    model, plain = conv_net(), conv_net()
    sb.quantize_(model, "float")
    x = torch.randn(3, 3, 8, 8)
    assert relative(model(x), plain(x)) < 1e-5
    assert type(model[0]) is sb.nn.Conv2d
    sb.quantize_(model, "int4")
    assert model[7].scheme == Scheme.from_name("int4").last.unsigned_activation()


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 3), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(4), nn.LayerNorm(4)], ids=lambda m: type(m).__name__
)
def test_the_model_itself_may_be_a_layer(layer):
    layer = copy.deepcopy(layer)
    kind = type(layer)
    assert sb.quantize_(layer, "int4") is layer
    assert type(layer) is REGISTRY[kind]
    assert converted(layer) == [""]
    shape = (2, 4, 5, 5) if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)) else (2, 4)
    layer(torch.randn(shape)).sum().backward()
    sb.dequantize_(layer)
    assert type(layer) is (sb.nn.LayerNorm if kind is nn.LayerNorm else kind)


def test_shared_modules_convert_once():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(4, 4))})
    sb.quantize_(model, "int4")
    assert model["a"] is model["b"][0]
    assert type(model["a"]) is sb.nn.Linear
    assert converted(model) == ["a", "b.1"]
    sb.dequantize_(model)
    assert type(model["a"]) is nn.Linear


# ---------------------------------------------------------------------------------------------------- which scheme


def test_first_and_last_are_eight_bits():
    model = sb.quantize_(mlp(), "int4")
    scheme = Scheme.from_name("int4")
    assert model[0].scheme == scheme.first
    assert model[3].scheme == scheme.layer.unsigned_activation()
    assert model[5].scheme == scheme.last.unsigned_activation()
    assert model[1].scheme == scheme.norm


def test_first_and_last_are_counted_among_what_converts():
    model = sb.quantize_(mlp(), "int4", lambda m, name: name != "0")
    assert model[3].scheme == Scheme.from_name("int4").first.unsigned_activation()


def test_overrides():
    other, norm = LayerScheme(AbsMax(2), AbsMax(2), AbsMax(2)), NormScheme("l2")
    scheme = Scheme.from_name("int4").override("3", other).override("re:[05]", None).override("1", norm)
    model = sb.quantize_(mlp(), scheme)
    assert model[3].scheme == other.unsigned_activation()
    assert model[1].scheme is norm
    assert type(model[0]) is type(model[5]) is nn.Linear
    assert getattr(model, CONVERSION).left_float == dict.fromkeys(["0", "5"], "the scheme leaves it float")


# --------------------------------------------------------------------------------------------------------- what stays


def test_requires_grad_dtype_device_training_and_names_survive():
    model = conv_net().to(torch.bfloat16)
    model[0].weight.requires_grad_(False)
    model[4].eval()
    sb.quantize_(model, "int4")
    assert not model[0].weight.requires_grad
    assert model[3].weight.requires_grad
    assert [m.training for m in model] == [True] * 4 + [False] + [True] * 3
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    sb.dequantize_(model)
    assert not model[0].weight.requires_grad
    assert not model[4].training


def test_hooks_survive():
    model, seen = conv_net(), []
    model[3].register_forward_hook(lambda m, args, out: seen.append("forward"))
    model[3].register_forward_pre_hook(lambda m, args: seen.append("pre"))
    model[3].register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    model[3].weight.register_hook(lambda g: seen.append("weight"))
    sb.quantize_(model, "int4")
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert sorted(seen) == ["backward", "forward", "pre", "weight"]
    sb.dequantize_(model)
    model(torch.randn(2, 3, 8, 8))
    assert seen.count("forward") == 2


def test_an_optimizer_from_before_steps_the_same_parameters():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sb.quantize_(model, "int4")
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(8, 12)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_extra_repr_says_what_the_layer_is():
    model = sb.quantize_(mlp(), "int4")
    assert "in_features=16, out_features=16, bias=True" in repr(model[3])
    for said in (
        "w=s4 BlockShiftQuant(3 groups of blocks of 8)",
        "x=u4 TokenShiftQuant(2 groups of tokens, clip 0.6)",
        "g=s4 TokenShiftQuant(5 groups",
    ):
        assert said in repr(model[3])
    assert "l1 x=s8, xhat=s8/s6 saved, w=s8, g=s8" in repr(model[1])
    sb.dequantize_(model)
    assert "AbsMax" not in repr(model)
    assert "l1 float" in repr(model[1])


@pytest.mark.parametrize("recipe", ["float", "int4"])
def test_a_sync_batchnorm_would_undo_it(recipe):
    model = sb.quantize_(conv_net(), recipe)
    with pytest.raises(TypeError, match=r"2 quantized BatchNorm.*\('1'"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(sb.dequantize_(model))
    assert type(plain[1]) is nn.SyncBatchNorm


@pytest.mark.parametrize("first", ["convert", "parametrize"])
def test_parametrizations(first):
    model = mlp()
    if first == "parametrize":
        nn.utils.parametrizations.weight_norm(model[3])
    keys = set(model.state_dict())
    sb.quantize_(model, "int4")
    if first == "convert":
        nn.utils.parametrizations.weight_norm(model[3])
        keys = set(model.state_dict())
    assert isinstance(model[3], sb.nn.Linear)
    assert set(model.state_dict()) == keys
    assert nn.utils.parametrize.is_parametrized(model[3], "weight")
    model(torch.randn(5, 12)).square().sum().backward()
    assert model[3].record.kernels["grad_weight"] == "integer"
    for p in model[3].parametrizations.weight.parameters():
        assert p.grad is not None
        assert p.grad.abs().sum() > 0
    copied = copy.deepcopy(model)
    torch.manual_seed(0)
    y = model(torch.ones(5, 12))
    torch.manual_seed(0)
    assert torch.equal(copied(torch.ones(5, 12)), y)
    weight = model[3].weight.detach().clone()
    nn.utils.parametrize.remove_parametrizations(model[3], "weight")
    assert type(model[3]) is sb.nn.Linear
    assert torch.equal(model[3].weight, weight)
    model(torch.randn(5, 12)).sum().backward()
    sb.dequantize_(model)
    assert type(model[3]) is nn.Linear


def test_dequantize_a_parametrized_layer():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[3])
    sb.quantize_(model, "int4")
    sb.dequantize_(model)
    assert not isinstance(model[3], QuantizedLayer)
    assert isinstance(model[3], nn.Linear)
    assert nn.utils.parametrize.is_parametrized(model[3], "weight")
    model(torch.randn(5, 12))
    nn.utils.parametrize.remove_parametrizations(model[3], "weight")
    assert type(model[3]) is nn.Linear


def test_torchs_fused_encoder_layer_does_not_bypass_the_layers():
    """In eval mode without gradients torch would run a float kernel on linear1.weight and never call linear1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0), nn.Linear(16, 4))
    x = torch.randn(2, 5, 16)
    sb.quantize_(model, "int4").eval()
    with torch.no_grad():
        fused = model(x)
    assert torch.equal(fused, model(x).detach())
    sb.dequantize_(model)
    assert model[0].activation_relu_or_gelu == 1
    assert not torch.equal(model(x), fused)


# ----------------------------------------------------------------------------------------------------- and back again


def test_dequantize_gives_the_float_model():
    model, plain = conv_net(), conv_net()
    types = [type(m) for m in model.modules()]
    sb.quantize_(model, "int4")
    x = torch.randn(4, 3, 8, 8)
    model(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert sb.dequantize_(model) is model
    assert [type(m) for m in model.modules()] == types
    assert not any(hasattr(m, a) for m in model.modules() for a in ("scheme", "record", CONVERSION))
    plain.load_state_dict(state)
    for mode in (False, True):
        assert torch.equal(model.train(mode)(x), plain.train(mode)(x))
    with pytest.raises(TypeError, match="no quantized layer"):
        sb.dequantize_(model)


def test_an_l1_layer_norm_stays_a_float_l1_layer_norm():
    model = sb.quantize_(mlp(), "int4")
    state = copy.deepcopy(model.state_dict())
    sb.dequantize_(model)
    assert type(model[1]) is sb.nn.LayerNorm
    assert model[1].scheme.is_float
    assert model[1].scheme.kind == "l1"
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    x = torch.randn(5, 16)
    centred = x - x.mean(1, keepdim=True)
    d = (torch.pi / 2) ** 0.5 * centred.abs().mean(1, keepdim=True) + model[1].eps ** 0.5
    assert relative(model[1](x), centred / d * model[1].weight + model[1].bias) < 1e-5
    sb.quantize_(model, "int4")
    assert not model[1].scheme.is_float


def test_an_l2_layer_norm_goes_back_to_torchs():
    scheme = Scheme.from_name("int4").override("1", NormScheme("l2"))
    assert type(sb.dequantize_(sb.quantize_(mlp(), scheme))[1]) is nn.LayerNorm


def test_checkpoints_load_strictly_in_both_directions():
    model, plain = sb.quantize_(conv_net(), "int4"), conv_net()
    model(torch.randn(4, 3, 8, 8))
    state = sb.float_state_dict(model)
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state, strict=True)
    other = sb.quantize_(conv_net(), "int8")
    other.load_state_dict(plain.state_dict(), strict=True)
    for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_float_state_dict_strips_what_a_quantizer_keeps():
    model = sb.quantize_(conv_net(), "int4")
    model[0].register_buffer("step" + STATE_SUFFIX, torch.ones(()))
    assert "0.step" + STATE_SUFFIX in model.state_dict()
    conv_net().load_state_dict(sb.float_state_dict(model), strict=True)
