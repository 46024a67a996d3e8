"""IntegerSGD against exact fractions and torch's SGD; resume, and the absence of floats."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from subbyte import integer, ops
from subbyte.float_ops import FloatOpCounter
from subbyte.optim import IntegerSGD, power_of_two_exponent


def parameter(*shape: int, seed: int = 0, size: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size)


def gradients(p: Tensor, steps: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(7)
    return [torch.randn(p.shape, generator=g) * 0.1 for _ in range(steps)]


def run(optimizer: torch.optim.Optimizer, p: Tensor, grads: list[Tensor]) -> None:
    for g in grads:
        p.grad = g.clone()
        optimizer.step()


def fractions(t: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in t.flatten().tolist()]


@pytest.mark.parametrize("nesterov", [False, True])
def test_one_step_is_the_formula_to_one_unit(nesterov: bool) -> None:
    p = parameter(50)
    optimizer = IntegerSGD([p], lr=0.25, momentum=0.9, weight_decay=2.0**-7, nesterov=nesterov)
    run(optimizer, p, gradients(p, 3))
    w, state = fractions(p.data), optimizer.state[p]
    v_unit = Fraction(2) ** int(state["momentum_exponent"])
    v = [int(c) * v_unit for c in state["momentum"]]
    p.grad = gradients(p, 4)[3]
    optimizer.step()
    d = [g + x / 128 for g, x in zip(fractions(p.grad), w)]
    want_v = [Fraction(230, 256) * a + b for a, b in zip(v, d)]
    v_unit = Fraction(2) ** int(state["momentum_exponent"])
    got_v = [int(c) * v_unit for c in state["momentum"]]
    assert all(abs(a - b) < v_unit for a, b in zip(got_v, want_v))
    assert any(a != b for a, b in zip(got_v, want_v))
    u = [Fraction(230, 256) * a + b for a, b in zip(got_v, d)] if nesterov else got_v
    want = [x - a / 4 for x, a in zip(w, u)]
    unit = grid(p)
    assert all(abs(a - b) < unit for a, b in zip(fractions(p.data), want))


def grid(p: Tensor) -> Fraction:
    """The unit of a Parameter's 16 bits."""
    _, e = integer.from_float(p)
    return Fraction(2) ** (int(e) + 24 - 15)


def test_a_parameter_holds_16_bits_after_a_step() -> None:
    p = parameter(300, size=0.02)
    run(IntegerSGD([p], lr=0.1), p, gradients(p, 3))
    codes, _ = integer.from_float(p)
    assert (codes & 0x1FF == 0).all() or (codes & 0xFF == 0).all()
    assert (codes.abs() >> 8).max() < 1 << 16


def test_an_update_below_one_unit_is_made_on_average() -> None:
    p = nn.Parameter(torch.ones(1 << 16))
    optimizer = IntegerSGD([p], lr=1.0, momentum=0)
    p.grad = torch.full_like(p, 2.0**-19)  # an eighth of the unit 2^-15 of 1.0, whose grid reaches down to 2^-14
    optimizer.step()
    moved = (1 - p.detach().double()).mean().item()
    # n = 2^16 roundings of variance <= unit^2 / 4: five standard deviations
    assert abs(moved - 2.0**-19) < 5 * 0.5 * 2.0**-14 / 256
    assert moved > 0


def test_it_follows_sgd() -> None:
    p = parameter(40, 20)
    q = nn.Parameter(p.detach().clone())
    settings = dict(lr=2.0**-4, momentum=230 / 256, weight_decay=2.0**-9, nesterov=True)
    grads = gradients(p, 50)
    run(IntegerSGD([p], **settings), p, grads)
    run(torch.optim.SGD([q], **settings), q, grads)
    unit = float(grid(p))
    # Each step adds one rounding of the weight (at most a unit) and one of the momentum, worth 2^-4 / (1 - 0.9) of its
    # unit: independent, so 50 of them add up like their square root; six standard deviations.
    assert (p - q).abs().max() < 6 * 50**0.5 * unit
    still = nn.Parameter(parameter(40, 20).detach().clone())
    assert (still - q).abs().max() > 100 * 6 * 50**0.5 * unit


