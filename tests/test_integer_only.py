"""The integer-only executor: no float operation, gradients against a float64 network, what a user may do."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import subbyte as sb
from subbyte import backends, integer_only, models, ops
from subbyte.float_ops import FloatOpCounter
from subbyte.integer_only import IntegerOnly, UnsupportedError
from subbyte.optim import IntegerSGD

RECIPE = "int4-integer-only"
EIGHT = dataclasses.replace(sb.Scheme.from_name("int8"), name="int8-integer-only", integer_only=True)
needs_library = pytest.mark.skipif("cpu" not in {b.NAME for b in backends.usable()}, reason="no C++ library")


class Net(nn.Module):
    """Every step there is: functions, methods and modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.pool, self.average = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)
        self.drop = nn.Dropout(0.25)
        self.hidden, self.last = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.grouped(x))
        x = F.pad(self.depthwise(x)[:, :, ::1], (0, 0, 0, 0, 8, 8))
        x = self.average(self.pool(x).relu())
        x = F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        return self.last(self.drop(self.hidden(x)).relu())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))


def images(n: int = 16, channels: int = 3, size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=g), torch.randint(5, (n,), generator=g)


def build(make=Net, scheme=RECIPE, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return sb.quantize_(make(), scheme)


def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters()}


# ------------------------------------------------------------------------------------------- no float anywhere


def counts(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> list[int]:
    """Float operations of the forward pass, the backward pass and the update."""
    with FloatOpCounter() as forward:
        out = model(x)
    (g,) = torch.autograd.grad(F.cross_entropy(out, y), out, retain_graph=True)
    with FloatOpCounter() as backward:
        out.backward(g)
    with FloatOpCounter() as update:
        optimizer.step()
    return [forward.total, backward.total, update.total]


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


def float_twin(model: nn.Module) -> nn.Module:
    """The same network in float64 with L1 norms without quantization, by the layers of sb.nn."""
    twin = copy.deepcopy(model)
    integer_only.detach(twin)
    sb.dequantize_(twin)
    none = sb.NormScheme("l1", input=None, normalized=None, saved=None, weight=None, gradient=None)
    sb.quantize_(twin, sb.Scheme("l1", sb.LayerScheme(), none))
    return twin.double()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b).norm() / b.norm()).item()


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


# ---------------------------------------------------------------------------------------- what a user may do with it


def test_conversion_changes_no_state_and_can_be_undone() -> None:
    torch.manual_seed(0)
    model = Net()
    state, optimizer = copy.deepcopy(model.state_dict()), torch.optim.SGD(model.parameters(), lr=0.1)
    sb.quantize_(model, RECIPE)
    assert isinstance(model, IntegerOnly)
    assert isinstance(model, Net)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert optimizer.param_groups[0]["params"][0] is model.stem.weight
    copied = copy.deepcopy(model)
    assert copied.stem.weight is not model.stem.weight
    x, _ = images(4)
    assert torch.equal(copied.eval()(x), model.eval()(x))
    sb.dequantize_(model)
    assert type(model) is Net
    assert type(model.stem) is nn.Conv2d
    assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize("case", ["Tanh", "LayerNorm", "padding", "second input", "two outputs", "hook", "l2", "mul"])
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
