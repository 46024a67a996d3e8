"""The integer-only mode in use: conversion and back, what is refused, odd inputs, the scheme."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import subbyte as sb
from integer_nets import (
    EIGHT,
    RECIPE,
    Net,
    build,
    float_twin,
    gradients,
    images,
    mlp,
    relative,
    step,
)
from subbyte import models
from subbyte.bench.memory import saved_bytes
from subbyte.integer_only import IntegerOnly, UnsupportedError


def test_conversion_changes_no_state_and_can_be_undone() -> None:
    torch.manual_seed(0)
    model = Net()
    state, optimizer = copy.deepcopy(model.state_dict()), torch.optim.SGD(model.parameters(), lr=0.1)
    sb.quantize_(model, RECIPE)
    assert isinstance(model, IntegerOnly)
    assert isinstance(model, Net)
    floats = sb.float_state_dict(model)
    assert floats.keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in floats.items())
    model.load_state_dict(state)  # without what the layers remember: strict all the same
    assert optimizer.param_groups[0]["params"][0] is model.stem.weight
    copied = copy.deepcopy(model)
    assert copied.stem.weight is not model.stem.weight
    x, _ = images(4)
    assert torch.equal(copied.eval()(x), model.eval()(x))
    sb.dequantize_(model)
    assert type(model) is Net
    assert type(model.stem) is nn.Conv2d
    assert model.state_dict().keys() == state.keys()
    assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize(
    "case", ["Tanh", "LayerNorm", "padding", "second input", "two outputs", "hook", "l2", "clip", "mul"]
)
def test_what_has_no_step_is_refused_by_name_and_the_model_stays(case: str) -> None:
    scheme = sb.Scheme.from_name(RECIPE)
    model, said = mlp(), case
    if case == "Tanh":
        model[3] = nn.Tanh()
    elif case == "LayerNorm":
        model[2] = nn.LayerNorm(32)
    elif case == "padding":
        model, said = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same")), "'0'.*padding"
    elif case == "hook":
        model[1].register_forward_hook(lambda *a: None)
        said = "'1'.*hooks"
    elif case == "l2":
        norm = dataclasses.replace(scheme.norm, kind="l2")
        scheme, said = dataclasses.replace(scheme, norm=norm), "'2'.*l2"
    elif case == "clip":
        norm = dataclasses.replace(scheme.norm, clip=0.5)
        scheme, said = dataclasses.replace(scheme, norm=norm), "'2'.*unclipped"
    else:

        class Other(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Linear(4, 4)

            def forward(self, x, other):
                y = self.a(x)
                return (y, y) if case == "two outputs" else y * y if case == "mul" else self.a(other)

        model, said = (
            Other(),
            {"second input": "second input, 'other'", "two outputs": "not one tensor"}.get(case, case),
        )
    types = [type(m) for m in model.modules()]
    with pytest.raises(UnsupportedError, match=said) as caught:
        sb.quantize_(model, scheme)
    assert "int4" in str(caught.value)
    assert [type(m) for m in model.modules()] == types


def test_frozen_parameters_cost_nothing_and_others_learn() -> None:
    x, y = images()
    model = build()
    model.stem.requires_grad_(False)
    model.norm.requires_grad_(False)
    step(model, x, y)
    assert model.stem.weight.grad is None
    assert model.last.weight.grad.norm() > 0
    with torch.no_grad():
        assert not model(x).requires_grad


def test_a_layer_that_is_called_twice_gets_both_gradients() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x):
            return self.a(self.a(x).relu())

    torch.manual_seed(0)
    model = sb.quantize_(Twice(), EIGHT)
    twin = float_twin(model)
    x = torch.randn(64, 6)
    model(x).square().sum().backward()
    twin(x.double()).square().sum().backward()
    assert relative(model.a.weight.grad, twin.a.weight.grad) < 0.1
    assert relative(model.a.bias.grad, twin.a.bias.grad) < 0.1


def test_what_is_kept_for_backward_is_packed_codes_and_nothing_stays_after_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    sb.quantize_(model, RECIPE)
    x = torch.randn(16, 32)
    first, masks, middle = 16 * 32, 2 * 16 * 64 // 8, (16 * 64 + 64 * 64) // 2  # bytes: 8 bits, 1 bit, 4 bits
    exponents = (
        (16 + 64 * 64 // 8) * 2 // 8
    )  # 2 bits for each token of the activation, and for each block of the weight
    last, logits = 16 * 64 + 64 * 8, 4 * 16 * 8
    assert saved_bytes(model, x) == first + masks + middle + exponents + last + logits
    y = model(x)
    y.sum().backward()
    assert not y.grad_fn.run.gradients
    assert not y.grad_fn.run.sums
    assert not y.grad_fn.run.saved


def test_gradients_accumulate_and_a_second_backward_raises_as_ever() -> None:
    x, y = images()
    model = build()
    loss = F.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    once = gradients(model)
    loss.backward()
    assert all(torch.equal(p.grad, 2 * once[n]) for n, p in model.named_parameters())
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_come_out_as_nan(bad: float) -> None:
    x, y = images(4)
    x[0, 0, 0, 0] = bad
    model = build()
    loss = step(model, x, y)
    assert loss.isnan()
    assert all(g.isnan().all() for n, g in gradients(model).items() if "last" in n or "stem" in n)


def test_zero_images_and_a_constant_channel_are_no_trouble() -> None:
    _, y = images(4)
    model = build()
    assert step(model, torch.zeros(4, 3, 16, 16), y).isfinite()
    assert all(g.isfinite().all() for g in gradients(model).values())


def test_channels_last_and_bf16_inputs() -> None:
    x, _ = images(4)
    model = build().eval()
    out = model(x)
    assert torch.equal(model(x.contiguous(memory_format=torch.channels_last)), out)
    low = model(x.bfloat16())
    assert low.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), out)


def test_gradients_in_eval_mode() -> None:
    x, y = images(32, size=4)
    model = build(mlp, EIGHT)
    for seed in range(20):
        model(images(32, size=4, seed=seed)[0])
    twin = float_twin(model)
    step(model.eval(), x, y)
    step(twin.eval(), x.double(), y)
    exact = {n: p.grad for n, p in twin.named_parameters()}
    assert max(relative(g, exact[n]) for n, g in gradients(model).items()) < 0.4  # as in train mode


def test_wrong_inputs_are_told() -> None:
    model = build()
    with pytest.raises(TypeError, match="one tensor, not 2"):
        model(torch.zeros(1), torch.zeros(1))
    with pytest.raises(TypeError, match="float tensor"):
        model(torch.zeros(1, 3, 16, 16, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"expects inputs \(N, 3, H, W\), not \(2, 4, 16, 16\)"):
        model(torch.zeros(2, 4, 16, 16))


@pytest.mark.parametrize(
    ("role", "quantizer", "said"),
    [
        ("weight", sb.ShiftQuant(4, axis=1), "weight is quantized by .*groups of channels, which only a gradient has"),
        ("weight", sb.BlockShiftQuant(4, clip=0.5), "weight .*a clip of its own; integer-only finds where to clip"),
        ("activation", sb.TokenShiftQuant(4, groups=2, clip=0.6), "activation .*clips at no power of two"),
        ("gradient", sb.TokenShiftQuant(4, channel_groups=9), "gradient .*groups of channels, too"),
        ("gradient", sb.ShiftQuant(4, axis=0), "gradient .*not those of consecutive exponents along axis 1"),
        ("gradient", sb.MXInt(4), "gradient .*none of AbsMax, ShiftQuant, TokenShiftQuant and BlockShiftQuant"),
    ],
)
def test_a_quantizer_without_an_integer_form_is_refused(role: str, quantizer: sb.Quantizer, said: str) -> None:
    scheme = sb.Scheme.from_name(RECIPE)
    scheme = dataclasses.replace(scheme, layer=dataclasses.replace(scheme.layer, **{role: quantizer}))
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(ValueError, match=f"layer '1': {said}"):
        sb.quantize_(model, scheme)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.Dropout(0.9))
    nn.init.eye_(layers[0].weight)
    model = sb.quantize_(layers, EIGHT)
    x = torch.ones(20, 1000, requires_grad=True)
    y = model(x)
    kept = (y != 0).double().mean().item()
    assert abs(kept - 0.1) < 5 * (0.09 / 20_000) ** 0.5
    assert torch.allclose(y[y != 0], torch.tensor(10.0), rtol=2e-3)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)


def test_the_scheme_says_so_and_survives_json() -> None:
    scheme = sb.Scheme.from_name(RECIPE)
    assert sb.Scheme.from_json(scheme.to_json()) == scheme
    assert not sb.Scheme.from_name("int4").integer_only
    assert ("everywhere", "between layers", "int32", "nearest", "2^e, one for the tensor") in scheme.rows()


def test_fusing_is_refused() -> None:
    with pytest.raises(TypeError, match="integer-only network is one step"):
        sb.fuse_(build())


def test_what_is_saved_for_backward_is_codes_and_masks_and_torch_sees_it() -> None:
    def saved(model, x, y) -> int:
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (seen.append(t.nbytes), t)[1], lambda t: t):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        return sum(seen)

    x, y = images(32)

    def make():
        return models.build("smallcnn", 5)

    # 4 bits for a convolution's input, 8 for a norm's, 8 for a ReLU's mask, where floats keep 32 of two tensors.
    assert saved(build(make), x, y) < saved(make(), x, y) * (4 + 8 + 8) / 64


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    x, y = images()
    model = build()
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        if checkpointed:
            out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
        else:
            out = model(x)
        F.cross_entropy(out, y).backward()
        results.append(gradients(model))
    assert all(torch.equal(results[0][n], g) for n, g in results[1].items())
