"""Suite crossover: where a layer is too small to gain.

product    one matrix product of codes: the kernel that the automatic choice takes, and the exact float product of the
           same codes (the reference), which gives the same bits. The faster one is what the choice should be.
Linear     a whole layer forward and backward against torch's: below some size quantization costs more than it saves.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from subbyte import ops
from subbyte.bench import evidence, impls
from subbyte.bench.layers import Setting
from subbyte.bench.timing import Candidate, Case, Prepared, Trial
from subbyte.numerics import IntFormat
from subbyte.qtensor import QTensor

ROWS = 64
PRODUCTS = (4, 8, 16, 32, 64, 128, 256)
LINEARS = (16, 32, 64, 128, 256, 512, 1024)
QUICK_PRODUCTS, QUICK_LINEARS = (8,), (16,)
BY_KERNEL, BY_FLOATS = "subbyte/int4", "subbyte/int4, float product"


def product_name(n: int) -> str:
    return f"product {n}x{n}x{n}"


def linear_name(n: int) -> str:
    return f"Linear {n}x{n}, {ROWS} rows"


def cases(quick: bool) -> list[Case]:
    products, linears = (QUICK_PRODUCTS, QUICK_LINEARS) if quick else (PRODUCTS, LINEARS)
    return [Case("crossover", product_name(n), partial(_product, n)) for n in products] + [
        Case("crossover", linear_name(n), partial(_linear, n)) for n in linears
    ]


def _product(n: int) -> list[Candidate]:
    fmt, one = IntFormat(4), torch.ones(1, 1)
    a, b = (QTensor(torch.randint(-7, 8, (n, n), dtype=torch.int8), one, fmt) for _ in range(2))

    def by_kernel() -> Prepared:
        _, ran, _ = evidence.watch(lambda: ops.matmul(a, b.T))
        evidence.require_native(ran)
        return Prepared([Trial(lambda: ops.matmul(a, b.T))], {"kernels": list(ran.values())})

    def by_floats() -> Prepared:
        def run() -> torch.Tensor:
            with ops.use_backend("reference"):
                return ops.matmul(a, b.T)

        assert torch.equal(run(), ops.matmul(a, b.T))
        return Prepared([Trial(run)])

    return [Candidate(BY_KERNEL, by_kernel, 2 * n**3), Candidate(BY_FLOATS, by_floats, 2 * n**3)]


def _linear(n: int) -> list[Candidate]:
    setting = Setting(nn.Linear(n, n), torch.randn(ROWS, n), torch.randn(ROWS, n), {"": torch.contiguous_format})
    found = setting.candidates(2 * 3 * ROWS * n * n, 0, impls.OURS[:1])
    return [c for c in found if c.impl != "torch-fp16"]
