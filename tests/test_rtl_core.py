"""The cores against numerics and integer: GEMM with back-pressure, rescaling, Threefry, L1 norm, generator, backend."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("amaranth", reason="the circuits need Amaranth: pip install 'subbyte[rtl]'")

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.sim import Simulator
from typer.testing import CliRunner

import op_calls
from subbyte import backends, integer, numerics, ops
from subbyte.numerics import IntFormat
from subbyte.rtl import generate, simulate, testbench
from subbyte.rtl.array import slot_ports
from subbyte.rtl.cli import app
from subbyte.rtl.element import stages
from subbyte.rtl.gemm import GemmCore
from subbyte.rtl.gemmconfig import FLAG_ROW_SHIFTS, STATUS_REFUSED, GemmConfig
from subbyte.rtl.product import Product, Requantize, random_product
from subbyte.rtl.spec import BoundError, Spec, spec_for
from subbyte.rtl.threefry import LATENCY, Threefry

HORNER = spec_for(6, 4, "horner")
U4, S6 = IntFormat(4, False), IntFormat(6)
KEY = -0x123456789ABCDEF


def check(config: GemmConfig, product: Product, stall: float = 0.0) -> simulate.GemmRun:
    run = simulate.gemm(config, product, stall)
    assert torch.equal(run.out, product.expected())
    assert run.amax == int(product.accumulators().abs().max())
    return run


# -------------------------------------------------------------------------------------------------------- the GEMM core

CORES = {
    "horner": GemmConfig(HORNER, 2, 2, 16, 6, stochastic=False),
    "plain": GemmConfig(spec_for(8), 3, 2, 16, 6, stochastic=False),
    "folded": GemmConfig(spec_for(4, 5, "folded"), 2, 2, 16, 6, stochastic=False),
    "tree": GemmConfig(spec_for(4, 4, "tree", lanes=4), 2, 2, 16, 6, stochastic=False),
    "unsigned": GemmConfig(Spec(U4, S6, 3, "horner"), 1, 2, 16, 6, stochastic=False, post_lanes=2),
    "wide": GemmConfig(spec_for(8, 8, "horner", acc_bits=40), 2, 1, 16, 6, stochastic=False),
}

CORES |= {
    "dsp-horner": GemmConfig(HORNER, 2, 2, 60, 6, stochastic=False, dsp=True),
    "dsp-folded": GemmConfig(spec_for(6, 4, "folded"), 4, 1, 60, 6, stochastic=False, dsp=True),
}


@pytest.mark.parametrize("name", CORES)
def test_products_with_stalls_on_every_stream(name):
    check(CORES[name], random_product(CORES[name], 3, 5, 13, seed=3), stall=0.3)


@pytest.mark.parametrize("large", [60, 33], ids=["34 x 8", "33 x 8 + 8"])
@pytest.mark.parametrize("name", ["dsp-horner", "dsp-folded"])
def test_dsp_core_cuts_chunks_of_extremes(name, large):
    """Every product at its largest: 272 units of 2^left fill a chunk's low field, the next begins another chunk."""
    left = torch.where(torch.arange(60) < large, 3, 0)
    check(CORES[name], Product(torch.full((2, 60), 31), torch.full((60, 2), -31), left))


@pytest.mark.parametrize("used", [[0], [3], [0, 3], [1, 2]])
def test_groups_may_be_empty(used):
    p = random_product(CORES["horner"], 2, 2, 9, seed=1)
    check(CORES["horner"], Product(p.a, p.b, torch.tensor(used)[torch.arange(9) % len(used)]))


def test_natural_order_needs_no_left_shifts():
    check(CORES["horner"], random_product(CORES["horner"], 2, 3, 7, groups=1))


def test_extremes_at_the_accumulators_bound():
    spec = spec_for(3, 2, "horner", acc_bits=9)  # 255 // (9 << 1) = 14
    config = GemmConfig(spec, 1, 1, spec.max_k, 1, 1, stochastic=False)
    k = spec.max_k
    p = Product(torch.full((1, k), 3), torch.full((k, 1), -3), torch.ones(k, dtype=torch.int64))
    assert int(check(config, p).out) == -9 * 2 * k == -252
    with pytest.raises(BoundError, match="K is 1 to 14"):
        GemmConfig(spec, 1, 1, k + 1, 1, 1)


@pytest.mark.parametrize("stream", [None, KEY], ids=["nearest", "stochastic"])
def test_requantized_outputs_with_a_shift_for_each_row(stream):
    config = GemmConfig(HORNER, 2, 2, 16, 6, 6, stochastic=stream is not None)
    rescale = Requantize(IntFormat(6), 5, torch.tensor([0, 3, 1, 2, 58]), stream)
    check(config, random_product(config, 5, 3, 11, rescale, seed=4), stall=0.2)


TOO_MANY_ROWS = {"FLAGS": FLAG_ROW_SHIFTS, "M_PANELS": 33}


