"""A quantized linear layer step by the reference alone: torch's int64 products, integer.py, numerics' random bits.

y = requantize(x w^T)
q = round(g 2^-n_o), stochastic, n_o by output channel      ShiftQuant with power-of-two scales
dx = requantize(q w)       reduces over o: left shifts
dw = requantize(q^T x)     o is a row: a shift for each
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from subbyte import integer, numerics
from subbyte.numerics import IntFormat
from subbyte.rtl.product import Product, Requantize

GROUPS = 4
GRADIENT, GRAD_INPUT, GRAD_WEIGHT = 101, -202, 303  # streams of random bits


@dataclass(frozen=True)
class Step:
    """x (B, I), w (O, I) codes; g (B, O) the incoming gradient."""

    fmt: IntFormat
    x: Tensor
    w: Tensor
    g: Tensor  # 16-bit integers

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
