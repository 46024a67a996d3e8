"""A whole quantized linear layer in RTL, forward and both gradients, bit for bit: int4 and int6.

    y = requantize(x w^T),  z = L1 norm of y                    the GEMM core, the L1 unit
    q = round(g 2^-n_o), stochastic, n_o by output channel      the quantizer: ShiftQuant with power-of-two scales
    dx = requantize(q w)       reduces over o: left shifts      the GEMM core, Horner
    dw = requantize(q^T x)     o is a row: a shift for each     the GEMM core, row shifts

Everything between is integers (integer.py); the only numbers that the host chooses are shifts, from amax and max |g|.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("amaranth", reason="the circuits need Amaranth: pip install 'subbyte[rtl]'")

from subbyte import integer, numerics
from subbyte.numerics import IntFormat
from subbyte.rtl import generate, simulate, testbench
from subbyte.rtl.gemm import GemmCore
from subbyte.rtl.gemmconfig import GemmConfig
from subbyte.rtl.product import Product, Requantize
from subbyte.rtl.spec import spec_for
from subbyte.rtl.synth import to_verilog

GROUPS = 4
GRADIENT, GRAD_INPUT, GRAD_WEIGHT = 101, -202, 303  # streams of random bits


@dataclass(frozen=True)
class Step:
    """A layer step by the reference alone: torch's int64 products, integer.py, numerics' random bits."""

    fmt: IntFormat
    x: Tensor
    w: Tensor
    g: Tensor  # the incoming gradient, 16-bit integers (B, O)

    def fit(self, acc: Tensor) -> int:
        return int(integer.shift_to_fit(acc.abs().max(), self.fmt))

    def channel_shifts(self) -> tuple[Tensor, Tensor]:
        """(n_o, left_o): each channel's own shift, no more than GROUPS - 1 below the largest; left = n - smallest."""
        n = integer.shift_to_fit(self.g.abs().amax(0), self.fmt)
        n = n.clamp(min=int(n.max()) - (GROUPS - 1), max=None).clamp(min=0)
        return n, n - n.min()

    def codes(self) -> Tensor:
        n, _ = self.channel_shifts()
        r16 = numerics.random_bits16(torch.tensor(GRADIENT), self.g.numel()).view(self.g.shape).long()
        columns = [integer.requantize(self.g[:, o], int(n[o]), self.fmt, r16[:, o]) for o in range(self.g.shape[1])]
        return torch.stack(columns, 1).long()

    def rescaled(self, acc: Tensor, stream: int | None, rows: Tensor | None = None) -> tuple[Tensor, Requantize]:
        r16 = None
        if stream is not None:
            r16 = numerics.random_bits16(torch.tensor(stream), acc.numel()).view(acc.shape).long()
        shift = self.fit(acc)
        each = torch.zeros(len(acc), dtype=torch.int64) if rows is None else rows
        out = [
            integer.requantize(a, shift + int(e), self.fmt, None if r16 is None else r16[i])
            for i, (a, e) in enumerate(zip(acc, each, strict=True))
        ]
        return torch.stack(out).long(), Requantize(self.fmt, shift, rows, stream)

    def products(self, q: Tensor) -> dict[str, tuple[Product, Tensor]]:
        """name -> (what the core is asked for, what it must answer); q: the gradient's codes."""
        _, left = self.channel_shifts()
        below = GROUPS - 1 - left
        y, forward = self.rescaled(self.x @ self.w.T, None)
        dx, grad_input = self.rescaled((q << left) @ self.w, GRAD_INPUT)
        dw, grad_weight = self.rescaled(q.T @ self.x, GRAD_WEIGHT, below)
        return {
            "output": (Product(self.x, self.w.T, None, forward), y),
            "grad_input": (Product(q, self.w, left, grad_input), dx),
            "grad_weight": (Product(q.T, self.x, None, grad_weight), dw),
        }


def step(bits: int, batch: int, inputs: int, outputs: int) -> Step:
    generator = torch.Generator().manual_seed(bits)
    fmt = IntFormat(bits)

    def codes(*shape: int) -> Tensor:
        return torch.randint(fmt.qmin, fmt.qmax + 1, shape, generator=generator)

    channels = 2.0 ** -(torch.arange(outputs) % 6)  # channels of different size
    g = (torch.randn(batch, outputs, generator=generator) * channels * 4000).round().clamp(-32767, 32767).long()
    return Step(fmt, codes(batch, inputs), codes(outputs, inputs), g)


@pytest.mark.parametrize("bits", [4, 6])
def test_layer_step_forward_and_both_gradients(bits):
    s = step(bits, batch=6, inputs=7, outputs=5)
    n, left = s.channel_shifts()
    assert int(left.max()) == GROUPS - 1  # the case is worth its name: every group range is used
    q, _ = simulate.quantize(s.g, n, s.fmt, GRADIENT)
    assert torch.equal(q, s.codes())

    config = GemmConfig(spec_for(bits, GROUPS, "horner", acc_bits=24), 2, 2, 8, 8, 8)
    for product, want in s.products(q).values():
        run = simulate.gemm(config, product)
        assert torch.equal(run.out, want)
        assert int(integer.shift_to_fit(torch.tensor(run.amax), s.fmt)) == product.rescale.shift

    y = s.products(q)["output"][1]
    z, _ = simulate.l1_normalize(y, s.fmt, IntFormat(8), fraction=5, max_n=8)
    assert torch.equal(z, integer.l1_normalize(y, [1], IntFormat(8), fraction=5).long())


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 6])
def test_layer_step_of_a_real_size_in_icarus(bits, tmp_path):
    """64 x 64 x 256 on an 8 x 8 core with two outputs a cycle: each product at >= 85 % of the ideal where K >= 128."""
    if shutil.which("iverilog") is None:
        pytest.skip("Icarus Verilog is not installed (a system package)")
    s = step(bits, batch=64, inputs=256, outputs=64)
    q = s.codes()
    products = s.products(q)
    config = GemmConfig(spec_for(bits, GROUPS, "horner"), 8, 8, 256, 256, 64, post_lanes=2)
    jobs = [testbench.Job(name, product, False) for name, (product, _) in products.items()]
    for name, text in testbench.files(config, jobs, generate.TOP).items():
        (tmp_path / name).write_text(text)
    (tmp_path / f"{generate.TOP}.v").write_text(to_verilog(GemmCore(config), generate.TOP))
    for (product, want), cycles in zip(products.values(), generate.run_icarus(tmp_path) or [], strict=True):
        assert torch.equal(product.expected(), want)
        share = config.ideal_cycles(*product.sizes) / cycles
        print(f"int{bits} {product.sizes}: {cycles} cycles, {share:.1%} of the ideal")
        assert share >= (0.85 if product.sizes[2] >= 128 else 0.7)
