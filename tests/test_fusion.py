"""fuse_: the same bits as the unfused model, forward and backward, with codes passing from layer to layer."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import subbyte as sb
from subbyte import models, ops
from subbyte.fusion import FusedForward

LAST, FIRST = torch.channels_last, torch.contiguous_format
CLIPPED, BY_SAMPLE, BY_TOKEN = (
    sb.Scheme("own", sb.LayerScheme(sb.AbsMax(4, clip=0.7), sb.AbsMax(4, clip=0.4), gradient), sb.NormScheme(saved=6))
    for gradient in (
        sb.ShiftQuant(4, groups=9, rounding="stochastic", clip=0.5),
        sb.ShiftQuant(4, groups=9, rounding="stochastic", clip=0.5, axis=0),
        sb.TokenShiftQuant(4, rounding="stochastic"),
    )
)
FEW_BITS = dataclasses.replace(BY_TOKEN, norm=sb.NormScheme("l1", 4, 4, 4, 4, 4, clip=0.6, groups=5))
TOKENS = dataclasses.replace(
    BY_TOKEN, layer=dataclasses.replace(BY_TOKEN.layer, activation=sb.TokenShiftQuant(4, groups=3, clip=0.6))
)
OWN = {"clip": CLIPPED, "by sample": BY_SAMPLE, "by token": BY_TOKEN, "all by token": TOKENS, "few bits": FEW_BITS}
PASSES = ("chain_norm", "norm_relu_tokens", "chain_norm_grad", "norm_grad_tokens")


class Block(nn.Module):
    """A residual block in functional style, whose addition comes first or second."""

    def __init__(self, channels: int, swapped: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.swapped = swapped

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return torch.relu(x + y if self.swapped else y + x)


class Net(nn.Module):
    def __init__(self, *body: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(channels, 4)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def pair(model: nn.Module, scheme="int4", x=None, **changes) -> tuple[nn.Module, nn.Module]:
    """(unfused, fused) with unequal gammas of both signs, one of them 0."""
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.weight is not None:
            with torch.no_grad():
                m.weight.copy_(torch.linspace(-1, 2, m.num_features)), m.bias.normal_()
                m.weight[0] = 0
    sb.quantize_(model, scheme)
    fused = copy.deepcopy(model)
    assert sb.fuse_(fused, x) is fused
    return model, fused


def step(model: nn.Module, x: torch.Tensor, call=None) -> list[torch.Tensor]:
    """Output, every gradient, every buffer and the generator's state after one step."""
    model.zero_grad()
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    y = (call or model)(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) == sum(p.requires_grad for p in model.parameters())
    state = torch.random.get_rng_state()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(0.1 * p.grad)
    return [y.detach(), x.grad, *(g.clone() for g in grads), *(b.clone() for b in model.buffers()), state]


def assert_same(unfused: nn.Module, fused: nn.Module, x: torch.Tensor, steps: int = 2, call=lambda m: m) -> None:
    for _ in range(steps):
        a, b = step(unfused, x, call(unfused)), step(fused, x, call(fused))
        assert len(a) == len(b)
        for i, (s, t) in enumerate(zip(a, b, strict=True)):
            assert torch.equal(s.nan_to_num(9.0), t.nan_to_num(9.0)), f"tensor {i} of {len(a)}: {tuple(s.shape)}"


def images(*shape: int, layout=LAST) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [LAST, FIRST], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
def test_resnets_bit_for_bit(name, layout):
    torch.manual_seed(0)
    model = models.build(name, num_classes=5, image_size=32)
    x = images(4, 3, 16, 16, layout=layout)
    unfused, fused = pair(model.to(memory_format=layout), x=x)
    blocks = {"resnet20": 9, "resnet18": 8, "resnet50": 16}[name]
    shortcuts = {"resnet20": 0, "resnet18": 3, "resnet50": 4}[name]
    assert len(fused.subbyte_fusion.chains) == 1 + blocks + shortcuts
    assert list(fused.subbyte_fusion.left) == ["fc"]
    assert_same(unfused, fused, x)
    assert "scaled_conv2d_grad_input_plus" in fused.layer1[1].conv1.record.kernels  # with the gradient of the shortcut
    record = fused.layer1[0].bn1.record.kernels
    assert set(PASSES) <= set(record)
    assert not set(PASSES) & set(unfused.layer1[0].bn1.record.kernels)


