"""The cores in Amaranth's simulator, driven with tensors through their own AXI ports.

Cycle-true and slow (about 10^3 cycles a second for an 8 x 8 array): for tests, and for backends/rtl.py on small shapes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from amaranth.sim import Simulator
from torch import Tensor

from ..numerics import IntFormat
from . import gemmconfig
from .beats import a_beats, b_beats, matrix
from .gemm import GemmCore, default_array
from .gemmconfig import REGISTERS, GemmConfig
from .l1norm import L1Norm
from .product import Product
from .quantizer import Quantizer

PERIOD = 1e-8


@dataclass(frozen=True)
class GemmRun:
    """out (M, N) int64: accumulators or codes; cycles from START to the last output; amax = max |acc|."""

    out: Tensor
    cycles: int
    amax: int


class Streams:
    """Senders and receivers for one simulation; `stall` is the probability that a side pauses for a cycle."""

    def __init__(self, dut, stall: float = 0.0, seed: int = 0) -> None:
        self.dut, self.stall = dut, stall
        self.random = random.Random(seed)
        self.simulator = Simulator(dut)
        self.simulator.add_clock(PERIOD)

    def send(self, name: str, beats: list[int], last: bool = False, **side: list[int]) -> None:
        """Send `beats` on stream `name`; side: further ports of it, by field (tuser)."""

        async def sender(ctx):
            valid, ready = self._port(name, "tvalid"), self._port(name, "tready")
            for i, beat in enumerate(beats):
                while self._pause():
                    ctx.set(valid, 0)
                    await ctx.tick()
                ctx.set(valid, 1)
                ctx.set(self._port(name, "tdata"), beat)
                for field, values in side.items():
                    ctx.set(self._port(name, field), values[i])
                if last:
                    ctx.set(self._port(name, "tlast"), i == len(beats) - 1)
                await ctx.tick().until(ready)
            ctx.set(valid, 0)

        self.simulator.add_testbench(sender)

    def receive(self, name: str, beats: int, into: list[int], then: Callable | None = None) -> None:
        """Append `beats` words from stream `name` to `into`; then(ctx), a coroutine, runs afterwards."""

        async def receiver(ctx):
            valid, ready, tdata = (self._port(name, f) for f in ("tvalid", "tready", "tdata"))
            while len(into) < beats:
                taking = not self._pause()
                ctx.set(ready, taking)
                _, _, there, word = await ctx.tick().sample(valid, tdata)
                if there and taking:
                    into.append(word)
            ctx.set(ready, 0)
            if then is not None:
                await then(ctx)

        self.simulator.add_testbench(receiver)

    def _pause(self) -> bool:
        return self.stall > 0 and self.random.random() < self.stall

    def _port(self, name: str, field: str):
        return getattr(self.dut, f"{name}_{field}")


async def write_register(ctx, dut, name: str, value: int) -> None:
    """An AXI4-Lite write with its response."""
    ctx.set(dut.s_axil_awaddr, REGISTERS[name])
    ctx.set(dut.s_axil_wdata, value & 0xFFFFFFFF)
    for port, v in (("wstrb", 15), ("awvalid", 1), ("wvalid", 1), ("bready", 1)):
        ctx.set(getattr(dut, f"s_axil_{port}"), v)
    await ctx.tick().until(dut.s_axil_awready)
    ctx.set(dut.s_axil_awvalid, 0)
    ctx.set(dut.s_axil_wvalid, 0)
    await ctx.tick().until(dut.s_axil_bvalid)


async def read_register(ctx, dut, name: str) -> int:
    ctx.set(dut.s_axil_araddr, REGISTERS[name])
    ctx.set(dut.s_axil_arvalid, 1)
    ctx.set(dut.s_axil_rready, 1)
    await ctx.tick().until(dut.s_axil_arready)
    ctx.set(dut.s_axil_arvalid, 0)
    (data,) = (await ctx.tick().sample(dut.s_axil_rdata).until(dut.s_axil_rvalid))[-1:]
    return data


def gemm(config: GemmConfig, product: Product, stall: float = 0.0, seed: int = 0, array=None) -> GemmRun:
    """One product on a GemmCore. BoundError where the core cannot hold it. array: as in GemmCore."""
    product.require(config)
    m, n, k = product.sizes
    dut = GemmCore(config, array or default_array(config, primitive=False))
    streams = Streams(dut, stall, seed)
    words: list[int] = []
    result: dict[str, int] = {}

    async def start(ctx):
        for name, value in product.registers(config).items():
            await write_register(ctx, dut, name, value)

    async def finish(ctx):
        for name in ("START", "CYCLES", "AMAX_LOW", "AMAX_HIGH"):
            result[name] = await read_register(ctx, dut, name)

    mp, np, _ = config.panels(m, n, k)
    streams.simulator.add_testbench(start)
    streams.send("s_axis_a", a_beats(config, product.a))
    streams.send("s_axis_b", b_beats(config, product.b))
    streams.send("s_axis_e", product.shift_bytes(config))
    streams.receive("m_axis_c", mp * np * config.rows * config.cols // config.post_lanes, words, finish)
    streams.simulator.run()
    if result["START"] != gemmconfig.STATUS_DONE:
        raise RuntimeError(f"the core ended with status {result['START']}")
    mask, half = (1 << config.word_bits) - 1, 1 << (config.word_bits - 1)
    values = [
        ((word >> (i * config.word_bits) & mask) ^ half) - half for word in words for i in range(config.post_lanes)
    ]
    amax = result["AMAX_LOW"] | result["AMAX_HIGH"] << 32
    return GemmRun(matrix(config, values, m, n), result["CYCLES"], amax)


def quantize(
    value: Tensor, shift: Tensor | int, fmt: IntFormat, stream: int | None, stall: float = 0.0, seed: int = 0
) -> tuple[Tensor, int]:
    """integer.requantize element by element on a Quantizer: (codes int64 in value's shape, cycles)."""
    dut = Quantizer()
    streams = Streams(dut, stall, seed)
    flat = value.reshape(-1).tolist()
    shifts = torch.as_tensor(shift).expand(value.shape).reshape(-1).tolist()
    out: list[int] = []
    cycles = 0

    async def configure(ctx):
        ctx.set(dut.stochastic, stream is not None)
        ctx.set(dut.stream, (stream or 0) & ((1 << 64) - 1))
        ctx.set(dut.qmin, fmt.qmin)
        ctx.set(dut.qmax, fmt.qmax)

    async def count(ctx):
        nonlocal cycles
        while len(out) < len(flat):
            await ctx.tick()
            cycles += 1

    streams.simulator.add_testbench(configure)
    streams.send("s_axis", [v & 0xFFFFFFFF for v in flat], last=True, tuser=shifts)
    streams.receive("m_axis", len(flat), out)
    streams.simulator.add_testbench(count)
    streams.simulator.run()
    codes = torch.tensor(out, dtype=torch.int64)
    if fmt.signed:
        codes = (codes ^ 128) - 128
    return codes.view(value.shape), cycles


def l1_normalize(
    q: Tensor, fmt: IntFormat, out: IntFormat, fraction: int, max_n: int = 1024, stall: float = 0.0, seed: int = 0
) -> tuple[Tensor, int]:
    """integer.l1_normalize of each row of q (statistics, n) on an L1Norm: (codes int64, cycles)."""
    dut = L1Norm(fmt, max_n)
    if q.shape[1] > max_n:
        raise gemmconfig.BoundError(f"a statistic over {q.shape[1]} codes: the unit's buffer holds {max_n}")
    streams = Streams(dut, stall, seed)
    got: list[int] = []
    cycles = 0
    ends = [int(i % q.shape[1] == q.shape[1] - 1) for i in range(q.numel())]

    async def configure(ctx):
        ctx.set(dut.fraction, fraction)
        ctx.set(dut.qmax, out.qmax)

    async def count(ctx):
        nonlocal cycles
        while len(got) < q.numel():
            await ctx.tick()
            cycles += 1

    streams.simulator.add_testbench(configure)
    streams.send("s_axis", [v & 255 for v in q.reshape(-1).tolist()], tlast=ends)
    streams.receive("m_axis", q.numel(), got)
    streams.simulator.add_testbench(count)
    streams.simulator.run()
    return ((torch.tensor(got, dtype=torch.int64) ^ 128) - 128).view(q.shape), cycles