def test_resume_is_exact_and_integers_stay_integers() -> None:
    grads = gradients(parameter(33, 5), 10)
    p = parameter(33, 5)
    torch.manual_seed(1)
    first = IntegerSGD([p], lr=0.05, weight_decay=1e-3)
    run(first, p, grads[:5])
    saved = copy.deepcopy(first.state_dict())
    q = nn.Parameter(p.detach().clone())
    torch.manual_seed(99)  # of no consequence: the stream is in the state
    second = IntegerSGD([q], lr=1.0)
    second.load_state_dict(saved)
    run(first, p, grads[5:])
    run(second, q, grads[5:])
    assert torch.equal(p, q)
    a, b = first.state[p], second.state[q]
    for key, dtype in (("momentum", torch.int16), ("momentum_exponent", torch.int32), ("stream", torch.int64)):
        assert a[key].dtype == b[key].dtype == dtype
        assert torch.equal(a[key], b[key])


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        p = parameter(100)
        run(IntegerSGD([p], lr=0.05), p, gradients(p, 5))
        results.append(p.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_step_has_no_float_operation() -> None:
    p, q = parameter(10, 10), parameter(10)
    for parameters in ([p], [{"params": [p], "weight_decay": 1e-3}, {"params": [q]}]):
        optimizer = IntegerSGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
        p.grad, q.grad = torch.randn(10, 10), torch.randn(10)
        with FloatOpCounter() as counter:
            optimizer.step()
        assert not counter.counts
    with FloatOpCounter() as counter:
        torch.optim.SGD([p], lr=0.1).step()
    assert counter.total > 0


def test_a_schedule_is_snapped() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = IntegerSGD([p], lr=0.0, momentum=0)
    p.grad = torch.tensor([1.0])
    optimizer.step()
    assert p.item() == 1.0  # 0 is allowed
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    assert p.item() == 0.75
    assert [power_of_two_exponent(2.0**-k) for k in range(-3, 20)] == list(range(-3, 20))


def test_a_frozen_or_unused_parameter_is_left_alone() -> None:
    p, q = parameter(3), parameter(3)
    optimizer = IntegerSGD([p, q], lr=0.1)
    p.grad = torch.ones(3)
    before = q.detach().clone()
    optimizer.step()
    assert torch.equal(q, before)
    assert q not in optimizer.state


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_nan_is_not_hidden(lost: float, backend: str | None) -> None:
    for where in ("gradient", "weight"):
        p = parameter(3)
        p.grad = torch.tensor([1.0, lost if where == "gradient" else 0.5, 0.0])
        if where == "weight":
            p.data[1] = lost
        optimizer = IntegerSGD([p], lr=0.1)
        with ops.use_backend(backend):
            optimizer.step()
        assert p.isnan().all()
        of_momentum = int(optimizer.state[p]["momentum_exponent"])
        assert (of_momentum > integer.NOT_FINITE >> 1) == (where == "gradient")


def test_extremes_do_not_overflow() -> None:
    for size in (2.0**-100, 1.0, 2.0**100):
        for g_size in (2.0**-100, 1.0, 2.0**100):
            p = nn.Parameter(torch.tensor([1.0, -1.0]) * size)
            g = torch.tensor([-1.0, 1.0]) * g_size
            optimizer = IntegerSGD([p], lr=1.0, momentum=0.9, weight_decay=1.0, nesterov=True)
            w, v = p.detach().double(), torch.zeros(2, dtype=torch.float64)
            for _ in range(3):
                p.grad = g.clone()
                optimizer.step()
                d = g.double() + w
                v = v * 230 / 256 + d
                w = w - (v * 230 / 256 + d)
                assert ((p - w).abs() <= 2.0**-11 * torch.maximum(w.abs(), d.abs()).amax()).all()
                w, state = p.detach().double(), optimizer.state[p]
                v = state["momentum"].double() * 2.0 ** int(state["momentum_exponent"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(lr=-1.0), "lr is -1.0"),
        (dict(lr=float("nan")), "finite"),
        (dict(momentum=1.0), "momentum is 1.0"),
        (dict(weight_decay=-1e-3), "weight_decay"),
        (dict(momentum=0.0, nesterov=True), "nesterov needs a momentum"),
    ],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IntegerSGD([parameter(2)], **settings)


def test_wrong_parameters() -> None:
    with pytest.raises(TypeError, match="float32 Parameters"):
        IntegerSGD([nn.Parameter(torch.zeros(2, dtype=torch.float64))])


def test_widths_of_the_docstring() -> None:
    assert (
        ops.integer_sgd.SUM_BITS + 1 + 9 < 62
    )  # shift_by takes less than 2^61, and a sum has one bit more than its operands