@pytest.mark.parametrize("scheme", ["int4", "int6", "int8", *OWN.values()], ids=["int4", "int6", "int8", *OWN])
def test_recipes(scheme):
    x = images(3, 3, 7, 5)
    assert_same(*pair(Net(Block(8), Block(8, swapped=True)), scheme, x), x)


@pytest.mark.parametrize(
    "gradient",
    [
        sb.AbsMax(4, rounding="stochastic"),
        sb.PerChannel(4, rounding="stochastic", axis=1),
        sb.ShiftQuant(4, rounding="nearest", groups=2),
        sb.ShiftQuant(3, rounding="stochastic", groups=4, exponents="chosen"),
    ],
    ids=str,
)
def test_quantizers_of_the_gradient(gradient):
    scheme = sb.Scheme("own", sb.LayerScheme(sb.AbsMax(4), sb.AbsMax(4), gradient), sb.NormScheme(saved=4, input=6))
    x = images(3, 3, 6, 6)
    unfused, fused = pair(Net(Block(8)), scheme, x)
    assert len(fused.subbyte_fusion.chains) == 2
    assert_same(unfused, fused, x)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gradient": sb.PerChannel(4, rounding="stochastic", axis=0)}, "must see more of a gradient"),
        ({"gradient": sb.PerChannel(4, rounding="stochastic", axis=-1)}, "must see more of a gradient"),
        ({"gradient_samples": 2}, "more than once"),
        ({"weight": sb.LearnedStep(4)}, "none that learns"),
        ({"weight": None}, "every role needs a quantizer"),
    ],
    ids=str,
)
def test_schemes_that_no_chain_covers_are_left(change, says):
    roles = {"weight": sb.AbsMax(4), "activation": sb.AbsMax(4), "gradient": sb.AbsMax(4, rounding="stochastic")}
    model = Net(Block(8))
    sb.quantize_(model, sb.Scheme("own", sb.LayerScheme(**{**roles, **change})))
    with pytest.raises(ValueError, match=says):
        sb.fuse_(model)
    assert not any(isinstance(m, FusedForward) for m in model.modules())


def test_linear_and_one_dimension():
    mlp = nn.Sequential(
        nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()
    )
    x = images(10, 12, layout=FIRST)
    unfused, fused = pair(mlp, x=x)
    assert [str(c) for c in fused.subbyte_fusion.chains] == ["0 - 1 - 3 - 4 - ReLU"]
    assert_same(unfused, fused, x)
    conv = nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 3), nn.BatchNorm1d(4))
    x = images(3, 4, 17, layout=FIRST)
    assert_same(*pair(conv, x=x), x)


def test_grouped_and_depthwise_convolutions():
    body = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2))
    x = images(2, 3, 9, 9)
    assert_same(*pair(Net(body, nn.BatchNorm2d(8), nn.ReLU()), x=x), x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e-38], ids=str)
def test_extremes(value):
    x = images(2, 3, 6, 6)
    x[0, 1, 2, 3] = value
    if value in (0.0, 1e-38):
        x.fill_(value)
    unfused, fused = pair(Net(Block(8)))
    assert_same(unfused, fused, x, steps=1)


