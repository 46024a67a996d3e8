"""Intervals, expected figures, rows and the page of results: what is said about runs, without running any."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import subbyte as sb
from subbyte.quantizers import AbsMax, PerChannel, ShiftQuant
from subbyte.recipes import find, studies
from subbyte.recipes.helps import schemes
from subbyte.scheme import Scheme
from subbyte.study import Expected, RowFile, Run, Study, StudyError, summarize, training
from subbyte.study.expected import advantage, largest, loss, mean, ratio, share_at_most, worst_loss
from subbyte.study.gradients import bounds, describe_gradients, measured_variance, weight_gradient_variance
from subbyte.study.landscape import filter_normalized, landscape, top_eigenvalue
from subbyte.study.page import page, write_page
from subbyte.study.select import differences
from subbyte.study.statistics import interval, student_probability, student_quantile

T_975 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 10: 2.2281, 30: 2.0423, 100: 1.9840}
"""Quantiles of Student's t as tables print them."""


def row(variant: str, seed: int, value: float | None, **more: object) -> dict:
    """A row as `execute` writes it, as far as figures look at it."""
    base = {"key": f"{variant}{seed}", "group": "", "variant": variant, "seed": seed, "metric": "test_accuracy"}
    return {**base, "value": value, "seconds": 60.0, "time": "t", **more}


ROWS = [
    *(row("float", seed, value, integer_share=0.0) for seed, value in enumerate((0.910, 0.914, 0.912))),
    *(row("int4", seed, value, integer_share=1.0) for seed, value in enumerate((0.908, 0.908, 0.911))),
]

# Intervals


@pytest.mark.parametrize("freedom", T_975)
def test_quantiles_of_student_are_those_of_tables(freedom):
    assert round(student_quantile(0.975, freedom), 4) == T_975[freedom]


def test_the_probability_of_one_degree_of_freedom_is_cauchys():
    for t in (-3.0, -0.5, 0.0, 0.7, 20.0):
        assert student_probability(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-15)


def test_an_interval_by_hand():
    i = interval([0.2, 0.6, 0.1])  # mean 0.3, squares 0.01 + 0.09 + 0.04, s = sqrt(0.07)
    assert i.mean == pytest.approx(0.3)
    assert i.half == pytest.approx(4.30265 * math.sqrt(0.07 / 3), rel=1e-5)
    assert interval([0.2]).half is None


def test_pairs_are_by_seed_and_leave_out_what_has_no_partner():
    rows = [*ROWS, row("int4", 7, 0.5), row("int6", 0, None)]
    assert differences(rows, "int4", "float", "") == pytest.approx([-0.002, -0.006, -0.001])
    assert differences(rows, "int6", "float", "") == []


# Expected figures


def test_expected_figures_can_be_met_and_missed():
    points = dict(factor=100, unit="points")
    verdict = Expected("loss", loss("int4"), at_most=0.5, **points).judge(ROWS)
    assert verdict.met is True
    assert verdict.text == "met by 0.20 points"
    assert verdict.measured.startswith("0.30 ± 0.66 points")
    missed = Expected("worst", worst_loss("int4"), at_most=0.5, **points).judge(ROWS)
    assert missed.met is False
    assert missed.text == "missed by 0.10 points"
    assert Expected("float", mean("float"), at_least=91.3, factor=100).judge(ROWS).met is False
    assert Expected("float", mean("float"), at_least=91.2, factor=100).judge(ROWS).met is True


def test_what_is_not_measured_is_neither_met_nor_missed():
    verdict = Expected("loss", loss("int6"), at_most=0.5).judge(ROWS)
    assert verdict.met is None
    assert verdict.text == "not measured"


def test_a_run_that_diverged_misses_its_figure():
    rows = [*ROWS, row("int4", 3, None, diverged="the loss is nan")]
    for measure in (loss("int4"), worst_loss("int4"), mean("int4"), advantage("int4", "float")):
        verdict = Expected("loss", measure, at_most=9.0).judge(rows)
        assert verdict.met is False
        assert verdict.text == "missed: diverged"


def test_an_advantage_is_judged_by_the_far_end_of_its_interval():
    worse = [*(row("a", s, 0.5 + s / 100) for s in range(3)), *(row("b", s, 0.6 + s / 100 + s / 1e4) for s in range(3))]
    assert Expected("a", advantage("a", "b"), at_least=0).judge(worse).met is False
    same = [*(row("a", s, 0.5) for s in range(3)), *(row("b", s, 0.5 + (s - 1) / 100 + 0.001) for s in range(3))]
    assert Expected("a", advantage("a", "b"), at_least=0).judge(same).met is True