class EmptyArray(wiring.Component):
    """An array's ports and timing without its multipliers: cycle counts do not depend on data."""

    def __init__(self, config: GemmConfig) -> None:
        self.steps = 1 + stages(config.spec)
        super().__init__(slot_ports(config.spec, config.rows, config.cols))

    def elaborate(self, platform) -> Module:
        m = Module()
        line = Signal(self.steps)
        m.d.sync += line.eq(line << 1 | self.drain)
        m.d.comb += self.out_valid.eq(line[-1])
        return m


def test_cycles_follow_the_schedule_and_reach_the_target():
    """8 x 8: the schedule holds within a few tens of cycles; at 64 x 64 x 256 it leaves 94.7 % (target 85 %)."""
    config = GemmConfig(HORNER, 8, 8, 80, 24, stochastic=False)
    for m, n, k in ((16, 24, 80), (8, 8, 70)):
        run = simulate.gemm(config, random_product(config, m, n, k), array=EmptyArray(config))
        assert 0 <= run.cycles - config.schedule_cycles(m, n, k) <= 90
    full = GemmConfig(HORNER)
    assert full.ideal_cycles(64, 64, 256) >= 0.94 * (full.schedule_cycles(64, 64, 256) + 90)


def test_sizes_beyond_the_buffers_are_refused_by_generator_and_circuit():
    config = CORES["horner"]
    beyond = {"K is at most 16": (2, 2, 17), "N is at most 6": (2, 7, 16), "M ends at": (1 << 18, 2, 2)}
    for bound, sizes in beyond.items():
        with pytest.raises(BoundError, match=bound):
            config.require(*sizes)
    p = random_product(config, 2, 2, 4)
    with pytest.raises(BoundError, match="shift of 64"):
        Product(p.a, p.b, None, Requantize(S6, 60, torch.tensor([0, 4]))).require(config)
    with pytest.raises(BoundError, match="groups have 0 to 3"):
        Product(p.a, p.b, torch.full((4,), 4)).require(config)
    with pytest.raises(BoundError, match="operand a is no s6"):
        Product(torch.full((2, 4), -32), p.b).require(config)
    dut = GemmCore(config)
    streams = simulate.Streams(dut)

    async def bench(ctx):
        for values in (
            {"SLOTS": 17},
            {"SLOTS": 0},
            {"SLOTS": 16, "N_PANELS": 4},
            {"N_PANELS": 3, "M_PANELS": 0},
            TOO_MANY_ROWS,
        ):
            for name, value in ({"M_PANELS": 1, "N_PANELS": 1} | values).items():
                await simulate.write_register(ctx, dut, name, value)
            await simulate.write_register(ctx, dut, "START", 1)
            assert await simulate.read_register(ctx, dut, "START") == STATUS_REFUSED
        assert await simulate.read_register(ctx, dut, "GEOMETRY") == 0x04010202

    streams.simulator.add_testbench(bench)
    streams.simulator.run()


# ------------------------------------------------------------------------------------------------- element by element


def test_threefry_equals_numerics():
    dut = Threefry()
    calls = torch.tensor([0, 1, 2, 0xFFFFFFFF, 12345])
    words = numerics.random_bits16(torch.tensor(KEY), 8, start=4 * 12345).tolist()

    async def bench(ctx):
        ctx.set(dut.key_low, KEY & 0xFFFFFFFF)
        ctx.set(dut.key_high, KEY >> 32 & 0xFFFFFFFF)
        for c in calls.tolist():
            ctx.set(dut.counter_low, c)
            await ctx.tick()
        await ctx.tick().repeat(LATENCY - 1)
        got = [ctx.get(dut.word0), ctx.get(dut.word1)]
        assert [got[0] & 0xFFFF, got[0] >> 16, got[1] & 0xFFFF, got[1] >> 16] == words[:4]

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("stream", [None, KEY], ids=["nearest", "stochastic"])
def test_quantizer_equals_integer_requantize(stream):
    g = torch.Generator().manual_seed(0)
    value = torch.randint(-(1 << 31), 1 << 31, (150,), generator=g) >> torch.randint(0, 31, (150,), generator=g)
    value[:8] = torch.tensor([(1 << 31) - 1, -(1 << 31), 1 << 15, 3 << 15, -(1 << 15), (1 << 15) + 1, -1, 0])
    shift = torch.randint(0, 40, (150,), generator=g)
    shift[:8] = 16
    value[8:12], shift[8:12] = (
        torch.tensor([1 << 19, (1 << 19) + 1, 3 << 19, (3 << 19) - 1]),
        20,
    )  # halves, and not quite
    r16 = None if stream is None else numerics.random_bits16(torch.tensor(stream), 150).long()
    for fmt in (IntFormat(6), IntFormat(8, False)):
        got, cycles = simulate.quantize(value, shift, fmt, stream, stall=0.2 if fmt.signed else 0.0)
        bits = [None] * len(value) if r16 is None else list(r16)
        want = [int(integer.requantize(v, int(n), fmt, r)) for v, n, r in zip(value, shift, bits, strict=True)]
        assert got.tolist() == want
    assert cycles <= 150 + 25  # a code a cycle without stalls