def test_modes_that_run_layer_by_layer():
    x = images(3, 3, 6, 6)
    unfused, fused = pair(Net(Block(8)), x=x)
    for model in (unfused, fused):
        model.eval()
    assert torch.equal(unfused(x), fused(x))
    assert_same(unfused, fused, x, steps=1)
    for model in (unfused, fused):
        model.train().body[0].bn1.eval()  # a frozen norm in a model that trains
    assert_same(unfused, fused, x)
    for model in (unfused, fused):
        model.train()
    with torch.autocast("cpu", torch.float16):
        assert_same(unfused, fused, x, steps=1)
    assert_same(unfused, fused, x)
    report = sb.report(fused, x, torch.tensor([0, 1, 2]), F.cross_entropy)
    assert report.integer_share > 0.99
    with torch.no_grad():
        torch.manual_seed(0)
        a = unfused(x)
        torch.manual_seed(0)
        assert torch.equal(a, fused(x))
    assert fused(x[:0]).shape == (0, 4)


def test_training_features():
    x = images(3, 3, 6, 6)
    unfused, fused = pair(Net(Block(8), Block(8)), x=x)
    for m in (unfused, fused):
        m.body[0].conv1.weight.requires_grad_(False)
        m.stem[0].bias.requires_grad_(False)
    assert_same(unfused, fused, x)
    for reentrant in (True, False):
        assert_same(unfused, fused, x, call=lambda m, r=reentrant: lambda x: checkpoint(m, x, use_reentrant=r), steps=1)
    twin = copy.deepcopy(fused)
    assert twin.body[0].conv1 is not fused.body[0].conv1
    assert_same(unfused, twin, x, steps=1)
    assert torch.equal(unfused.stem[0].weight, twin.stem[0].weight)
    assert not torch.equal(unfused.stem[0].weight, fused.stem[0].weight)


def test_state_dict_and_the_way_back():
    x = images(3, 3, 6, 6)
    unfused, fused = pair(Net(Block(8)), x=x)
    assert fused.state_dict().keys() == unfused.state_dict().keys()
    assert isinstance(fused, Net)
    with pytest.raises(TypeError, match="fused already"):
        sb.fuse_(fused)
    assert type(sb.unfuse_(fused)) is Net
    assert not hasattr(fused, "subbyte_fusion")
    assert_same(unfused, fused, x, steps=1)
    sb.fuse_(fused)
    assert type(sb.dequantize_(fused)) is Net
    assert type(fused.stem[0]) is nn.Conv2d


