"""Arguments for the ops of ops/integer_constants.py, for op_calls.py."""

from __future__ import annotations

import torch
from torch import Tensor

from subbyte import integer, ops
from subbyte.numerics import IntFormat


def _numbers(shape: tuple[int, ...], bits: int, seed: int = 0) -> Tensor:
    """int64 of every size up to `bits` bits, with the extremes among them."""
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-(1 << bits) + 1, 1 << bits, shape, generator=g)
    drawn >>= torch.randint(0, bits, shape, generator=g)
    flat = drawn.view(-1)
    for i, v in enumerate((0, (1 << bits) - 1, 1 - (1 << bits), 1)[: flat.numel()]):
        flat[i] = v
    return drawn


def _int32(v: int) -> Tensor:
    return torch.tensor(v, dtype=torch.int32)


def _statistics(channels: int, n: int, signed: bool = True) -> tuple[Tensor, ...]:
    """(S, A, least, greatest) of n codes a channel: bells, a constant, one code beside all others, both ends."""
    fmt = IntFormat(8, signed)
    g = torch.Generator().manual_seed(n)
    spread = torch.exp2(torch.linspace(-3, 7, channels))
    q = (torch.randn(n, channels, generator=g) * spread + 5).round().clamp(fmt.qmin, fmt.qmax).long()
    q[:, 0] = fmt.qmax
    if channels > 2:
        q[:, 1], q[0, 1] = fmt.qmin, fmt.qmax
        q[:, 2], q[::2, 2] = fmt.qmin, fmt.qmax
    total = q.sum(0)
    return total, (n * q - total).abs().sum(0), q.amin(0), q.amax(0)


def int_shift_to_fit(big: int) -> list[tuple]:
    largest = _numbers((1, 9 * big, 1), 62).abs()
    edges = torch.cat([(q << torch.arange(40)) + d for q in (1, 7, 15, 127, 255) for d in (-1, 0, 1)])
    formats = [(4, True), (4, False), (8, True), (8, False), (2, True)]
    return [(t, *f) for t in (largest, edges, largest[:, :0], largest.view(-1)[:1].view(())) for f in formats]


def int_from_float(big: int) -> list[tuple]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5 * big, 7 * big, generator=g) * torch.exp2(torch.randn(3, 5 * big, 7 * big, generator=g) * 9)
    odd = torch.tensor([0.0, -0.0, 1e-45, -(2.0**-126), 3e38, -1.5])
    strange = torch.tensor([1.0, float("inf"), -float("inf"), float("nan")])
    tensors = (x, x.mT, x.half(), x.bfloat16(), x.double(), odd, odd[:3], strange, odd[:0], odd[5], x * 0)
    return [(t,) for t in tensors]


def int_to_float(big: int) -> list[tuple]:
    v, exponents = _numbers((3, 5 * big, 7 * big), 60), (-149, -300, 0, 90, 200)
    small = _numbers((4 * big, 9), 30).to(torch.int32)
    tensors = (v, v.mT, v >> 40, v[:0], v[:1] * 0, small, small.T, v[0, 0, 1])
    return [(t, _int32(e)) for t in tensors for e in exponents]


def int_batch_table(big: int) -> list[tuple]:
    calls = [
        (*_statistics(channels * big, n, signed), n, signed, bits)
        for channels, n in ((5, 2), (7, 1000), (1, 4096), (4, 77))
        for signed, bits in ((True, 8), (False, 8), (True, 4))
    ]
    n = integer.MAX_COUNT  # the widest sums
    for total, spread, least, greatest in (
        (0, 127 * n * n, -127, 127),
        (127 * n - 254, 4 * 127 * (n - 1), -127, 127),
        (127 * n, 0, 127, 127),
    ):
        calls.append((*(torch.tensor([v]) for v in (total, spread, least, greatest)), n, True, 8))
    return calls


def _tables(big: int):
    """(k, fraction, inverse, inverse_exponent, n) of batches."""
    for channels, n in ((5 * big, 1000), (1, 2), (8 * big, 64)):
        yield *ops.int_batch_table(*_statistics(channels, n), n, True, 8), n


def int_affine_table(big: int) -> list[tuple]:
    calls = []
    for k, fraction, *_ in _tables(big):
        gamma = _numbers(fraction.shape, 7).to(torch.int8)
        beta = _numbers(fraction.shape, 24, seed=1).to(torch.int32)
        exponents = ((0, -20), (0, 0), (-10, 5), (30, -40), (-9, -(1 << 10)), (3, integer.NOT_FINITE))
        calls += [(k, fraction, gamma, _int32(g), beta, _int32(b)) for g, b in exponents]
    return calls


def int_norm_coefficients(big: int) -> list[tuple]:
    calls = []
    for _, fraction, inverse, inverse_e, n in _tables(big):
        gamma = _numbers(fraction.shape, 7).to(torch.int8)
        e = _numbers(fraction.shape, 4, seed=2).to(torch.int32)
        sums = [(_numbers(fraction.shape, bits, seed=bits) * n).clamp(-(127**2) * n, 127**2 * n) for bits in (7, 14, 1)]
        for g_e in (e, e * 0, e + integer.NOT_FINITE):
            scales = inverse, inverse_e, fraction, gamma, _int32(-7), g_e
            calls += [(*scales, *sums, n), (*scales, None, None, None, n), (*scales, *(s * 0 for s in sums), n)]
    return calls


def int_running_statistics(big: int) -> list[tuple]:
    calls = []
    for channels, n in ((5 * big, 1000), (3, 2), (1, 4096)):
        total, spread, *_ = _statistics(channels, n)
        g = torch.Generator().manual_seed(4)
        mean, var = torch.randn(channels, generator=g), torch.rand(channels, generator=g)
        step = _numbers((channels,), 3, seed=5).to(torch.int32)
        for buffers in ((mean, var), (mean * 0, var * 0 + 1), (mean * 1e30, var * 1e-30)):
            calls += [(*buffers, total, spread, s, n, w) for s in (step, step - 60) for w in (6554, 65536, 1)]
    return calls


def results_not_finite() -> list[tuple]:
    """(op, arguments) that give NaN, which no comparison of results finds equal."""
    lost = _int32(integer.NOT_FINITE)
    mean, var, *rest = int_running_statistics(1)[0]
    return [
        *(("int_to_float", (v, lost)) for v, _ in int_to_float(1)),
        *(("int_running_statistics", (mean / zero, var, *rest)) for zero in (0.0, -0.0)),
        ("int_running_statistics", (mean, var * torch.nan, *rest)),
    ]


CALLS = {
    f.__name__: f
    for f in (
        *(int_shift_to_fit, int_from_float, int_to_float, int_batch_table, int_affine_table),
        *(int_norm_coefficients, int_running_statistics),
    )
}
