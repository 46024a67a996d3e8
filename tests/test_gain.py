"""gains: what is timed, that a layer too small to gain is found and left float, that nothing else changes."""

import copy
import json

import pytest
import torch
from torch import nn

import subbyte as sb
from models_for_tests import conv_net
from subbyte import gain

ROWS, SMALL, LARGE = 256, 4, 1024


def two_sizes() -> nn.Module:
    """A Linear whose product takes microseconds, far below a call, between two of 2 x 256 Mi operations each."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(LARGE, LARGE), nn.ReLU(), nn.Linear(LARGE, SMALL), nn.Linear(SMALL, SMALL), nn.Linear(SMALL, LARGE)
    )


def test_a_small_layer_is_slower_and_said_to_be():
    model, x = sb.quantize_(two_sizes(), "int4"), torch.randn(ROWS, LARGE)
    found = sb.gains(model, x)
    assert set(found) == {"0", "2", "3", "4"}
    assert found["3"].slower
    assert found["3"].ratio < min(0.9, found["0"].ratio)
    for each in found.values():
        assert each.slower == (each.ratio < 1)
        assert each.seconds > 0 < each.float_seconds
    report = sb.report(model, x, timed=True)
    assert "Too small to gain here" in report.summary()
    assert "3 0." in report.summary()
    assert "gain" in str(report)
    assert report.rows[2]["gain"]["ratio"] == report.layers["3"].gain.ratio
    json.dumps(report.to_dict())


def test_without_times_there_is_no_column():
    report = sb.report(sb.quantize_(two_sizes(), "int4"), torch.randn(2, LARGE))
    assert "gain" not in str(report)
    assert "gain" not in report.rows[0]


def test_the_scheme_leaves_slow_layers_float(monkeypatch):
    """By times that are given: another load on the machine must not decide. Those of this machine are tested above."""

    def measured(layer: nn.Linear, args: tuple, kwargs: dict, seconds: float) -> gain.Gain:
        ratio = 0.99 if layer.in_features == SMALL else 1.01
        return gain.Gain(1.0, ratio, ratio)

    monkeypatch.setattr(gain, "_compare", measured)
    model, x = two_sizes(), torch.randn(ROWS, LARGE)
    scheme = sb.fastest_here("int4", model, x)
    assert dict(scheme.overrides) == {"3": None, "4": None}
    assert {type(m) for m in model.modules()} == {nn.Sequential, nn.Linear, nn.ReLU}
    sb.quantize_(model, sb.Scheme.from_json(scheme.to_json()))
    assert type(model[3]) is nn.Linear
    assert type(model[0]) is sb.nn.Linear


def test_nothing_is_changed():
    model, x = sb.quantize_(conv_net(), "int4").eval(), torch.randn(4, 3, 8, 8)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = sb.gains(model, x, seconds=1e-9)
    assert set(found) == {n for n, m in model.named_modules() if isinstance(m, sb.nn.QuantizedLayer)}
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.LayerNorm(8), torch.randn(4, 8)),
        (nn.MultiheadAttention(8, 2), (torch.randn(3, 2, 8),) * 3),
        (nn.Embedding(5, 8), torch.tensor([1, 4, 0])),
        (nn.ConvTranspose2d(3, 4, 2), torch.randn(2, 3, 5, 5)),
    ],
)
def test_each_kind_of_layer_is_timed(layer, x):
    model = sb.quantize_(layer, "int8")
    assert sb.gains(model, x, seconds=1e-9)[""].seconds > 0


def test_a_frozen_layer_is_timed_forward_only():
    model = sb.quantize_(two_sizes().requires_grad_(False), "int4")
    assert sb.gains(model, torch.randn(2, LARGE), seconds=1e-9)["0"].seconds > 0


def test_a_fused_model_is_timed_layer_by_layer():
    model, x = sb.quantize_(conv_net(), "int4"), torch.randn(4, 3, 8, 8)
    names = set(sb.gains(model, x, seconds=1e-9))
    fused = sb.fuse_(model)
    assert set(sb.gains(fused, x, seconds=1e-9)) == names
    assert sb.unfuse_(copy.deepcopy(fused)).__class__ is not fused.__class__


def test_what_it_refuses():
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(TypeError, match="not quantized"):
        sb.gains(conv_net(), x)
    with pytest.raises(ValueError, match="positive"):
        sb.gains(sb.quantize_(conv_net(), "int4"), x, seconds=0)
    with pytest.raises(TypeError, match="one network"):
        sb.gains(sb.quantize_(conv_net(), "int4-integer-only"), x)
    with pytest.raises(ValueError, match="give x"):
        sb.report(sb.quantize_(conv_net(), "int4"), timed=True)