def test_less_is_saved():
    def saved(model: nn.Module) -> int:
        storages = {}

        def pack(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(x).sum()
        return sum(storages.values())

    torch.manual_seed(0)
    x = images(8, 3, 32, 32)
    unfused, fused = pair(models.build("resnet18", num_classes=5, image_size=32))
    assert saved(fused) < saved(unfused) / 2  # ReLU's float outputs are not saved


# ------------------------------------------------------------------------------------------ what is not fused, and why


def test_hooks_are_called_and_their_layers_left():
    x, seen = images(3, 3, 6, 6), []
    model = Net(Block(8), Block(8))
    model.body[0].conv2.register_forward_hook(lambda m, a, y: seen.append("conv2"))
    model.body[1].register_forward_hook(lambda m, a, y: seen.append("block"))
    unfused, fused = pair(model)
    assert fused.subbyte_fusion.left["body.0.conv2"] == "it has hooks"
    names = [str(c) for c in fused.subbyte_fusion.chains]
    assert "body.1.conv1 - body.1.bn1 - body.1.conv2 - body.1.bn2 - add - ReLU" in names
    seen.clear()
    assert_same(unfused, fused, x, steps=1)
    assert seen == ["conv2", "block"] * 2
    seen.clear()
    fused.body[0].bn1.register_forward_hook(lambda m, a, y: seen.append("late"))
    fused.stem.register_forward_pre_hook(lambda m, a: seen.append("later"))
    assert_same(unfused, fused, x, steps=1)
    assert seen.count("late") == 1
    assert seen.count("later") == 1


class Branches(nn.Module):
    """If and while over tensors: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(Block(8))
        self.other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.net(x) if x.sum() > 0 else self.net(-x)


def test_a_model_that_cannot_be_traced_is_fused_in_parts():
    x = images(3, 3, 6, 6)
    unfused, fused = pair(Branches())
    assert type(fused) is Branches
    assert isinstance(fused.net, FusedForward)
    assert {n for c in fused.subbyte_fusion.chains for n in c.layers} >= {"net.stem.0", "net.body.0.bn2", "other.0"}
    for m in (unfused, fused):
        m.other.requires_grad_(False)
    assert_same(unfused, fused, x)


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Block(4)

    def forward(self, x, scale=None, twice: bool = False):
        x = self.net(x)
        x = x if scale is None else x * scale
        return self.net(x) if twice else x


def test_arguments_with_defaults():
    x = images(3, 4, 6, 6)
    unfused, fused = pair(Options())
    assert len(fused.subbyte_fusion.chains) == 1
    assert_same(unfused, fused, x)
    for options in ({"scale": 2.0}, {"twice": True}):
        assert_same(unfused, fused, x, call=lambda m, o=options: lambda x: m(x, **o))
    assert_same(unfused, fused, x, call=lambda m: lambda x: m(x, 3.0))


class Odd(nn.Module):
    """What looks like a chain and is none: a shared layer, an output read twice, a sum that others see."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.read, self.bn_read = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.seen, self.bn_seen = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = torch.relu(self.bn(self.shared(self.shared(x))))
        y = self.read(x)
        x = self.bn_read(y) * y
        before = x * 1
        kept = before
        before += self.bn_seen(self.seen(x))
        return torch.relu(before) + kept


def test_what_only_looks_like_a_chain():
    x = images(3, 4, 6, 6)
    unfused, fused = pair(Odd())
    assert fused.subbyte_fusion.left["shared"] == "called 2 times"
    assert "read" in fused.subbyte_fusion.left
    assert [str(c) for c in fused.subbyte_fusion.chains] == ["seen - bn_seen"]
    assert "called 2 times" in str(fused.subbyte_fusion)
    assert_same(unfused, fused, x)


def test_errors():
    with pytest.raises(TypeError, match="no quantized layer"):
        sb.fuse_(Net())
    with pytest.raises(ValueError, match="nothing to fuse"):
        sb.fuse_(sb.quantize_(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "int4"))
    model = sb.fuse_(sb.quantize_(Net(Block(8)), "int4"))
    with pytest.raises(ValueError, match="batch statistics need more than 1 value"):
        model(images(1, 3, 1, 1))
    with pytest.raises(ValueError, match="expects inputs"):
        model(images(2, 5, 4, 4))


def test_a_difference_on_the_example_is_found(monkeypatch):
    model = sb.quantize_(Net(Block(8)), "int4")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    original = ops.chain.norm_relu
    monkeypatch.setattr(ops.chain, "norm_relu", lambda *a: (original(*a)[0] + 1e-3, *original(*a)[1:]))
    with pytest.raises(RuntimeError, match="differs"):
        sb.fuse_(model, images(2, 3, 6, 6))
    assert type(model) is Net
    monkeypatch.undo()
    sb.fuse_(model, images(2, 3, 6, 6))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training


def test_two_chains_that_begin_with_one_tensor_share_its_codes(monkeypatch):
    torch.manual_seed(0)
    model = sb.fuse_(sb.quantize_(models.build("resnet18", num_classes=5, image_size=32), "int4"))
    seen = []
    original = ops.quantize_tokens
    monkeypatch.setattr(ops, "quantize_tokens", lambda x, *a: (seen.append(tuple(x.shape)), original(x, *a))[1])
    model(images(2, 3, 32, 32))
    assert seen.count((2, 64, 32, 32)) == 2 + 1  # blocks' inputs, and layer2's input once
