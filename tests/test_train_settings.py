"""What decides a run: Config, the optimizer and its state, schedules against their formulas, durations."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import pytest
import torch
from torch import nn

from subbyte.optim import IntegerSGD
from subbyte.scheme import Scheme
from subbyte.train import Config
from subbyte.train.optim import (
    make_optimizer,
    make_schedule,
    optimizer_settings,
    optimizer_tensors,
    parameter_groups,
    restore_optimizer,
)
from subbyte.train.stop import parse_seconds


def digits(**settings) -> Config:
    """Settings of two epochs in float."""
    return Config.for_task("digits", **{"epochs": 2, "scheme": Scheme.from_name("float").to_dict(), **settings})


# The optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_state_round_trip(name):
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(torch.arange(12.0).view(4, 3)).square().sum().backward()
        optimizer.step()

    config = digits(optimizer=name, weight_decay=0.1)
    a, b = model(), model()
    first, second = make_optimizer(a, config), make_optimizer(b, config)
    step(a, first)
    first.param_groups[0]["lr"] = 0.0123
    b.load_state_dict(a.state_dict())
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(a, first).items()}
    restore_optimizer(b, second, tensors, json.loads(json.dumps(optimizer_settings(first))))
    assert set(optimizer_tensors(b, second)) >= {"0.weight/" + ("exp_avg" if name == "adamw" else "momentum_buffer")}
    step(a, first)
    step(b, second)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_an_integer_only_scheme_takes_the_integer_optimizer_unless_another_is_asked_for():
    scheme = Scheme.from_name("int4-integer-only").to_dict()
    assert Config.for_task("digits", scheme=scheme).optimizer == "integer-sgd"
    assert Config.for_task("digits", scheme=scheme, optimizer="adamw").optimizer == "adamw"
    assert Config.for_task("digits", scheme=Scheme.from_name("int4").to_dict()).optimizer == "sgd"
    optimizer = make_optimizer(nn.Linear(2, 3), digits(optimizer="integer-sgd"))
    assert isinstance(optimizer, IntegerSGD)
    assert [g["weight_decay"] > 0 for g in optimizer.param_groups] == [True, False]


def test_decay_spares_norm_and_bias():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    decayed, free = parameter_groups(model, 0.5)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert decayed["weight_decay"] == 0.5
    assert free["weight_decay"] == 0.0
    assert len(free["params"]) == 4


# Schedules against their formulas


def rates(steps_per_epoch: int, **settings) -> list[float]:
    config = digits(lr=0.4, **settings)
    optimizer = make_optimizer(nn.Linear(1, 1), config)
    schedule = make_schedule(optimizer, config, steps_per_epoch)
    result = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The epoch parameter", UserWarning)  # an older torch's own, in SequentialLR
        for _ in range(config.epochs * steps_per_epoch):
            result.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    return result


def test_cosine_follows_its_formula():
    expected = [0.2 * (1 + math.cos(math.pi * t / 50)) for t in range(50)]
    assert rates(10, epochs=5, warmup_epochs=0) == pytest.approx(expected, rel=1e-9)


def test_cosine_with_warmup_follows_its_formula():
    warmup, total = 15, 50
    expected = [0.4 * (1e-3 + (1 - 1e-3) * t / warmup) for t in range(warmup)]
    expected += [0.2 * (1 + math.cos(math.pi * t / (total - warmup))) for t in range(total - warmup)]
    assert rates(10, epochs=5, warmup_epochs=1.5) == pytest.approx(expected, rel=1e-9)


def test_onecycle_follows_its_formula():
    def cosine(start: float, end: float, part: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * part))

    peak, last = 0.3 * 50 - 1, 49
    expected = [
        cosine(0.4 / 25, 0.4, t / peak) if t <= peak else cosine(0.4, 0.4 / 25 / 1e4, (t - peak) / (last - peak))
        for t in range(50)
    ]
    assert rates(10, epochs=5, schedule="onecycle") == pytest.approx(expected, rel=1e-9)


def test_constant_is_constant():
    assert rates(10, epochs=5, schedule="constant") == [0.4] * 50


# Config


def test_config_json_round_trip():
    config = Config.for_task(
        "cifar10", scheme=Scheme.from_name("int4").to_dict(), lr=0.1 + 0.2, data_dir="/data", stem="cifar"
    )
    assert Config.from_json(config.to_json()) == config


def test_a_scheme_from_before_a_field_is_the_same_scheme():
    """int4 was written down when a quantizer had no `channel_groups`; a run of that time goes on."""
    config = Config.for_task("digits", scheme=Scheme.from_name("int4").to_dict())
    older = Config.from_json(config.to_json())
    for name in ("channel_groups", "channels_apart"):
        older.scheme["layer"]["weight"].pop(name)
    assert config.differences(older) == older.differences(config) == []
    older.scheme["layer"]["weight"]["block"] = 16
    (difference,) = config.differences(older)
    assert difference.startswith("scheme: ")


def test_config_refuses_another_version_and_unknown_settings():
    values = digits().to_dict()
    with pytest.raises(ValueError, match="version 99"):
        Config.from_dict({**values, "version": 99})
    with pytest.raises(ValueError, match=r"unknown setting 'momentun'.*did you mean 'momentum'"):
        Config.from_dict({**values, "momentun": 0.9})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"optimizer": "adam"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"warmup_epochs": 2}, "warmup_epochs is 2"),
        ({"freeze_norms_epochs": 2}, "freeze_norms_epochs is 2"),
        ({"schedule": "onecycle", "warmup_epochs": 0}, "must be above 0"),
        ({"schedule": "constant", "warmup_epochs": 1}, "no warm-up"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov belongs to sgd"),
        ({"image_size": 64}, "image_size is for imagefolder"),
        ({"autocast": "bf16"}, "unknown autocast 'bf16'"),
        ({"autocast": "bfloat16", "scheme": {"integer_only": True}}, "an integer-only network has none"),
    ],
)
def test_config_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        digits(**settings)


def test_differences_leave_out_where_a_run_runs():
    config = digits()
    assert config.differences(dataclasses.replace(config, device="cuda", threads=7, data_dir="/elsewhere")) == []
    assert config.differences(dataclasses.replace(config, seed=3)) == ["seed: 0 here, 3 there"]


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), ("2min", 120)]
)
def test_durations(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "ten", "10 parsecs", "-5m", "1..5h"])
def test_bad_durations(text):
    with pytest.raises(ValueError, match="no duration above 0"):
        parse_seconds(text)
