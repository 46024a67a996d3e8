"""The integer-only executor: no float operation, gradients against a float64 network, equal bits."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte as sb
from integer_nets import (
    EIGHT,
    RECIPE,
    Net,
    build,
    counts,
    float_twin,
    gradients,
    images,
    mlp,
    needs_library,
    relative,
    step,
)
from subbyte import models, ops
from subbyte.float_ops import FloatOpCounter
from subbyte.optim import IntegerSGD


@needs_library
@pytest.mark.parametrize("make", [Net, mlp, lambda: models.build("resnet20", 5)])
def test_no_float_operation_between_input_and_loss(make) -> None:
    x, y = images(size=16 if make is not mlp else 4)
    model = build(make)
    assert counts(model, IntegerSGD(model.parameters(), lr=0.1, weight_decay=1e-3), x, y) == [0, 0, 0]
    assert all(p.grad is not None for p in model.parameters())
    with FloatOpCounter() as evaluation:
        model.eval()(x)
    assert evaluation.total == 0


@needs_library
def test_the_same_counter_sees_the_floats_of_int4() -> None:
    x, y = images()
    model = build(lambda: models.build("resnet20", 5), "int4")
    forward, backward, update = counts(model, torch.optim.SGD(model.parameters(), lr=0.1), x, y)
    assert forward > 200
    assert backward > 200
    assert update > 0


def test_the_reference_products_count_as_floats() -> None:
    x, _ = images(4)
    model = build()
    with ops.use_backend("reference"), FloatOpCounter() as counter:
        model(x)
    assert counter.counts == {"subbyte.int_conv2d (reference)": 3, "subbyte.int_matmul (reference)": 2}


@needs_library
def test_every_product_is_an_integer_kernel_and_the_report_counts_them() -> None:
    x, y = images()
    model = build()
    report = sb.report(model, x, y, F.cross_entropy)
    assert report.integer_share == 1.0
    assert report.integer_macs > 0
    assert report.float_macs == {}
    assert report.layers["grouped"].row()["grad_input"] == "integer"
    assert "reference" not in report.layers["stem"].kernels.values()
    activation = report.layers["grouped"].operands["activation"]
    assert activation.format == "u4"
    assert 10 < activation.sqnr_db < 60
    assert report.layers["grouped"].operands["gradient"].groups_used > 1


# ------------------------------------------------------------------------------------------------ right results


def without_dropout(make) -> nn.Module:
    model = make()
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    return model


@pytest.mark.parametrize("make", [Net, mlp])
def test_forward_and_backward_follow_the_float_network(make) -> None:
    x, y = images(64, size=16 if make is Net else 4)
    model = build(lambda: without_dropout(make), EIGHT)
    twin = float_twin(model)
    out, want = model(x), twin(x.double())
    # 8-bit codes with a power of two for a scale: a step is at most 2 R / 127, its error R / 127 / sqrt(3) of a
    # tensor whose elements have about R / 4, so 2 % for each of a weight and an activation; 5 layers add in squares.
    assert 0 < relative(out, want) < 0.02 * (2 * 5) ** 0.5
    F.cross_entropy(out, y).backward()
    F.cross_entropy(want, y).backward()
    exact = {n: p.grad for n, p in twin.named_parameters()}
    errors = {n: relative(g, exact[n]) for n, g in gradients(model).items() if exact[n].norm() > 1e-6}
    # Backward each of the 6 layers adds a gradient in 8 bits, stochastic (twice the error, 4 %), with up to 10 times as
    # many small elements beside one large one: 40 % of the smallest at most, and half of that on average.
    assert max(errors.values()) < 0.4, errors
    assert (sum(e * e for e in errors.values()) / len(errors)) ** 0.5 < 0.2, errors


@pytest.mark.parametrize("name", ["relu", "max_pool_module", "avg_pool_module", "linear", "batch_norm"])
def test_a_broken_gradient_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would say if one kind of step returned the gradient of another function."""
    from subbyte.integer_only import program

    def broken(call, x, *args, **kwargs):
        out, backward = original(call, x, *args, **kwargs)

        def wrong(g):
            (dx,) = backward(g)
            return (dx and dx.with_codes(dx.codes.roll(1, 0)),)

        return out, wrong

    original = getattr(program.steps, name, None) or getattr(program.products, name, None) or program.norms.batch_norm
    for table in (program.MODULES, program.FUNCTIONS):
        for key in [k for k, f in table.items() if f is original]:
            monkeypatch.setitem(table, key, broken)
    with pytest.raises(AssertionError):
        test_forward_and_backward_follow_the_float_network(Net)


