"""Suite gemm: ShiftMM on codes against torch._int_mm and float products.    A (M, K) with a shift along K, B (K, N)

Ours computes the accumulators, int32 as _int_mm does; the shift is as ShiftQuant leaves it, one exponent for each
index of K, drawn from the groups that fold into both operands: 9 of 4 bits, 5 of 6 bits. Packing B is part of every
call: in training each step has new codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from subbyte import ops
from subbyte.bench import evidence, impls
from subbyte.bench.timing import Candidate, Case, Prepared, Skip, Trial, quickest
from subbyte.numerics import IntFormat
from subbyte.qtensor import QTensor

SIZES = ((512,) * 3, (1024,) * 3, (2048,) * 3, (4096,) * 3, (4096, 512, 2048), (131072, 144, 16))
QUICK_SIZES = ((64, 64, 64), (96, 40, 8))
_FP16_PRODUCTS = 1 << 26  # fp16 runs on the first rows of A that make this many products; it may be very slow


def case_name(m: int, k: int, n: int) -> str:
    return f"{m}x{k}x{n}"


def cases(quick: bool) -> list[Case]:
    return [Case("gemm", case_name(*size), partial(_candidates, *size)) for size in (QUICK_SIZES if quick else SIZES)]


def _candidates(m: int, k: int, n: int) -> list[Candidate]:
    operations, moved = 2 * m * k * n, m * k + k * n + 4 * m * n

    def codes(bits: int) -> tuple[Tensor, Tensor]:
        q = IntFormat(bits).qmax
        return tuple(torch.randint(-q, q + 1, shape, dtype=torch.int8) for shape in ((m, k), (k, n)))  # type: ignore[return-value]

    found = [
        Candidate(name, partial(_ours, name, *codes(_format(name).bits)), operations, moved) for name in impls.OURS
    ]
    found.append(Candidate(impls.INT_MM, partial(_int_mm, *codes(8)), operations, moved))
    for name, dtype in impls.FLOATS.items():
        rows = min(m, max(1, _FP16_PRODUCTS // (k * n))) if dtype == torch.float16 else m
        width = dtype.itemsize
        prepare = partial(_float, torch.randn(rows, k).to(dtype), torch.randn(k, n).to(dtype))
        found.append(Candidate(name, prepare, 2 * rows * k * n, width * (rows * k + k * n + rows * n), rows / m))
    return found


def _format(name: str) -> IntFormat:
    """Of the gradient, one of whose products this is."""
    found = impls.layer_scheme(name).gradient
    assert found is not None
    return found.format


def _ours(name: str, a: Tensor, b: Tensor) -> Prepared:
    fmt = _format(name)
    shift, top, left = None, 0, None
    if fmt.bits < 8 and not impls.emulated(name):  # 8 bits have no room to fold into, PSQ's scales are no shift
        top = 2 * (8 - fmt.bits)
        shift = torch.randint(0, top + 1, (1, a.shape[1]), dtype=torch.uint8)
        left = top - shift.flatten().int()
    one = torch.ones(1, 1)
    qa, qb = QTensor(a, one, fmt, shift, top), QTensor(b, one, fmt)
    result, ran, counter = evidence.watch(lambda: ops.matmul_accumulators(qa, qb))
    evidence.require_native(ran)
    evidence.require_integer(counter)
    evidence.equal_codes(result, a, b, left)
    if result.dtype != torch.int32:
        raise Skip(f"its sums take {result.dtype}: not the same work as torch._int_mm")
    return Prepared(
        [Trial(lambda: ops.matmul_accumulators(qa, qb), f"{top + 1} groups")],
        {"kernels": sorted(set(ran.values())), "integer_share": counter.integer_share},
    )


def _int_mm(a: Tensor, b: Tensor) -> Prepared:
    by_column = b.T.contiguous().T
    return Prepared(
        [
            Trial(lambda: torch._int_mm(a, b), "B by rows"),
            Trial(lambda: torch._int_mm(a, by_column), "B by columns"),
        ]
    )


def _float(a: Tensor, b: Tensor) -> Prepared:
    by_column = b.T.contiguous().T
    ways = [Trial(lambda: a @ b, "B by rows"), Trial(lambda: a @ by_column, "B by columns")]
    return Prepared(ways[:1] if a.dtype == torch.float16 else ways)


_SMALL = 128  # a cube that no machine is long at
_LONG = 2.0  # seconds of one product


def int8_peak(sizes: tuple[int, ...]) -> float:
    """Operations a second that int8 products reach on this machine: torch._int_mm's, or ours where it has no kernel."""
    return max(peak_of(torch._int_mm, sizes), peak_of(_accumulators, sizes))


def _accumulators(a: Tensor, b: Tensor) -> Tensor:
    one, s8 = torch.ones(1, 1), IntFormat(8)
    return ops.matmul_accumulators(QTensor(a, one, s8), QTensor(b, one, s8))


def peak_of(product: Callable[[Tensor, Tensor], Tensor], sizes: tuple[int, ...]) -> float:
    """Its operations a second at the best of these cubes.

    A small cube goes first; those that would last for seconds at the rate so far are left out. On a CPU without VNNI
    torch multiplies one number after the other, and the largest would take minutes.
    """
    best = 0.0
    for size in (_SMALL, *sizes):
        if best and 2 * size**3 / best > _LONG:
            continue
        a = torch.randint(-127, 128, (size, size), dtype=torch.int8)
        for b in (a, a.T):
            best = max(best, 2 * size**3 / quickest(partial(product, a, b)))
    return best
