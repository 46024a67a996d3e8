"""One product as the core is asked for it: operands, left shifts, rescaling; its registers, streams and exact result.

What the Amaranth simulation, the generated testbench and the tests all start from. No hardware library is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import integer, numerics
from ..numerics import IntFormat
from . import gemmconfig
from .beats import slot_lefts
from .gemmconfig import GemmConfig
from .spec import BoundError


@dataclass(frozen=True)
class Requantize:
    """What the core does to its accumulators: integer.requantize(acc, shift + row_shift[m], format, bits of stream).

    row_shift (M) or None; stream: 64-bit key for stochastic rounding, None for nearest.
    """

    format: IntFormat
    shift: int
    row_shift: Tensor | None = None
    stream: int | None = None


@dataclass(frozen=True)
class Product:
    """a (M, K), b (K, N) integer codes; left (K) left shifts or None; rescale None for raw accumulators."""

    a: Tensor
    b: Tensor
    left: Tensor | None = None
    rescale: Requantize | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """M, N, K."""
        return self.a.shape[0], self.b.shape[1], self.a.shape[1]

    def require(self, config: GemmConfig) -> None:
        """BoundError where the core cannot hold this product."""
        config.require(*self.sizes, row_shifts=self.rescale is not None and self.rescale.row_shift is not None)
        groups = config.spec.groups
        if self.left is not None and not 0 <= int(self.left.min()) <= int(self.left.max()) < groups:
            raise BoundError(
                f"left shifts {int(self.left.min())} to {int(self.left.max())}: {groups} groups have 0 to {groups - 1}"
            )
        for name, codes, fmt in (("a", self.a, config.spec.a), ("b", self.b, config.spec.b)):
            if int(codes.min()) < fmt.qmin or int(codes.max()) > fmt.qmax:
                raise BoundError(f"operand {name} is no {fmt}: its codes are {int(codes.min())} to {int(codes.max())}")

        if self.rescale is not None:
            rows = self.rescale.row_shift
            largest = self.rescale.shift + (0 if rows is None else int(rows.max()))
            if largest > gemmconfig.MAX_SHIFT:
                raise BoundError(f"a right shift of {largest}: at most {gemmconfig.MAX_SHIFT}")

    def accumulators(self) -> Tensor:
        """sum_k a[m, k] b[k, n] 2^left[k], int64."""
        a = self.a.long()
        return (a if self.left is None else a << self.left.long()) @ self.b.long()

    def expected(self) -> Tensor:
        """What the core must put out, int64 (M, N)."""
        acc, r = self.accumulators(), self.rescale
        if r is None:
            return acc
        r16 = None
        if r.stream is not None:
            r16 = numerics.random_bits16(torch.tensor(r.stream), acc.numel()).view(acc.shape).long()
        rows = [0] * acc.shape[0] if r.row_shift is None else r.row_shift.tolist()
        codes = [
            integer.requantize(acc[i], r.shift + rows[i], r.format, None if r16 is None else r16[i])
            for i in range(acc.shape[0])
        ]
        return torch.stack(codes).long()

    def registers(self, config: GemmConfig) -> dict[str, int]:
        """The register values, 32 bits each, in the order in which to write them; START comes last."""
        m, n, k = self.sizes
        mp, np, slots = config.panels(m, n, k)
        values = {"M_PANELS": mp, "N_PANELS": np, "SLOTS": slots, "N": n}
        flags = gemmconfig.FLAG_GROUPED if self.left is not None and config.spec.groups > 1 else 0
        r = self.rescale
        if r is not None:
            flags |= gemmconfig.FLAG_REQUANTIZE
            flags |= gemmconfig.FLAG_ROW_SHIFTS if r.row_shift is not None else 0
            flags |= gemmconfig.FLAG_STOCHASTIC if r.stream is not None else 0
            key = r.stream or 0
            values |= {"SHIFT": r.shift, "QMIN": r.format.qmin & 0xFFFFFFFF, "QMAX": r.format.qmax}
            values |= {"STREAM_LOW": key & 0xFFFFFFFF, "STREAM_HIGH": key >> 32 & 0xFFFFFFFF}
        return values | {"FLAGS": flags, "START": 1}

    def shift_bytes(self, config: GemmConfig) -> list[int]:
        """The shift stream: left shifts by slot, then row shifts, padded to whole panels."""
        out = slot_lefts(config, self.left) if self.left is not None and config.spec.groups > 1 else []
        if self.rescale is not None and self.rescale.row_shift is not None:
            out += self.rescale.row_shift.tolist() + [0] * (-self.sizes[0] % config.rows)
        return out


def random_product(
    config: GemmConfig,
    m: int,
    n: int,
    k: int,
    rescale: Requantize | None = None,
    seed: int = 0,
    groups: int | None = None,
) -> Product:
    """Uniform codes, the extremes among them, and left shifts over all `groups` (the core's if None)."""
    g = torch.Generator().manual_seed(seed)
    spec = config.spec
    groups = spec.groups if groups is None else groups

    def codes(rows: int, cols: int, fmt: IntFormat) -> Tensor:
        out = torch.randint(fmt.qmin, fmt.qmax + 1, (rows, cols), generator=g)
        extreme = torch.rand(rows, cols, generator=g) < 1 / 8
        return torch.where(extreme, torch.where(out > 0, fmt.qmax, fmt.qmin), out)

    slots = -(-k // spec.lanes)
    left = torch.randint(0, groups, (slots,), generator=g).repeat_interleave(spec.lanes)[:k] if groups > 1 else None
    return Product(codes(m, k, spec.a), codes(k, n, spec.b), left, rescale)