def test_eval_mode_is_the_float_network_of_the_buffers() -> None:
    x, _ = images(64)
    model = build(scheme=EIGHT)
    for seed in range(30):
        model(images(64, seed=seed)[0])
    twin = float_twin(model).eval()
    assert 0 < relative(model.eval()(x), twin(x.double())) < 0.08


def test_running_statistics_are_those_of_the_float_norm() -> None:
    model = build(mlp, EIGHT)
    twin = float_twin(model)
    for seed in range(5):
        x, _ = images(32, size=4, seed=seed)
        model(x)
        twin(x.double())
    assert relative(model[2].running_mean, twin[2].running_mean) < 0.05
    assert relative(model[2].running_var, twin[2].running_var) < 0.05
    assert model[2].num_batches_tracked == 5


def test_the_input_gets_its_gradient() -> None:
    x, y = images(32, size=4)
    model = build(mlp, EIGHT)
    twin = float_twin(model)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    F.cross_entropy(model(a), y).backward()
    F.cross_entropy(twin(b), y).backward()
    assert relative(a.grad, b.grad) < 0.2


@pytest.mark.parametrize("make", [mlp, lambda: models.build("resnet20", 5)])
def test_the_loss_falls(make) -> None:
    x, y = images(32, size=4 if make is mlp else 16)
    model = build(make)
    optimizer = IntegerSGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(25):
        losses.append(step(model, x, y).item())
        optimizer.step()
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]


# -------------------------------------------------------------------------------------------------- repeatability


@pytest.mark.parametrize("threads", [1, 3])
def test_equal_bits_from_run_to_run_and_for_any_number_of_threads(threads: int) -> None:
    x, y = images()

    def run() -> tuple:
        model = build()
        torch.manual_seed(3)
        return step(model, x, y), gradients(model), copy.deepcopy(model.state_dict())

    want, before = run(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = run()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got[0], want[0])
    for a, b in zip(got[1:], want[1:], strict=True):
        assert all(torch.equal(a[k], b[k]) for k in b)


@needs_library
def test_the_reference_gives_the_same_bits() -> None:
    x, y = images(4)
    results = []
    for backend in ("reference", None):
        model = build()
        torch.manual_seed(3)
        with ops.use_backend(backend):
            results.append((step(model, x, y), gradients(model)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(results[0][1][k], g) for k, g in results[1][1].items())


def test_the_gradients_are_24_bit_integers_times_a_power_of_two() -> None:
    x, y = images()
    model = build()
    step(model, x, y)
    for g in gradients(model).values():
        codes, e = sb.integer.from_float(g)
        assert torch.equal(sb.integer.to_float(codes, e), g)


def test_a_gradient_is_as_near_to_the_float_one_as_with_float_scales() -> None:
    """Blocks and tokens make up for scales that are powers of two; with one scale for each tensor it is further off."""
    torch.manual_seed(0)
    net, (x, y) = models.build("resnet8", 5), images(32)
    recipe, floats = sb.Scheme.from_name(RECIPE), sb.Scheme.from_name("float")
    gradient = sb.ShiftQuant(4, rounding="stochastic", groups=9)
    whole = dataclasses.replace(recipe, layer=sb.LayerScheme(sb.AbsMax(4), sb.AbsMax(4), gradient))

    def directions(scheme: str | sb.Scheme) -> list[torch.Tensor]:
        model, found = sb.quantize_(copy.deepcopy(net), scheme), []
        for _ in range(4):
            step(model, x, y)
            found.append(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "conv" in n]))
        return found

    (wanted, *_) = directions(dataclasses.replace(floats, norm=dataclasses.replace(floats.norm, kind="l1")))
    ours, int4, one_scale = (
        [F.cosine_similarity(d, wanted, dim=0).item() for d in directions(s)] for s in (recipe, "int4", whole)
    )
    assert min(ours) > max(int4) - 0.03
    assert min(ours) > max(one_scale) + 0.05