def test_ratios_shares_and_extremes():
    rows = [row("a", 0, 0.5, step_seconds=1.0, bound=1.2), row("b", 0, 0.5, step_seconds=4.0, bound=1.4)]
    assert ratio("a", "b", "step_seconds")(rows).value == 0.25
    assert largest("bound")(rows).value == 1.4
    assert share_at_most("bound", 1.3)(rows).value == 0.5
    assert share_at_most("bound", 1.3)([row("a", 0, 0.5)]) is None


def test_a_claim_has_one_limit():
    for limits in ({}, {"at_most": 1, "at_least": 0}):
        with pytest.raises(ValueError, match="at_most or at_least"):
            Expected("x", mean("float"), **limits)


# Rows and keys


def test_rows_come_back_and_a_cut_line_is_left_out(tmp_path):
    file = RowFile(tmp_path / "results" / "x.jsonl")
    file.append([row("float", 0, 0.5), row("float", 0, float("nan"))])
    with open(file.path, "a") as raw:
        raw.write('{"key": "half')
    file.append([row("int4", 0, 0.25)])
    assert [r["value"] for r in file.read()] == [0.5, None, 0.25]
    assert file.keys() == {"float0", "int40"}


def test_a_run_that_was_done_twice_counts_once(tmp_path):
    file = RowFile(tmp_path / "x.jsonl")
    for time, value in (("1", 0.1), ("2", 0.2)):
        with open(file.path, "a") as raw:
            raw.write(json.dumps({**row("float", 0, value), "time": time}) + "\n")
    assert [r["value"] for r in file.read()] == [0.2]


def test_a_key_names_what_is_computed_and_not_where():
    run = Run("int4", training("digits", "int4", 0))
    place = dataclasses.replace(run.config, threads=7, data_dir="/elsewhere", device="cuda")
    assert dataclasses.replace(run, config=place).key() == run.key()
    others = [
        Run("int4", training("digits", "int4", 1)),
        Run("int4", training("digits", "int6", 0)),
        Run("int4", training("digits", "int4", 0, lr=0.06)),
        Run("other", run.config),
        Run("int4", run.config, "group"),
        Run("int4", run.config, settings={"samples": 2}),
    ]
    assert len({run.key(), *(other.key() for other in others)}) == 7


def test_a_setting_at_its_default_leaves_the_key_alone():
    config = training("digits", "int4", 0)
    assert Run("int4", dataclasses.replace(config, label_smoothing=0.0)).key() == Run("int4", config).key()
    assert "label_smoothing" not in sb.study.study.essence(config)


# Recipes


def test_every_study_has_runs_of_their_own_keys():
    assert {"resnet-cifar10", "gradients", "norms", "theory", "bits", "integer-only", "helps"} <= set(studies())
    for study in studies().values():
        for settings in (study.config, study.quick):
            runs = [run for run in study.runs(settings) if isinstance(run, Run)]
            assert runs
            assert len({run.key() for run in runs}) == len(runs), study.name
            assert {run.seed for run in runs} == set(settings.seeds)
            assert study.baseline in {run.variant for run in runs} or not study.metric


def test_an_unknown_study_names_the_closest():
    with pytest.raises(StudyError, match="did you mean 'gradients'"):
        find("gradient")


def test_variants_that_should_help_differ_from_int4_and_from_each_other():
    found = {name: json.dumps(scheme.to_dict()) for name, scheme in schemes().items()}
    assert len(set(found.values())) == len(found)
    assert json.dumps({**Scheme.from_name("int4").to_dict(), "name": "custom"}) not in found.values()


# Gradients and their bounds


def test_bounds_by_hand():
    found = bounds(torch.tensor([8.0, 3.0, 2.0, 0.0]), (1, 2, 3))  # 64 + 9 + 4 = 77
    assert found["tensor"] == pytest.approx(3 * 64 / 77)
    assert found["consecutive_2"] == pytest.approx((64 + 16 + 16) / 77)
    assert found["consecutive_3"] == pytest.approx((64 + 16 + 4) / 77)
    assert found["pow2_2"] == found["chosen_2"] == pytest.approx((64 + 16 + 16) / 77)
    assert found["free_2"] == pytest.approx((64 + 9 + 9) / 77)
    assert found["free_3"] == pytest.approx(1)
    assert bounds(torch.zeros(4), (1,)) == {}


def test_far_groups_want_chosen_exponents():
    found = bounds(torch.tensor([64.0, 1.0, 1.0, 1.0]), (2,))
    assert found["consecutive_2"] > 1.5 * found["chosen_2"]
    assert found["chosen_2"] == found["free_2"] == pytest.approx(1)


def test_the_measured_variance_is_that_of_a_coin():
    g = torch.full((40_000,), 0.25)
    g[0] = 7.0  # step 1: all others are 0 or 1, with variance 3/16
    expected = 39_999 * 3 / 16 / (39_999 / 16 + 49)
    assert measured_variance(g, AbsMax(4, rounding="stochastic"), 4) == pytest.approx(expected, rel=0.03)