@pytest.mark.parametrize(("fmt", "n"), [(IntFormat(4), 24), (IntFormat(8), 33), (IntFormat(8, False), 16), (S6, 1)])
def test_l1_norm_equals_integer(fmt, n):
    q = torch.randint(fmt.qmin, fmt.qmax + 1, (5, n), generator=torch.Generator().manual_seed(n))
    q[1], q[2], q[3] = fmt.qmax, 0, fmt.qmin  # constant rows: the floor under A
    q[3, 0] = fmt.qmax
    out = IntFormat(8)
    got, cycles = simulate.l1_normalize(q, fmt, out, fraction=5, max_n=64, stall=0.2 if n == 33 else 0.0)
    assert torch.equal(got, integer.l1_normalize(q, [1], out, fraction=5).long())
    assert n == 33 or cycles <= 5 * (3 * n + 45)


# -------------------------------------------------------------------------------------------- backend and generator


@pytest.mark.parametrize("name", ["int_matmul", "scaled_matmul", "quantize"])
def test_forced_backend_equals_the_reference(name):
    op = getattr(torch.ops.subbyte, name).default
    calls = {"int_matmul": [1, 2], "scaled_matmul": [0], "quantize": [1, 3, 6]}[name]
    for args in (getattr(op_calls, name)(1)[i] for i in calls):
        with ops.use_backend("reference"):
            want = op(*args)
        with ops.use_backend("rtl"):
            got = op(*args)
        assert ops.last_kernel[name].startswith("rtl-")
        assert torch.equal(got, want)
        assert (got.dtype, got.stride()) == (want.dtype, want.stride())


def test_backend_runs_only_when_forced(monkeypatch):
    assert "rtl" in backends.discover()
    assert "rtl" not in [m.NAME for m in backends.usable()]
    with ops.use_backend("rtl"), pytest.raises(ops.BackendError, match="does not cover"):
        torch.ops.subbyte.int_matmul(*op_calls.operands(S6, op_calls.codes(S6, 64, 64), S6, op_calls.codes(S6, 64, 64)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in backends.discover()["rtl"].available()


def command(*args: str):
    return CliRunner().invoke(app, ["gemm", *args])


@pytest.mark.parametrize(
    ("args", "bound"),
    [
        (["--bits", "9"], "2 to 8 bits"),
        (["--groups", "9"], "1 to 8"),
        (["--bits", "8", "--acc-bits", "24", "--k", "256"], "K is 1 to 65"),
        (["--rows", "65"], "1 to 64"),
        (["--target", "asic"], "xc7, generic"),
        (["--dsp", "--bits", "8"], "a chunk holds 4 units"),
    ],
)
def test_command_refuses_with_the_bound_and_writes_nothing(tmp_path, args, bound):
    result = command("--out", str(tmp_path / "core"), *args)
    assert result.exit_code == 2
    assert bound in result.output
    assert not (tmp_path / "core").exists()


@pytest.mark.parametrize("array", [[], ["--dsp"]], ids=["fabric", "dsp"])
def test_command_writes_a_core_that_passes_its_own_testbench(tmp_path, array):
    pytest.importorskip("pyosys", reason="Verilog is written by pyosys: pip install 'subbyte[rtl]'")
    sizes = ["--m", "3", "--n", "3", "--k", "9", "--rows", "2", "--cols", "2", "--bits", "4"]
    result = command("--out", str(tmp_path), *sizes, *array)
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "manifest.json").read_text())
    assert facts["bounds"]["max_k_of_accumulator"] == spec_for(4, 4, "horner").max_k
    assert "subbyte_gemm gemm (" in (tmp_path / "README.md").read_text()
    assert "module subbyte_gemm(" in (tmp_path / "subbyte_gemm.v").read_text()
    if shutil.which("iverilog") is None:
        return
    assert facts["throughput"]["simulated_cycles"] >= facts["throughput"]["schedule_cycles"]
    words = (tmp_path / "c.hex").read_text().splitlines()
    words[3] = f"{int(words[3], 16) ^ 1:x}"  # a testbench that cannot fail checks nothing
    (tmp_path / "c.hex").write_text("\n".join(words) + "\n")
    with pytest.raises(RuntimeError, match=r"(?s)word 3.*FAIL: 1 errors"):
        generate.run_icarus(tmp_path)


def test_testbench_vectors_are_the_references(tmp_path: Path):
    config = CORES["horner"]
    job = testbench.Job("one", random_product(config, 3, 3, 4), False)
    files = testbench.files(config, [job], "top")
    words = [int(w, 16) for w in files["c.hex"].split()]
    assert words[:2] == [v & 0xFFFFFFFF for v in job.product.expected()[0, :2].tolist()]
    assert len(files["a.hex"].split()) == 2 * 4
    assert files["care.hex"].split().count("0") == 4 * 4 - 9


def test_spec_and_manifest_need_no_amaranth():
    modules = "subbyte.rtl.product, subbyte.rtl.cli, subbyte.backends.rtl"
    code = f"import sys; sys.modules['amaranth'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
