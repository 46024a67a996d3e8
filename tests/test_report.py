"""report and MacCounter: exact counts, a float product that hides is found, statistics by hand, nothing is changed."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte as sb
from models_for_tests import RECIPES, conv_net, mlp, scheme_of
from subbyte import AbsMax, GroupOracle, LayerScheme, MacCounter, PerChannel, Scheme, ShiftQuant, models
from subbyte.observe import OperandStats

INT4 = Scheme.from_name("int4")


def images(n=4) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(n, 3, 8, 8)


# ----------------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize("recipe", RECIPES)
def test_everything_is_integer(recipe):
    report = sb.report(sb.quantize_(conv_net(), recipe), images(), torch.arange(4), F.cross_entropy)
    assert report.integer_share == 1.0
    assert report.float_macs == {}
    conv1, conv2, fc = 4 * 64 * 8 * 27, 4 * 9 * 6 * 72, 4 * 54 * 5
    assert report.integer_macs == 2 * conv1 + 3 * conv2 + 3 * fc  # the input needs no gradient
    assert "100.00 %" in str(report)


@pytest.mark.parametrize("name", ["resnet20", "smallcnn"])
def test_a_whole_network(name):
    model = sb.quantize_(models.build(name, num_classes=10, in_channels=3), "int4")
    report = sb.report(model, torch.randn(2, 3, 16, 16), torch.tensor([1, 2]), F.cross_entropy)
    assert report.integer_share == 1.0
    products = ("output", "grad_input", "grad_weight")
    for i, row in enumerate(r for r in report.rows if r["type"] in ("Conv2d", "Linear")):
        assert [row[p] for p in products] == ["integer", "" if i == 0 else "integer", "integer"]


def test_a_float_scheme_is_all_float():
    report = sb.report(sb.quantize_(conv_net(), "float"), images())
    assert report.integer_share == 0.0
    assert report.integer_macs == 0
    assert {row["output"] for row in report.rows if row["type"] == "Conv2d"} == {"float"}


def macs(run) -> tuple[int, dict[str, int]]:
    with MacCounter() as counter:
        run()
    return counter.integer, counter.floats


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12), (12,)])
def test_linear_by_formula(shape):
    layer = sb.nn.Linear(12, 5, scheme=INT4.layer)
    x = torch.randn(shape, requires_grad=True)
    each = math.prod(shape[:-1]) * 12 * 5
    assert macs(lambda: layer(x)) == (each, {})
    assert macs(lambda: layer(x).sum().backward()) == (3 * each, {})
    layer.weight.requires_grad_(False)
    assert macs(lambda: layer(x).sum().backward()) == (2 * each, {})
    assert macs(lambda: layer(x.detach())) == (each, {})


@pytest.mark.parametrize(
    ("geometry", "out"),
    [
        (dict(kernel_size=3), (6, 7)),
        (dict(kernel_size=3, padding=1, stride=2), (4, 5)),
        (dict(kernel_size=(1, 3), groups=2), (8, 7)),
        (dict(kernel_size=3, groups=4, padding=1), (8, 9)),
        (dict(kernel_size=3, dilation=2), (4, 5)),
    ],
)
def test_conv_by_formula(geometry, out):
    layer = sb.nn.Conv2d(4, 8, scheme=INT4.layer, **geometry)
    x = torch.randn(3, 4, 8, 9, requires_grad=True)
    each = 3 * 8 * math.prod(out) * layer.weight[0].numel()
    assert macs(lambda: layer(x)) == (each, {})
    assert macs(lambda: layer(x).sum().backward()) == (3 * each, {})


def test_the_same_numbers_as_torchs_own_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model, x = conv_net(), images().requires_grad_()
    with FlopCounterMode(display=False) as theirs:
        model(x).sum().backward()
    assert sum(macs(lambda: model(x).sum().backward())[1].values()) == theirs.get_total_flops() // 2
    integer, floats = macs(lambda: sb.quantize_(model, "int4")(x).sum().backward())
    assert (integer, floats) == (theirs.get_total_flops() // 2, {})


a, b, batch = torch.randn(3, 4), torch.randn(4, 5), torch.randn(2, 3, 4)
q = torch.randn(1, 2, 8, 16)
FLOAT_PRODUCTS = {  # a product and its multiply-accumulates
    "mm": (lambda: a @ b, 60),
    "linear": (lambda: F.linear(a, b.T), 60),
    "einsum": (lambda: torch.einsum("ij,jk->ik", a, b), 60),
    "bmm": (lambda: batch @ batch.mT, 72),
    "baddbmm": (lambda: torch.baddbmm(torch.zeros(2, 3, 3), batch, batch.mT), 72),
    "addbmm": (lambda: torch.addbmm(torch.zeros(3, 3), batch, batch.mT), 72),
    "mv": (lambda: a @ b[:, 0], 12),
    "addmv": (lambda: torch.addmv(torch.zeros(3), a, b[:, 0]), 12),
    "dot": (lambda: torch.dot(b[:, 0], b[:, 1]), 4),
    "vdot": (lambda: torch.vdot(b[:, 0], b[:, 1]), 4),
    "conv1d": (lambda: F.conv1d(batch, torch.randn(5, 3, 2)), 2 * 5 * 3 * 6),
    "transposed conv": (lambda: F.conv_transpose1d(batch, torch.randn(3, 5, 2)), 2 * 4 * 3 * 5 * 2),
    "bf16": (lambda: a.bfloat16() @ b.bfloat16(), 60),
    "sparse": (lambda: torch.sparse.mm(a.to_sparse(), b), 60),
    "bilinear": (lambda: F.bilinear(a, a, torch.randn(5, 4, 4)), 3 * 5 * 4 * 4),
    "attention": (lambda: F.scaled_dot_product_attention(q, q, q), 2 * 2 * 8 * 8 * 16),
    "LSTM": (lambda: nn.LSTM(4, 5)(torch.randn(3, 2, 4)), 3 * 2 * 20 * (4 + 5)),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", FLOAT_PRODUCTS.values(), ids=FLOAT_PRODUCTS)
def test_any_float_product_counts_against_the_share(case, inference):
    run, expected = case
    layer = sb.nn.Linear(4, 5, scheme=INT4.layer)
    with torch.inference_mode(inference), MacCounter() as counter:
        layer(a)
        run()
    assert counter.integer == 60
    assert sum(counter.floats.values()) == expected
    assert counter.integer_share == 60 / (60 + expected)


@pytest.mark.parametrize("training", [True, False])
def test_attention_and_fused_encoders_count(training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).train(training)
    x = torch.randn(2, 5, 16)
    with torch.set_grad_enabled(training), MacCounter() as counter:
        layer(x)
    projections, attention, mlp = 10 * 4 * 16 * 16, 2 * 2 * 25 * 16, 2 * 10 * 16 * 32
    assert sum(counter.floats.values()) == projections + attention + mlp


def test_backward_of_attention_and_lstm_counts():
    x = torch.randn(1, 2, 8, 16, requires_grad=True)
    with MacCounter() as counter:
        F.scaled_dot_product_attention(x, x, x).sum().backward()
    assert sum(counter.floats.values()) > 3 * 2 * 2 * 8 * 8 * 16
    lstm, each = nn.LSTM(4, 5), 3 * 2 * 20 * (4 + 5)
    with MacCounter() as counter:
        lstm(torch.randn(3, 2, 4))[0].sum().backward()
    assert sum(counter.floats.values()) == 3 * each


def test_int_mm_is_an_integer_product():
    codes = torch.ones(32, 64, dtype=torch.int8)
    with MacCounter() as counter:
        torch._int_mm(codes, codes.T.contiguous())
    assert (counter.integer, counter.floats) == (32 * 64 * 32, {})


def test_nothing_counted_has_no_share():
    with MacCounter() as counter:
        torch.ones(3) * 2
    assert math.isnan(counter.integer_share)


class Hidden(nn.Module):
    """A float product beside the layers: (B, 12) times (12, 12), its backward only for the weight."""

    def __init__(self):
        super().__init__()
        self.net, self.hidden = mlp(norm=False), nn.Parameter(torch.randn(12, 12))

    def forward(self, x):
        return self.net(torch.mm(x, self.hidden))


def test_a_hidden_matmul_lowers_the_share_by_its_exact_part():
    model = sb.quantize_(Hidden(), "int4")
    report = sb.report(model, torch.randn(8, 12))
    integer, hidden = 3 * 8 * (12 * 16 + 16 * 16 + 16 * 4), 2 * 8 * 12 * 12
    assert (report.integer_macs, report.float_macs) == (integer, {"aten.mm": hidden})
    assert report.integer_share == integer / (integer + hidden)
    assert f"aten.mm {hidden:,}" in str(report)


def test_an_unconverted_layer_lowers_the_share_by_its_exact_part():
    model = sb.quantize_(mlp(norm=False), "int4", lambda m, name: name != "2")
    report = sb.report(model, torch.randn(8, 12))
    left, rest = 3 * 8 * 16 * 16, 8 * 12 * 16 * 2 + 3 * 8 * 16 * 4
    assert report.integer_share == rest / (rest + left)
    assert report.to_dict()["left_float"] == {"2": "filter_fn said no"}
    assert "left float: 2: filter_fn said no" in str(report)


# ------------------------------------------------------------------------------------- what was emulated or left float


@pytest.mark.parametrize(
    ("gradient", "forms", "integer_part"),
    [
        (PerChannel(8, axis=0, rounding="stochastic"), ("integer", "integer", "emulated"), 2 / 3),  # PSQ
        (GroupOracle(8, groups=3, rounding="stochastic"), ("integer", "emulated", "integer"), 2 / 3),
        (ShiftQuant(8, groups=3, rounding="stochastic"), ("integer", "integer", "integer"), 1),
        (None, ("integer", "emulated", "emulated"), 1 / 3),
    ],
    ids=str,
)
def test_emulated_products_are_named_and_counted_as_float(gradient, forms, integer_part):
    model = nn.Sequential(nn.PReLU(), nn.Linear(12, 10))  # a parameter before the layer: its grad_input is wanted
    sb.quantize_(model, Scheme("x", scheme_of(AbsMax(8), gradient=gradient)))
    report = sb.report(model, torch.randn(6, 12) * torch.logspace(-2, 0, 6)[:, None])
    (row,) = report.rows
    assert (row["output"], row["grad_input"], row["grad_weight"]) == forms
    assert report.integer_share == pytest.approx(integer_part, abs=1e-12)


def test_a_role_left_none_shows_float():
    model = nn.Sequential(nn.Linear(12, 10))
    sb.quantize_(model, Scheme("x", LayerScheme(AbsMax(8), None, None)))
    report = sb.report(model, torch.randn(6, 12))
    (row,) = report.rows
    assert (row["output"], row["grad_weight"]) == ("emulated", "float")
    assert row["scheme"] == "w=s8 AbsMax, x=float, g=float"
    assert set(report.layers["0"].operands) == {"weight"}


# ----------------------------------------------------------------------------------------------------------- statistics


def measured(x: torch.Tensor, quantizer: sb.Quantizer) -> OperandStats:
    return OperandStats.measure(x, quantizer(x), quantizer)


def test_statistics_by_hand():
    x = torch.tensor([[7.0, -3.4, 0.2], [0.1, 0.6, 0.0]])
    stats = measured(x, AbsMax(4))
    error = math.sqrt(0.4**2 + 0.2**2 + 0.1**2 + 0.4**2)
    assert stats.sqnr_db == pytest.approx(20 * math.log10(float(x.norm()) / error), abs=1e-4)
    assert (stats.format, stats.clipped_pct, stats.groups_used) == ("s4", 0.0, 1)
    assert stats.zero_pct == pytest.approx(100 * 3 / 6)
    assert stats.ranges == pytest.approx([7.0, 3.4, 0.2])
    assert stats.exponents is None


def test_clipping_by_hand():
    x = torch.tensor([[-1.0, -0.02, 0.0, 2.0]])
    stats = measured(x, AbsMax(4, signed=False))
    assert stats.clipped_pct == 25.0
    assert stats.format == "u4"


def test_groups_by_hand():
    x = torch.tensor([[8.0, 5.0, 3.0, 0.9, 0.0]])
    stats = measured(x, ShiftQuant(4, groups=4))
    assert stats.exponents == [0, 0, 1, 3, 3]
    assert stats.groups_used == 3
    assert stats.zero_pct == 20.0


def test_an_exact_tensor_and_a_nan():
    x = torch.tensor([[1.0, -7.0]])
    assert measured(x, AbsMax(4)).sqnr_db == math.inf
    for bad in (math.nan, math.inf):
        x[0, 0] = bad
        assert math.isnan(measured(x, AbsMax(4)).sqnr_db)


def test_the_gradients_groups_are_reported():
    model = nn.Sequential(nn.Linear(12, 6))
    sb.quantize_(model, Scheme("x", scheme_of(AbsMax(8), gradient=ShiftQuant(8, groups=4, rounding="stochastic"))))
    factors = torch.tensor([1.0, 0.9, 0.4, 0.2, 0.01, 0.0])
    report = sb.report(model, torch.randn(5, 12), None, lambda out, y: (out * factors).sum())
    layer = report.layers["0"]
    assert torch.equal(layer.gradient_ranges, factors)
    assert layer.gradient_exponents.tolist() == [0, 0, 1, 2, 3, 3]
    assert report.rows[0]["gradient_groups_used"] == 4
    assert report.rows[0]["gradient_format"] == "s8"


def test_channels_that_are_lost_are_named():
    """By hand: of 4 bits and one scale, 8 and 7 keep what lies within 3 octaves; a channel of zeros is not counted."""
    x = torch.tensor([[8.0, 3.0, 0.5, 0.01, 0.0]])
    assert measured(x, AbsMax(4)).lost == 2
    assert measured(x, ShiftQuant(4, groups=12)).lost == 0
    assert measured(torch.tensor([1.0, 0.01]), AbsMax(4)).lost == 0  # one axis: no channels
    factors = torch.exp2(-4.0 * torch.arange(6))

    def summary(gradient: sb.Quantizer) -> tuple[tuple[int, int], str]:
        model = sb.quantize_(nn.Sequential(nn.Linear(12, 6)), Scheme("x", scheme_of(AbsMax(8), gradient=gradient)))
        report = sb.report(model, torch.randn(50, 12), None, lambda out, y: (out * factors).sum())
        return report.layers["0"].lost_channels, report.summary()

    (lost, alive), text = summary(AbsMax(4))
    assert (lost, alive) == (5, 6)
    assert "error as large as they are: 0 5 of 6." in text
    assert "channel_groups" in text
    (lost, _), text = summary(sb.TokenShiftQuant(4, channel_groups=24))
    assert lost == 0
    assert "channel_groups" not in text


def test_every_operand_of_every_layer_is_measured():
    report = sb.report(sb.quantize_(conv_net(), "int4"), images())
    for name, layer in report.layers.items():
        roles = {"activation", "gradient"} | ({"weight"} if layer.type != "BatchNorm2d" else set())
        assert set(layer.operands) == roles, name
        for role, stats in layer.operands.items():
            assert 3 < stats.sqnr_db < 60, (name, role)
            assert 0 <= stats.zero_pct < 100
            most = 40 if role == "weight" else 10  # a new layer's weights are uniform: 0.3 of them lie beyond 0.7
            assert 0 < stats.clipped_pct < most if "clip" in stats.quantizer else stats.clipped_pct == 0, (name, role)
    json.dumps(report.to_dict())


# --------------------------------------------------------------------------------------------- what it must not change


def test_the_model_is_left_as_it_was():
    model = sb.quantize_(conv_net(), "int4").eval()
    model[4].train()
    model(images()).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    kernels = [dict(m.record.kernels) for m in model if hasattr(m, "record")]
    x = images().requires_grad_()
    random = torch.get_rng_state()
    report = sb.report(model, x, torch.arange(4), F.cross_entropy)
    assert report.integer_share == 1.0
    assert torch.equal(random, torch.get_rng_state())
    assert x.grad is None
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in model] == [False] * 4 + [True] + [False] * 3
    assert kernels == [m.record.kernels for m in model if hasattr(m, "record")]
    assert not any(m.record.operands or m.record.armed for m in model if hasattr(m, "record"))


def test_it_works_under_no_grad_and_with_frozen_parameters():
    model = sb.quantize_(conv_net(), "int4")
    with torch.no_grad():
        assert sb.report(model, images()).rows[0]["grad_weight"] == "integer"
    report = sb.report(model.requires_grad_(False), images())
    assert report.integer_share == 1.0
    assert report.rows[0]["grad_weight"] == ""


def test_several_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x, y):
            return self.fc(x + y)

    model = sb.quantize_(Two(), "int4")
    assert sb.report(model, (torch.randn(2, 4), torch.randn(2, 4))).integer_share == 1.0


def test_without_a_batch():
    model = sb.quantize_(conv_net(), "int4")
    report = sb.report(model)
    assert "not run yet" in str(report)
    assert "not counted" in str(report)
    assert (report.integer_share, report.integer_macs) == (None, None)
    assert all(row["kernels"] == [] and row["output"] == "" for row in report.rows)
    model(images())
    rows = sb.report(model).rows
    assert rows[0]["output"] == "integer"
    assert rows[0]["grad_weight"] == ""
    assert "activation_sqnr_db" not in rows[0]


def test_a_float_model_has_no_report():
    with pytest.raises(TypeError, match="not quantized"):
        sb.report(conv_net())
    with pytest.raises(TypeError, match="not quantized"):
        sb.report(sb.dequantize_(sb.quantize_(conv_net(), "int4")))
