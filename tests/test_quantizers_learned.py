"""LearnedStep: the gradient of its step against autograd, its rule, and where its state lives.

Beside it, for every quantizer for comparison: what a layer reports of its products, and that a small network trains.
"""

import copy
import json
import math

import pytest
import torch
from torch import nn

import subbyte as sb
from subbyte import (
    SAWB,
    AbsMax,
    BlockHouseholder,
    LayerScheme,
    LearnedStep,
    LogUnbiased,
    MSEClip,
    MXInt,
    Scheme,
    ShiftQuant,
    ZeroPoint,
    ops,
)
from subbyte.autograd import STREAMS
from subbyte.convert import STATE_SUFFIX
from subbyte.scheme import RECIPES

FLOAT_NORM = RECIPES["float"].norm
LSQ = Scheme("lsq", LayerScheme(LearnedStep(4), LearnedStep(4), AbsMax(8, rounding="stochastic")), FLOAT_NORM)


@pytest.fixture(autouse=True, scope="module")
def _reference():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ops.use_backend("reference"):
        yield
    torch.set_num_threads(threads)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=g)
    return x, (x @ torch.randn(8, 4, generator=g)).argmax(1)


def trained(model: nn.Module, steps: int = 40) -> list[float]:
    x, y = data()
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ------------------------------------------------------------------------------------------- roles, report, training

SR = "stochastic"
ROLES = {
    "SAWB": ({"weight": SAWB(4), "activation": SAWB(4)}, "iii"),
    "MSEClip": ({"weight": MSEClip(4), "activation": MSEClip(4)}, "iii"),
    "LearnedStep": ({"weight": LearnedStep(4), "activation": LearnedStep(4)}, "iii"),
    "LogUnbiased": ({"gradient": LogUnbiased(4)}, "iee"),
    "LogUnbiased throughout": (dict.fromkeys(("weight", "activation", "gradient"), LogUnbiased(4)), "eee"),
    "BlockHouseholder": ({"gradient": BlockHouseholder(5, rounding=SR)}, "iee"),
    "MXInt gradient": ({"gradient": MXInt(4, rounding=SR, scale="ceil")}, "iee"),
    "MXInt forward": ({"weight": MXInt(4), "activation": MXInt(4)}, "eee"),
    "ZeroPoint gradient": ({"gradient": ZeroPoint(4, axis=0, rounding=SR)}, "iee"),
    "ZeroPoint activation": ({"activation": ZeroPoint(4)}, "eie"),
}
NAMES = {"i": "integer", "e": "emulated"}


def layer_scheme(roles: dict) -> LayerScheme:
    plain = {"weight": AbsMax(8), "activation": AbsMax(8), "gradient": AbsMax(8, rounding=SR)}
    return LayerScheme(**(plain | roles))


@pytest.mark.parametrize("case", ROLES)
def test_a_small_network_trains_and_report_says_what_was_emulated(case):
    roles, products = ROLES[case]
    model = sb.quantize_(net(), Scheme("test", layer_scheme(roles), FLOAT_NORM))
    losses = trained(model)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    x, y = data()
    found = sb.report(model, x, y, nn.functional.cross_entropy)
    row = found.layers["2"].row()
    assert [row[p] for p in ("output", "grad_input", "grad_weight")] == [NAMES[c] for c in products]
    for role, q in roles.items():
        assert row[f"{role}_format"] in (str(q.format), str(q.format).replace("s", "u"))
        assert 3 < row[f"{role}_sqnr_db"] < 60
    assert (found.integer_share == 1) == (products == "iii")
    assert sum(found.float_macs.values()) > 0 or products == "iii"
    for name in {NAMES[c] for c in products}:
        assert name in str(found)


@pytest.mark.parametrize("case", ROLES)
def test_layers_of_every_kind_take_it(case):
    """Convolutions (grouped, transposed, one pixel), tables and pairs: finite outputs and gradients."""
    scheme = layer_scheme(ROLES[case][0])
    torch.manual_seed(0)
    layers = {
        sb.nn.Conv2d(4, 6, 3, scheme=scheme): torch.randn(2, 4, 5, 5),
        sb.nn.Conv2d(4, 4, 1, groups=4, scheme=scheme): torch.randn(1, 4, 1, 1),
        sb.nn.Conv1d(4, 6, 3, groups=2, scheme=scheme): torch.randn(2, 4, 7),
        sb.nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=2, dilation=3, scheme=scheme): torch.randn(2, 4, 5, 5),
        sb.nn.Embedding(9, 5, scheme=scheme): torch.randint(0, 9, (7,)),
        sb.nn.EmbeddingBag(9, 5, mode="max", scheme=scheme): torch.randint(0, 9, (3, 4)),
        sb.nn.EmbeddingBag(9, 5, scheme=scheme): torch.randint(0, 9, (3, 4)),
    }
    for layer, x in layers.items():
        y = layer(x)
        y.backward(torch.randn(y.shape))
        assert y.isfinite().all()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
        assert not layer.eval()(x).isnan().any()


