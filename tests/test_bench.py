"""`subbyte bench`: rows, the proof that an integer implementation is one, and the verdict on the targets."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import subbyte as sb
from subbyte import backends, bench, ops
from subbyte.bench import evidence, gemm, impls, layers, memory, rows, runner, step, tables, targets, timing
from subbyte.bench.rows import Row
from subbyte.bench.timing import Candidate, Case, Prepared, Refused, Skip, Trial
from subbyte.cli import app

needs_kernels = pytest.mark.skipif(bool(backends.discover()["cpu"].available()), reason="the kernels are not built")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def row(bench="gemm", case="512x512x512", impl="subbyte/int4", time="1", samples=(1.0, 1.0, 1.0), **more) -> Row:
    shared = dict(device="cpu", threads=2, commit="c", machine="m", torch="t", seed=0)
    if samples:
        more |= dict(samples=list(samples), seconds=sorted(samples)[len(samples) // 2], spread=0.0)
    return Row(bench=bench, case=case, impl=impl, time=time, **shared, **more)


# ---------------------------------------------------------------------------------------------------- the command line


@needs_kernels
@pytest.mark.parametrize("suite", ["gemm", "conv", "norm", "quantize"])
def test_a_quick_run_writes_well_formed_rows(suite, tmp_path):
    path = tmp_path / "rows.jsonl"
    result = run(suite, "--quick", "--rounds", 3, "--seconds", 0.01, "--json", path, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = bench.read(path)
    assert {r.bench for r in found} == {suite}
    expected = {"gemm": {*impls.OURS, "int_mm"}, "conv": set(impls.OURS), "quantize": {"copy"}, "norm": set()}[suite]
    assert expected <= {r.impl for r in found}
    for r in found:
        plain = json.loads(r.to_json())
        assert {"bench", "case", "device", "threads", "impl", "seconds", "bytes", "commit", "machine", "time"} <= set(
            plain
        )
        assert r.measured
        assert not r.refused
        assert r.seconds > 0
        assert len(r.samples) == 3
        assert r.roofline > 0
        assert min(r.samples) * 0.99 <= r.seconds <= max(r.samples) * 1.01
        assert r.command == f"subbyte bench {suite} --rounds 3 --seconds 0.01 --quick"
        if r.impl.startswith("subbyte/"):
            assert r.kernels
            assert all(k != "reference" for k in r.kernels)
            assert r.error is None or 0 < r.error < 1
    shares = {r.impl: r.integer_share for r in found if r.impl in impls.OURS}
    if suite == "conv":
        assert shares == {
            "subbyte/int4": 1,
            "subbyte/int6": 1,
            "subbyte/int8": 1,
            "subbyte/int4-psq": pytest.approx(2 / 3),
        }
    cases = {r.case: r.time for r in found}
    assert all(r.time == cases[r.case] for r in found)  # one process, one moment


@needs_kernels
def test_linear_is_compared_with_torchao(tmp_path):
    pytest.importorskip("torchao")
    path = tmp_path / "rows.jsonl"
    words = ("--impl", "torchao", "--impl", "subbyte/int8", "--rounds", 3)
    assert run("linear", "--quick", *words, "--json", path, "--out", tmp_path).exit_code == 0
    found = {r.impl: r for r in bench.read(path)}
    assert set(found) == {"subbyte/int8", "torchao"}
    assert found["torchao"].integer_share == 1  # its default form multiplies nothing in integers
    assert 0 < found["torchao"].error < 0.1


@needs_kernels
def test_steps_and_memory_of_a_small_network(tmp_path):
    path = tmp_path / "rows.jsonl"
    common = ("--quick", "--cases", "smallcnn*", "--rounds", 3, "--json", path, "--out", tmp_path)
    ours = ("--impl", "subbyte/int4", "--impl", impls.INTEGER_ONLY)
    assert run("step", *ours, "--impl", "torch-*", *common).exit_code == 0
    assert run("memory", *ours, "--impl", "torch-fp32", *common).exit_code == 0
    found = bench.read(path)
    steps = {r.impl: r for r in found if r.bench == "step"}
    assert set(steps) == {"subbyte/int4", impls.INTEGER_ONLY, "torch-fp32", "torch-bf16", "torch-fp16"}
    assert steps["subbyte/int4"].integer_share == steps[impls.INTEGER_ONLY].integer_share == 1
    assert "int_batch_table_portable" in steps[impls.INTEGER_ONLY].kernels
    assert steps["torch-fp32"].ops == steps["subbyte/int4"].ops > 0
    saved = {r.impl: r.bytes for r in found if r.case.endswith(memory.SAVED)}
    assert saved[impls.INTEGER_ONLY] < saved["torch-fp32"] / 2
    assert saved["subbyte/int4"] < saved["torch-fp32"]
    added = {r.impl: r.bytes for r in found if r.case.endswith(memory.ADDED)}
    assert added["torch-fp32"] < saved["torch-fp32"]
    peaks = [r for r in found if r.case.endswith(memory.PEAK)]
    assert all(r.bytes > 50 << 20 for r in peaks)  # Python with torch
    assert {r.seconds for r in found if r.bench == "memory"} == {None}


def test_mistakes_are_one_line():
    for words, said in (
        (("nonsense",), "unknown suite 'nonsense'"),
        (("gemm", "--quick", "--cases", "9x9x9"), "no case is called like 9x9x9"),
        (("step", "--quick", "--isa", "avx1024"), "--isa takes avx2"),
        (("report", "--json", "nowhere.jsonl"), "nowhere.jsonl"),
    ):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert "Traceback" not in result.output


@needs_kernels
def test_the_report_is_made_again_from_the_file(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "bench.jsonl"
    assert run("gemm", "--quick", "--rounds", 3, "--json", path, "--out", tmp_path).exit_code == 0
    page = (tmp_path / "bench.md").read_text()
    (tmp_path / "bench.md").unlink()
    (tmp_path / "bench_gemm.png").unlink()
    result = run("report", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "bench.md").read_text() == page
    assert (tmp_path / "bench_gemm.png").read_bytes().startswith(b"\x89PNG")
    assert "64x64x64" in page
    assert "missed: no figure" in page  # none of the cases that the targets name was measured
    assert f"0 of {len(targets.goals())} met" in page


# ------------------------------------------------------------------------------------------------------------- refusals


@needs_kernels
def test_a_layer_that_stayed_float_is_refused(monkeypatch, tmp_path):
    floats = sb.Scheme.from_name("float")
    monkeypatch.setattr(impls, "scheme", lambda name: floats)
    path = tmp_path / "rows.jsonl"
    result = run("linear", "--quick", "--impl", "subbyte/int4", "--json", path, "--out", tmp_path)
    assert result.exit_code == 1
    (only,) = bench.read(path)
    assert only.refused
    assert not only.measured
    assert "nothing was quantized" in only.skipped
    assert "refused" in (tmp_path / "bench.md").read_text()


@needs_kernels
def test_the_reference_is_refused(monkeypatch):
    with ops.use_backend("reference"), pytest.raises(Refused, match="no native kernel ran"):
        next(c for c in layers.linear(quick=True)[0].candidates() if c.impl == "subbyte/int4").prepare()


@needs_kernels
def test_a_network_with_a_float_layer_is_refused(monkeypatch):
    part = sb.Scheme.from_name("int4").override("block3.*", None)
    monkeypatch.setattr(impls, "scheme", lambda name: part)
    with pytest.raises(Refused, match="products in floats"):
        next(c for c in step.cases(quick=True)[0].candidates() if c.impl == "subbyte/int4").prepare()


def test_each_check_refuses_what_it_is_for():
    x = torch.randn(4, 3)
    with pytest.raises(Refused, match="no op of subbyte ran"):
        evidence.require_native({})
    with pytest.raises(Refused, match="equals that of floats"):
        evidence.require_error(x, x)
    with pytest.raises(Refused, match="nothing to do"):
        evidence.require_error(x * float("nan"), x)
    assert 0 < evidence.require_error(x * 1.01, x) < 0.02
    a, b = torch.randint(-7, 8, (4, 6), dtype=torch.int8), torch.randint(-7, 8, (6, 5), dtype=torch.int8)
    left = torch.randint(0, 5, (6,))
    right = (a.long() << left) @ b.long()
    evidence.equal_codes(right, a, b, left)
    with pytest.raises(Refused, match="not the exact one"):
        evidence.equal_codes(right + 1, a, b, left)
    _, _, counter = evidence.watch(lambda: x @ x.T)
    with pytest.raises(Refused, match="no product ran on integers"):
        evidence.require_integer(counter)


def test_psq_emulates_the_weights_gradient_alone():
    torch.manual_seed(0)
    layer = sb.nn.Linear(8, 6, scheme=impls.layer_scheme("subbyte/int4-psq"))
    layer(torch.randn(5, 8, requires_grad=True)).square().sum().backward()
    evidence.require_products(nn.Sequential(layer), impls.emulated("subbyte/int4-psq"))
    with pytest.raises(Refused, match="grad_weight of 0 ran as emulated"):
        evidence.require_products(nn.Sequential(layer), ())


def test_what_cannot_run_is_a_row_with_its_reason(monkeypatch):
    def absent() -> Prepared:
        raise Skip("it is not installed")

    def broken() -> Prepared:
        raise ZeroDivisionError("a defect")

    here = Candidate("torch-fp32", lambda: Prepared([Trial(lambda: None)]), ops=2)
    monkeypatch.setitem(
        runner.TIMED,
        "gemm",
        lambda quick: [Case("gemm", "case", lambda: [here, Candidate("torchao", absent), Candidate("int_mm", broken)])],
    )
    (found,) = bench.run(bench.Options(("gemm",), rounds=3, quick=True))
    by_impl = {r.impl: r for r in found}
    assert by_impl["torch-fp32"].measured
    assert by_impl["torchao"].skipped == "it is not installed"
    assert not by_impl["torchao"].measured
    assert not by_impl["torchao"].refused
    assert by_impl["int_mm"].refused  # a defect: it costs no other figure, and the exit code is 1
    assert by_impl["int_mm"].skipped == "failed: ZeroDivisionError: a defect"


# -------------------------------------------------------------------------------------------------------------- timing


def test_implementations_take_turns_and_a_slow_one_sits_out():
    order: list[str] = []
    trials = {name: Trial(lambda name=name: order.append(name)) for name in "ABC"}
    estimates = {"A": 1.0, "B": 1.0, "C": 10.0}  # seconds, as if
    samples = timing.alternate(trials, estimates, rounds=5, seconds=4.0)
    assert "".join(order) == "ABCABCABCABAB"[: len(order)]
    assert {name: len(taken) for name, taken in samples.items()} == {"A": 4, "B": 4, "C": 3}


def test_the_fastest_way_counts():
    import time

    slow, quick = Trial(lambda: time.sleep(0.01), "slow"), Trial(lambda: None, "quick")
    assert timing.fastest([slow, quick])[0].way == "quick"


# --------------------------------------------------------------------------------------------------- rows and verdicts


def test_the_roof_is_not_measured_for_minutes(monkeypatch):
    sizes, clock = [], [0.0]

    def slow(a, b):  # a product without a kernel: 10^9 operations a second
        sizes.append(len(a))
        clock[0] += 2 * len(a) ** 3 / 1e9

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    assert gemm.peak_of(slow, (256, 4096)) == pytest.approx(1e9)
    assert set(sizes) == {128, 256}


def test_the_roof_is_the_faster_product(monkeypatch):
    """On a CPU where torch has no kernel for int8, its product is no roof: ours would be at 3000 % of it."""
    asked = []
    monkeypatch.setattr(gemm, "peak_of", lambda product, sizes: (asked.append((product, sizes)), len(asked))[1] * 1e9)
    assert gemm.int8_peak((256,)) == 2e9
    (theirs, _), (ours, _) = asked
    a = torch.randint(-127, 128, (16, 16), dtype=torch.int8)
    assert theirs is torch._int_mm
    assert torch.equal(ours(a, a.T), theirs(a, a.T))


def test_rows_survive_the_file(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    first = row(kernels=["k"], error=0.1, part=0.5, layout="NCHW")
    second = row(samples=(), skipped="why", refused=True)
    bench.append(path, [first])
    bench.append(path, [second])
    assert bench.read(path) == [first, second]
    path.write_text('{"bench": "gemm"}\n')
    with pytest.raises(ValueError, match="line 1: not a row"):
        bench.read(path)


def test_ratios_are_of_the_same_run_and_of_the_same_rounds():
    ours = row(samples=(1.0, 2.0, 4.0))
    peer = row(impl="torch-bf16", samples=(2.0, 4.0, 8.0, 100.0))
    assert rows.ratio(ours, peer) == rows.Ratio(2.0, 2.0, 2.0)
    other_run = row(impl="torch-bf16", time="2", samples=(0.1, 0.1, 0.1))
    assert rows.together([ours, peer, other_run], ours.key, ours.impl, peer.impl) == (ours, peer)
    assert rows.together([ours, other_run], ours.key, ours.impl, peer.impl) is None
    q = row("quantize", samples=(1.0,), bytes=5)
    copy = row("quantize", impl="copy", samples=(1.0,), bytes=8)
    assert rows.ratio(q, copy, "bandwidth").median == 5 / 8
    held, most = row("memory", samples=(), bytes=10), row("memory", impl="torch-fp32", samples=(), bytes=60)
    assert rows.ratio(held, most, "bytes").median == 6


def test_a_missing_case_counts_as_missed():
    goals = [g for g in targets.goals() if g.bench == "gemm" and g.peer == "int_mm"]
    measured = [row(), row(impl="int_mm", samples=(0.96, 0.96, 0.96))]
    verdicts = targets.judge(measured, goals)
    assert [v.met for v in verdicts] == [True] + [False] * (len(goals) - 1)
    assert {str(v) for v in verdicts[1:]} == {"missed: no figure"}
    assert verdicts[1].why == "not in the file"
    slower = targets.judge([row(), row(impl="int_mm", samples=(0.94, 0.94, 0.94))], goals[:1])
    assert str(slower[0]) == "missed"
    skipped = targets.judge([row(samples=(), skipped="no kernels"), measured[1]], goals[:1])
    assert (skipped[0].met, skipped[0].why) == (False, "subbyte/int4: no kernels")
    assert (
        tables.summary(verdicts) == f"targets: 1 of {len(goals)} met, {len(goals) - 1} missed ({len(goals) - 1} of "
        "them without a figure)"
    )


def test_an_avx2_row_does_not_serve_the_other_targets():
    goal = next(g for g in targets.goals() if g.forced_isa)
    case = dict(bench="step", case=goal.case)
    ours, peer = row(**case, impl="subbyte/int4"), row(**case, impl="torch-fp32", samples=(2.0, 2.0, 2.0))
    assert not targets.judge([ours, peer], [goal])[0].met
    limited = [dataclasses.replace(r, forced_isa="avx2") for r in (ours, peer)]
    assert targets.judge(limited, [goal])[0].met
    assert not any(v.met for v in targets.judge(limited) if not v.goal.forced_isa)


def test_the_best_of_several_implementations_counts():
    goal = next(g for g in targets.goals() if g.case == step.ENCODER)
    case = dict(bench="step", case=goal.case)
    measured = [
        row(**case, impl="subbyte/int4", samples=(1.0,)),
        row(**case, impl="subbyte/int4-fused", samples=(0.5,)),
        row(**case, impl="torch-bf16", samples=(0.9,)),
    ]
    (verdict,) = targets.judge(measured, [goal])
    assert (verdict.impl, verdict.ratio.median, verdict.met) == ("subbyte/int4-fused", 1.8, True)


def test_every_target_names_a_case_and_implementations_that_exist():
    cases = {
        (c.suite, c.name)
        for make in (gemm.cases, layers.linear, layers.conv, layers.norm, step.cases)
        for c in make(False)
    }
    for goal in targets.goals():
        if goal.bench not in ("memory", "quantize"):
            assert (goal.bench, goal.case) in cases
    per_case: dict[tuple, set] = {}
    for goal in targets.goals():
        per_case.setdefault((goal.bench, goal.case, goal.peer, goal.what, goal.least), set()).update(goal.ours)
    for (suite, *_), ours in per_case.items():
        if suite != "memory":
            assert any("int4" in name for name in ours)
            assert any("int6" in name for name in ours)
    assert len(targets.goals()) == len(set(targets.goals()))


def test_saved_bytes_are_those_of_distinct_storages():
    net = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Sigmoid())
    x = torch.randn(16, 8)
    activations = 4 * (16 * 8 + 16 * 4)  # x of the Linear, y of the Sigmoid
    assert memory.saved_bytes(net, x, with_parameters=False) == activations
    assert (
        memory.saved_bytes(net, x.requires_grad_()) == activations + 4 * 8 * 4
    )  # and the weight, for the gradient of x
    twice = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 4, bias=False))
    assert memory.saved_bytes(twice, x, with_parameters=False) == 4 * (16 * 8 + 16 * 8)  # what both keep counts once


@needs_kernels
def test_a_process_limited_to_avx2_runs_no_kernel_above_it(tmp_path):
    from subbyte.backends import _native

    if "avx2" not in _native.isas():
        pytest.skip("no AVX2 here")
    path = tmp_path / "rows.jsonl"
    words = ("--quick", "--impl", "subbyte/int4", "--impl", "torch-fp32", "--rounds", 3, "--json", path)
    assert run("gemm", "--isa", "avx2", *words, "--out", tmp_path).exit_code == 0
    found = bench.read(path)
    assert {r.forced_isa for r in found} == {"avx2"}
    ours = [k for r in found if r.impl == "subbyte/int4" for k in r.kernels]
    assert ours
    assert all("avx2" in k for k in ours)
    assert found[0].command.endswith("--isa avx2")
