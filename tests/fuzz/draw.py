"""What a fuzz case is drawn from: sizes next to the kernels' edges, formats, fills, layouts, floats with extremes.

Everything comes from one random.Random, so a case is its seed and its number; torch's generators are not used.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from subbyte.numerics import IntFormat

MAX_NUMEL = 1 << 16  # of one tensor: small enough for hundreds of cases in a minute
EDGES = (4, 8, 16, 32, 64)  # a word, vectors, tiles, what one pass transposes
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, -1.5, 2.5, 1e-45, -1e-40, 2.0**-80, 2.0**-81, 2.0**-126, 1e30, 3.4e38, -3.4e38)
NOT_FINITE = (math.nan, math.inf, -math.inf)


class Draw:
    """Random choices for one case."""

    def __init__(self, seed: int, case: int) -> None:
        self.random = random.Random(f"{seed}/{case}")

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def of(self, choices: Sequence):
        return self.random.choice(choices)

    def between(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def size(self, most: int = 70) -> int:
        """0 now and then, often 1 or one off an edge, at times large."""
        kind = self.random.random()
        if kind < 0.02:
            return 0
        if kind < 0.15:
            return 1
        if kind < 0.5:
            n = self.of(EDGES) * self.between(1, 2) + self.between(-1, 1)
        elif kind < 0.95:
            n = self.between(2, 12)
        else:
            n = self.between(100, 3000)
        return min(n, most)

    def shape(self, rank: int, most: int = MAX_NUMEL) -> list[int]:
        shape = [self.size(3000) for _ in range(rank)]
        while math.prod(max(n, 1) for n in shape) > most:
            largest = shape.index(max(shape))
            shape[largest] = max(1, shape[largest] // 3)
        return shape

    def format(self, signed: bool | None = None) -> IntFormat:
        return IntFormat(self.between(2, 8), self.chance(0.6) if signed is None else signed)

    def codes(self, fmt: IntFormat, shape: Sequence[int], layout: bool = True) -> Tensor:
        """Codes of `fmt`: random, all of one extreme, alternating extremes, zeros, or few that are not zero."""
        n, low, high = math.prod(shape), fmt.qmin, fmt.qmax
        fill = self.random.random()
        if fill < 0.5:
            values = torch.frombuffer(bytearray(self.random.randbytes(n + 1)), dtype=torch.uint8)[:n].int()
            values = low + values % (high - low + 1)
        elif fill < 0.65:
            values = torch.full((n,), self.of((low, high)))
        elif fill < 0.8:
            values = torch.where(torch.arange(n) % self.of((2, 3)) == 0, high, low)
        else:
            values = torch.zeros(n, dtype=torch.int64)
            for _ in range(min(n, 5)):
                values[self.between(0, n - 1)] = self.of((low, high, 1))
        values = values.to(fmt.dtype).view(list(shape))
        return self.laid_out(values) if layout else values

    def floats(self, shape: Sequence[int], finite: bool | None = None, positive: bool = False) -> Tensor:
        """Normal numbers of any magnitude with extremes among them; NaN and Inf unless `finite` (None: at times)."""
        n = math.prod(shape)
        raw = torch.frombuffer(bytearray(self.random.randbytes(4 * n + 4)), dtype=torch.int32)[:n]
        x = raw.double() / 2.0**31 * 2.0 ** self.of((0, 0, 0, 3, -3, 20, -20, 60, -60))
        if self.chance(0.2):
            x = (x * 8).round() / 2  # ties
        x = x.float()
        pool = FLOATS if finite or (finite is None and self.chance(0.7)) else FLOATS + NOT_FINITE
        if n and self.chance(0.5):
            for _ in range(self.between(1, 1 + n // 4) if n < 100 else 10):
                x[self.between(0, n - 1)] = self.of(pool)
        return (x.abs() if positive else x).view(list(shape))

    def exponents(self, shape: Sequence[int], most: int) -> Tensor:
        values = [self.between(0, most) for _ in range(math.prod(shape))]
        return self.laid_out(torch.tensor(values, dtype=torch.uint8).view(list(shape)))

    def laid_out(self, t: Tensor) -> Tensor:
        """The same values in another layout: an offset in storage, axes permuted, every second element, a part, a row
        that repeats."""
        how = self.random.random()
        if how < 0.35:
            pass
        elif how < 0.5 and t.ndim == 4:
            t = t.contiguous(memory_format=torch.channels_last)
        elif how < 0.7 and t.ndim > 1:
            order = list(range(t.ndim))
            self.random.shuffle(order)
            back = [order.index(i) for i in range(t.ndim)]
            t = t.permute(order).contiguous().permute(back)
        elif how < 0.8 and t.ndim:
            t = torch.stack([t, torch.zeros_like(t)], -1)[..., 0]
        elif how < 0.9 and t.ndim:
            axis = self.between(0, t.ndim - 1)
            pad = [n + 1 if i == axis else n for i, n in enumerate(t.shape)]
            t = t.new_zeros(pad).narrow(axis, 1, t.shape[axis]).copy_(t)
        elif how < 0.95 and t.ndim and t.numel():
            axis = self.between(0, t.ndim - 1)
            t = t.narrow(axis, 0, 1).expand(t.shape)
        return self.offset(t) if self.chance(0.4) else t

    def offset(self, t: Tensor) -> Tensor:
        """t with the same strides, its storage beginning 1 to 17 elements before it: no vector is aligned."""
        if t.numel() == 0:
            return t
        before = self.between(1, 17)
        reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride()))
        storage = t.new_zeros(before + reach + 1)
        new = storage.as_strided(t.shape, t.stride(), before)
        old = t.as_strided((reach + 1,), (1,))
        storage[before:].copy_(old)
        return new