def test_two_emulated_operands_are_not_called_float():
    layer = sb.nn.Linear(5, 3, scheme=LayerScheme(*[ZeroPoint(4)] * 2))
    layer(torch.randn(2, 5))
    assert layer.record.kernels["output"] == "emulated"


def test_an_emulated_product_is_the_product_of_the_values():
    scheme = LayerScheme(gradient=LogUnbiased(4, rounding="nearest"))
    layer = sb.nn.Linear(5, 3, scheme=scheme)
    x, g = torch.randn(4, 5, requires_grad=True), torch.randn(4, 3)
    layer(x).backward(g)
    v = scheme.gradient(g).values
    assert torch.equal(x.grad, v @ layer.weight)
    assert torch.equal(layer.weight.grad, v.T @ x)
    assert torch.equal(layer.bias.grad, v.sum(0))


# --------------------------------------------------------------------------------------------------- learned steps


@pytest.mark.parametrize("signed", [True, False])
def test_the_slope_and_the_gradient_of_x_are_those_of_the_paper(signed):
    """Against autograd through s * (clamp(x / s) + (round - identity).detach())."""
    torch.manual_seed(0)
    x, g = torch.randn(40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    quantizer = LearnedStep(3, signed, rate=0.01)
    s0, v0 = 0.4, 0.3
    state = torch.tensor([s0, v0])
    fmt, scale = quantizer.format, torch.tensor([s0], dtype=torch.float32)
    s = scale.double().requires_grad_()
    leaf = x.clone().requires_grad_()
    t = (leaf / s).clamp(fmt.qmin, fmt.qmax)
    (s * (t + (t.round() - t).detach()) * g).sum().backward()
    got = quantizer.bind(state, True).backward(x, scale, g)
    assert torch.allclose(got, leaf.grad)
    slope = float(s.grad) * s0
    v = 0.9 * v0 + 0.1 * slope**2
    assert math.isclose(float(state[1]), v, rel_tol=1e-5)
    assert math.isclose(float(state[0]), s0 * math.exp(-0.01 * slope / math.sqrt(v)), rel_tol=1e-6)


def test_it_starts_at_the_paper_s_step_and_keeps_it():
    x = torch.randn(50)
    state = torch.zeros(2)
    quantizer = LearnedStep(4)
    q = quantizer.bind(state, True)(x)
    want = 2 * float(x.double().abs().mean()) / math.sqrt(7)
    assert math.isclose(float(state[0]), want, rel_tol=1e-6)
    assert math.isclose(float(q.scale), want, rel_tol=1e-6)
    assert torch.equal(quantizer(x).codes, q.codes)
    assert torch.equal(quantizer.bind(state, True)(9 * x).scale, q.scale)
    untouched = torch.zeros(2)
    quantizer.bind(untouched, False)(x)
    assert not untouched.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_enter_the_state(bad):
    state = torch.zeros(2)
    bound = LearnedStep(4).bind(state, True)
    assert bound(torch.tensor([1.0, bad])).scale.isnan().all()
    assert not state.any()
    bound(torch.tensor([1.0, 2.0]))
    before = state.clone()
    bound.backward(torch.tensor([1.0, 2.0]), torch.tensor([1.0]), torch.tensor([1.0, bad]))
    assert torch.equal(state, before)


def test_a_step_moves_to_the_range_of_least_error():
    """min over s of |x - Q(x)|^2: from three times the best step and from a third of it."""
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    best = float(MSEClip(3, candidates=512).ranges(x)[0]) / 3
    for start in (3 * best, best / 3):
        state = torch.tensor([start, 0.0])
        bound = LearnedStep(3, rate=0.02).bind(state, True)
        for _ in range(200):
            q = bound(x)
            bound.backward(x, q.scale, 2 * (q.dequantize() - x))
        assert abs(float(state[0]) / best - 1) < 0.1


def test_state_is_in_buffers_and_leaves_with_the_layers():
    model = net()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    sb.quantize_(model, LSQ)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    own = [k for k in model.state_dict() if k not in keys]
    assert len(own) == 6
    assert all(k.endswith(STATE_SUFFIX) for k in own)
    trained(model, 5)
    state = model.state_dict()
    assert all((state[k] > 0).all() for k in own)  # the first layer's activation too, whose input needs no gradient
    assert len({float(state[k][0]) for k in own}) == 6
    assert list(sb.float_state_dict(model)) == keys
    net().load_state_dict(sb.float_state_dict(model), strict=True)
    sb.dequantize_(model)
    assert list(model.state_dict()) == keys


def test_float_checkpoints_load_strictly_and_its_own_resume():
    model = sb.quantize_(net(), LSQ)
    model.load_state_dict(net(5).state_dict(), strict=True)
    trained(model, 3)
    again = sb.quantize_(net(7), LSQ)
    again.load_state_dict(model.state_dict(), strict=True)
    assert trained(model, 3) == trained(again, 3)
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({k: v for k, v in model.state_dict().items() if k != "0.weight"}, strict=True)


def test_eval_and_copies_leave_the_state_alone():
    model = sb.quantize_(net(), LSQ)
    trained(model, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sb.report(model, data()[0])
    trained(copy.deepcopy(model), 2)
    model.eval()
    model(data()[0].requires_grad_()).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_base_of_adapters_is_packed_with_the_learned_step():
    model = sb.quantize_(net(), LSQ)
    trained(model, 5)
    state, weight = model[2].weight_subbyte.clone(), model[2].weight.detach()
    sb.nn.add_lora_(model, rank=2)
    assert torch.equal(model[2].weight, LearnedStep(4).bind(state, False)(weight).dequantize())
    sb.dequantize_(model)
    assert list(model.state_dict()) == list(net().state_dict())


def test_the_state_stays_float32():
    model = sb.quantize_(net(), LSQ).bfloat16()
    model(data()[0].bfloat16()).sum().backward()
    states = [v for k, v in model.state_dict().items() if k.endswith(STATE_SUFFIX)]
    assert {s.dtype for s in states} == {torch.float32}
    assert all((s > 0).all() for s in states)


def test_a_checkpointed_segment_learns_the_same():
    from torch.utils.checkpoint import checkpoint

    x = data()[0]
    states = []
    for run in (lambda m: m(x), lambda m: checkpoint(m, x, use_reentrant=False)):
        model = sb.quantize_(net(), LSQ)
        torch.manual_seed(0)
        run(model).square().sum().backward()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


# ------------------------------------------------------------------------------------------------ gradient samples


def gradients(scheme: LayerScheme, seed: int, layer_seed: int = 0):
    torch.manual_seed(layer_seed)
    layer = sb.nn.Linear(6, 5, scheme=scheme)
    x, g = torch.randn(32, 6, requires_grad=True), torch.randn(32, 5)
    torch.manual_seed(seed)
    layer(x).backward(g)
    return x.grad, layer.weight.grad, layer.bias.grad, layer, g


@pytest.mark.parametrize("quantizer", [ShiftQuant(4, rounding=SR), LogUnbiased(4)], ids=str)
def test_the_weight_s_gradient_is_the_mean_and_the_input_s_the_first(quantizer):
    scheme = LayerScheme(AbsMax(8), AbsMax(8), quantizer, gradient_samples=3)
    grad_x, grad_w, grad_b, layer, g = gradients(scheme, 9)
    assert layer.record.kernels["grad_weight"] == ("emulated" if isinstance(quantizer, LogUnbiased) else "integer")
    torch.manual_seed(9)
    streams = sb.numerics.draw_stream(STREAMS + 2)
    samples = [quantizer(g, streams[i]) for i in (0, STREAMS, STREAMS + 1)]
    mean = sum(s.dequantize(torch.float64) for s in samples) / 3
    torch.manual_seed(0)
    sb.nn.Linear(6, 5, scheme=scheme)
    x = AbsMax(8)(torch.randn(32, 6)).dequantize(torch.float64)
    w = AbsMax(8)(layer.weight).dequantize(torch.float64)
    assert torch.allclose(grad_x.double(), samples[0].dequantize(torch.float64) @ w, rtol=1e-4, atol=1e-5)
    assert torch.allclose(grad_w.double(), mean.T @ x, rtol=1e-4, atol=1e-5)
    assert torch.allclose(grad_b.double(), mean.sum(0), rtol=1e-4, atol=1e-5)


def test_two_samples_halve_the_variance_that_rounding_adds():
    def variance(n: int) -> float:
        scheme = LayerScheme(None, None, AbsMax(3, rounding=SR), gradient_samples=n)
        return float(torch.stack([gradients(scheme, seed)[1] for seed in range(150)]).var(0).mean())

    assert 0.4 < variance(2) / variance(1) < 0.6


def test_samples_in_schemes():
    layer = LayerScheme(AbsMax(4), AbsMax(4), LogUnbiased(4), gradient_samples=2)
    scheme = Scheme("smp", layer, FLOAT_NORM)
    assert Scheme.from_json(scheme.to_json()) == scheme
    assert "gradient_samples" not in json.dumps(Scheme.from_name("int4").to_dict())
    assert "2 samples" in str(layer)
    assert any("2 samples" in row[4] for row in scheme.rows())
    assert layer.deterministic_forward().gradient_samples == 2
    for bad in (0, 1.0, True, "2"):
        with pytest.raises(ValueError, match="gradient_samples is 1 or more"):
            LayerScheme(gradient=LogUnbiased(4), gradient_samples=bad)
    with pytest.raises(ValueError, match="rounds stochastically"):
        LayerScheme(gradient=AbsMax(4), gradient_samples=2)


def test_a_table_averages_too_and_eval_draws_for_each_sample():
    scheme = LayerScheme(None, None, AbsMax(2, rounding=SR), gradient_samples=4)
    table = sb.nn.Embedding(3, 5, scheme=scheme)
    y = table(torch.tensor([0, 1, 2]))
    g = torch.rand(3, 5)
    y.backward(g)
    fourths = table.weight.grad / g.max() * 4
    assert torch.allclose(fourths, fourths.round(), atol=1e-5)
    assert (fourths.round() % 4 != 0).any()
    layer = sb.nn.Linear(5, 3, scheme=scheme).eval()
    layer(torch.randn(2, 5)).backward(torch.rand(2, 3))
    assert layer.weight.grad.isfinite().all()