def test_one_scale_has_more_variance_than_groups_where_channels_lie_apart():
    g = torch.randn(64, 8) * torch.exp2(-torch.arange(8.0))
    stochastic = dict(rounding="stochastic")
    tensor, shift, channel = (
        measured_variance(g, q, 8)
        for q in (AbsMax(4, **stochastic), ShiftQuant(4, groups=9, **stochastic), PerChannel(4, axis=1, **stochastic))
    )
    assert tensor > 2 * shift > 2 * channel > 0


def test_gradients_of_every_layer_are_described():
    torch.manual_seed(0)
    model = sb.models.build("smallcnn", 10, 1)
    sb.quantize_(model, "int4")
    x, y = torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = describe_gradients(
        model, x, y, groups=(1, 4), quantizers={"t": AbsMax(4, rounding="stochastic")}, samples=1
    )
    assert [layer["shape"][1] for layer in found] == [32, 32, 64, 64, 10]
    assert all(layer["bounds"]["free_4"] <= layer["bounds"]["pow2_4"] for layer in found)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_variance_of_the_weights_gradient_is_zero_in_floats():
    torch.manual_seed(0)
    x, y = torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
    model = sb.models.build("smallcnn", 10, 1)
    assert weight_gradient_variance(model, x, y, 3) < 1e-10
    sb.quantize_(model, "int4")
    assert weight_gradient_variance(model, x, y, 3) > 1e-4


# Sharpness


def test_the_top_eigenvalue_of_a_loss_that_is_known():
    """Two classes, one linear layer without bias: H = p (1 - p) [[1, -1], [-1, 1]] (x) x x^T, top 2 p (1 - p) |x|^2."""
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, 0.1], [-0.2, 0.4]]))
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    p = model(x).softmax(1)[0, 0].item()
    torch.manual_seed(0)
    value = top_eigenvalue(model, x, torch.tensor([0]), 30)
    assert value == pytest.approx(2 * p * (1 - p) * 5, rel=1e-4)


def test_a_direction_has_the_norms_of_the_filters_and_the_net_is_left_as_it_was():
    torch.manual_seed(0)
    model = sb.models.build("smallcnn", 10, 1).eval()
    before = [p.clone() for p in model.parameters()]
    direction = filter_normalized(model)
    for p, d in zip(model.parameters(), direction, strict=True):
        if p.ndim < 2:
            assert not d.any()
        else:
            assert torch.allclose(d.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1), rtol=1e-5)
    x, y = torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
    curve = landscape(model, x, y, direction, [-0.5, 0.0, 0.5])
    assert curve[0] != curve[1] != curve[2]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


# The summary and the page


class Images(HTMLParser):
    """The images of a page, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag not in ("meta", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def small() -> Study:
    """A study whose rows are ROWS."""
    claim = Expected("int4: loss", loss("int4"), at_most=0.2, factor=100, unit="points")
    return Study("small", "a small study", None, None, lambda config: [], (claim,))


def test_the_summary_says_what_the_rows_say(tmp_path, small):
    RowFile(tmp_path / "small.jsonl").append([*ROWS, row("int6", 0, 0.9, note="begun under another name")])
    text = summarize(small, tmp_path).read_text()
    assert "- int6, seed 0: begun under another name" in text
    assert "| int4: loss | <= 0.2 points | 0.30 ± 0.66 points (3 seeds) | missed by 0.10 points |" in text
    assert "| int4 | 3 | 90.90 ± 0.43 | -0.30 ± 0.66 | -0.60 | 1.0 |" in text
    assert (tmp_path / "small-variants.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_without_rows_has_no_summary(tmp_path, small):
    with pytest.raises(StudyError, match="no rows yet"):
        summarize(small, tmp_path)


def test_the_page_carries_its_plots_inside(tmp_path, small):
    RowFile(tmp_path / "small.jsonl").append(ROWS)
    summarize(small, tmp_path)
    write_page(tmp_path, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    parser = Images()
    parser.feed(html)
    assert parser.open == []
    assert len(parser.images) == 1
    head, _, encoded = parser.images[0].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(encoded) == (tmp_path / "small-variants.png").read_bytes()
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert "missed by 0.10 points" in html


def test_a_page_with_a_missing_image_is_refused(tmp_path):
    file = tmp_path / "x.md"
    file.write_text("# x\n\n![x](gone.png)\n")
    with pytest.raises(StudyError, match=r"gone\.png"):
        page([file])
    with pytest.raises(StudyError, match="holds no"):
        write_page(Path(tmp_path / "nothing"), tmp_path / "page.html")
