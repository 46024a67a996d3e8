"""Models by name: published sizes, torchvision's state_dict keys, tracing, initialization, bad input."""

import math

import pytest
import torch
from torch import nn

from subbyte import models
from subbyte.models.resnet import BasicBlock, Bottleneck, PadShortcut

torch.set_num_threads(1)

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def on_meta(*args, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return models.build(*args, **kwargs)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("resnet18", 1000, 11_689_512),  # torchvision's documentation
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("resnet20", 10, 269_722),  # arXiv 1512.03385, table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M
        ("resnet32", 10, 464_154),
        ("resnet44", 10, 658_586),
        ("resnet56", 10, 853_018),
        ("resnet110", 10, 1_727_962),
    ],
)
def test_parameter_count(name, classes, parameters):
    assert count(on_meta(name, classes)) == parameters


def test_projection_adds_exactly_its_parameters():
    extra = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count(on_meta("resnet20", 10, shortcut="B")) == 269_722 + extra


def expected_keys(blocks: tuple[int, ...], convs: int, project_first: bool, project: bool = True) -> list[str]:
    """torchvision's naming rule: conv1, bn1, layer<s>.<b>.conv<i>, .bn<i>, .downsample.0/1, fc."""

    def norm(prefix):
        return [f"{prefix}.{leaf}" for leaf in NORM]

    keys = ["conv1.weight", *norm("bn1")]
    for stage, depth in enumerate(blocks, 1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}"
            for i in range(1, convs + 1):
                keys += [f"{prefix}.conv{i}.weight", *norm(f"{prefix}.bn{i}")]
            if project and block == 0 and (stage > 1 or project_first):
                keys += [f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1")]
    return [*keys, "fc.weight", "fc.bias"]


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("resnet18", expected_keys((2, 2, 2, 2), 2, project_first=False)),
        ("resnet34", expected_keys((3, 4, 6, 3), 2, project_first=False)),
        ("resnet50", expected_keys((3, 4, 6, 3), 3, project_first=True)),
    ],
)
def test_state_dict_keys_are_torchvisions(name, keys, stem):
    assert list(on_meta(name, 10, stem=stem).state_dict()) == keys


def test_cifar_resnet_keys_follow_the_same_rule():
    assert list(on_meta("resnet20", 10).state_dict()) == expected_keys((3, 3, 3), 2, False, project=False)
    assert list(on_meta("resnet20", 10, shortcut="B").state_dict()) == expected_keys((3, 3, 3), 2, False)


def test_modules_are_named_as_in_torchvision():
    model = on_meta("resnet50", 10)
    children = ["conv1", "maxpool", "bn1", "relu", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    assert sorted(name for name, _ in model.named_children()) == sorted(children)
    block = model.layer2[0]
    assert isinstance(block.relu, nn.ReLU)
    assert block.conv1.stride == (1, 1)
    assert block.conv2.stride == (2, 2)  # v1.5
    assert model.conv1.kernel_size == (7, 7)
    assert on_meta("resnet50", 10, stem="cifar").conv1.kernel_size == (3, 3)


@pytest.mark.parametrize("name", models.names())
def test_traces_and_gives_the_same_output(name):
    torch.manual_seed(0)
    model = models.build(name, 7, image_size=16).eval()
    x = torch.randn(2, 3, 16, 16)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        y = model(x)
        assert y.shape == (2, 7)
        assert torch.isfinite(y).all()
        assert torch.equal(traced(x), y)


@pytest.mark.parametrize(("size", "last"), [(8, 2), (28, 7), (32, 8)])
def test_cifar_resnet_sizes(size, last):
    model = models.build("resnet20", 10, in_channels=1)
    seen = []
    model.layer3.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(torch.zeros(2, 1, size, size))
    assert seen == [(2, 64, last, last)]


@pytest.mark.parametrize(("image_size", "kernel"), [(None, 7), (224, 7), (65, 7), (64, 3), (32, 3)])
def test_stem_follows_image_size(image_size, kernel):
    assert on_meta("resnet18", 10, image_size=image_size).conv1.kernel_size == (kernel, kernel)
    assert on_meta("resnet18", 10, image_size=image_size, stem="imagenet").conv1.kernel_size == (7, 7)


def test_pad_shortcut_against_a_plain_loop():
    x = torch.randn(2, 3, 5, 4)
    y = PadShortcut(3, 8, stride=2)(x)
    assert y.shape == (2, 8, 3, 2)
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(s) for s in y.shape)).tolist():
        source = x[n, c - 2, 2 * i, 2 * j] if 2 <= c < 5 else torch.tensor(0.0)  # 2 zero channels before, 3 after
        assert y[n, c, i, j] == source


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_zero_init_residual_makes_a_block_its_shortcut(block):
    name = "resnet18" if block is BasicBlock else "resnet50"
    model = models.build(name, 10, zero_init_residual=True, stem="cifar").eval()
    last = model.layer1[1]
    x = torch.rand(1, 64 * block.expansion, 4, 4)
    assert torch.equal(last(x), x)
    assert not torch.equal(models.build(name, 10, stem="cifar").eval().layer1[1](x), x)


def test_initialization_is_kaiming_fan_out():
    torch.manual_seed(0)
    model = models.build("resnet20", 10)
    weight = model.layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    first = model.layer2[0].conv1.weight  # fan_out is 32 * 9, fan_in 16 * 9
    assert first.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)
    assert torch.equal(model.bn1.weight, torch.ones(16))


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(models.build("smallcnn", 10, 1).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values()))


def test_unknown_name_gives_the_closest_and_the_list():
    with pytest.raises(ValueError, match=r"'resnet19'.*did you mean 'resnet1?\d'\?.*smallcnn") as error:
        models.build("resnet19", 10)
    assert all(name in str(error.value) for name in models.names())
    with pytest.raises(ValueError, match="unknown model 'zzz'; known are"):
        models.build("zzz", 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet20", {"stem": "imagenet"}, "resnet20 has only the cifar stem"),
        ("resnet18", {"stem": "tiny"}, "unknown stem 'tiny'"),
        ("resnet18", {"shortcut": "C"}, "unknown shortcut 'C'"),
        ("smallcnn", {"stem": "cifar"}, "smallcnn has no stem"),
        ("smallcnn", {"shortcut": "A"}, "smallcnn has no stem"),
        ("resnet20", {"num_classes": 0}, "must be positive"),
        ("resnet20", {"in_channels": 0}, "must be positive"),
    ],
)
def test_impossible_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, **{"num_classes": 10, **options})
