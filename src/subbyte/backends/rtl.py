"""The RTL backend: small products and quantizations on the circuits themselves, in Amaranth's simulator.

It exists so that the tests of the ops hold the circuits to the same integers as every other backend. It is never chosen
by itself (AUTOMATIC): force it with ops.use_backend("rtl") or SUBBYTE_BACKEND=rtl. About a thousand cycles a second, so
it covers products of at most MAX_MACS and tensors of at most MAX_CODES and leaves the rest.

What runs where: int_matmul and scaled_matmul take their sums from a GEMM core with a Horner array, the float scale and
bias of the latter are applied here; quantize turns floats into fixed point here (numerics.to_fixed), rounds them there.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from .. import numerics
from ..numerics import IntFormat, accumulator_bits

NAME = "rtl"
PRIORITY = -100
AUTOMATIC = False

MAX_MACS = 1 << 14
MAX_CODES = 1 << 12
ROWS = COLS = 2
POST_LANES = 2

ran: dict[str, str] = {}


def available() -> str:
    """ "" with Amaranth, otherwise how to get it."""
    if importlib.util.find_spec("amaranth") is None:
        return "Amaranth is not installed: pip install 'subbyte[rtl]'"
    return ""


def int_matmul(a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift):
    """The accumulators of a core; NotImplemented beyond its groups and widths, for large, empty or CUDA operands."""
    acc = _accumulators(a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift)
    if acc is NotImplemented:
        return acc
    ran["int_matmul"] = f"rtl-gemm-horner-{ROWS}x{COLS}"
    bits = accumulator_bits(
        IntFormat(a_bits, a_signed), IntFormat(b_bits, b_signed), a.shape[-1], a_max_shift + b_max_shift
    )
    return acc.to(torch.int32 if bits <= 32 else torch.int64)


def scaled_matmul(
    a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift, a_scale, b_scale, bias
):
    """float32(acc) * (s_a s_b), then + bias: the sums from a core, the float epilogue on the host."""
    acc = _accumulators(a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift)
    if acc is NotImplemented:
        return acc
    ran["scaled_matmul"] = f"rtl-gemm-horner-{ROWS}x{COLS}"
    out = acc.to(torch.float32) * (a_scale * b_scale)
    return out if bias is None else out + bias.to(torch.float32)


def quantize(x: Tensor, r: Tensor, shift: Tensor | None, stream: Tensor | None, bits: int, signed: bool):
    """codes = round(t / 2^16) on a Quantizer, Threefry included; t = x 2^shift Q 2^16 / r by numerics on the host."""
    if not x.is_cpu or not 0 < x.numel() <= MAX_CODES:
        return NotImplemented
    from ..rtl import simulate

    fmt = IntFormat(bits, signed)
    inv = numerics.inverse_step(r, fmt)
    if shift is not None:
        inv = inv * numerics.power_of_two(shift)
    t = numerics.to_fixed(x, inv, fmt)
    codes, _ = simulate.quantize(t, numerics.FRACTION_BITS, fmt, None if stream is None else int(stream))
    ran["quantize"] = "rtl-quantizer"
    return torch.empty_like(x, dtype=fmt.dtype).copy_(codes)


def _accumulators(a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift):
    """sum_k a[m,k] b[k,n] 2^left[k], int64, matrix by matrix; or NotImplemented."""
    from ..rtl import simulate
    from ..rtl.gemmconfig import GemmConfig
    from ..rtl.product import Product
    from ..rtl.spec import MAX_ACC_BITS, MAX_GROUPS, Spec

    (m, k), n, groups = a.shape[-2:], b.shape[-1], a_max_shift + b_max_shift + 1
    fmt_a, fmt_b = IntFormat(a_bits, a_signed), IntFormat(b_bits, b_signed)
    if not a.is_cpu or groups > MAX_GROUPS or min(a.numel(), b.numel()) == 0 or a.numel() * n > MAX_MACS:
        return NotImplemented
    acc_bits = accumulator_bits(fmt_a, fmt_b, k, groups - 1)
    if acc_bits > MAX_ACC_BITS:
        return NotImplemented
    spec = Spec(fmt_a, fmt_b, groups, "horner", acc_bits)
    config = GemmConfig(spec, ROWS, COLS, k, n, ROWS, POST_LANES, stochastic=False)
    lead = a.shape[:-2]
    left = _left(a_shift, a_max_shift, lead, k) + _left(b_shift, b_max_shift, lead, k)
    products = [
        Product(*operands)
        for operands in zip(a.reshape(-1, m, k), b.reshape(-1, k, n), left.reshape(-1, k), strict=True)
    ]
    return torch.stack([simulate.gemm(config, p).out for p in products]).view(*lead, m, n)


def _left(shift: Tensor | None, max_shift: int, lead: torch.Size, k: int) -> Tensor:
    """max_shift - shift along K, int64 (*lead, K); 0 without a shift. shift (..., 1, K) or (..., K, 1)."""
    if shift is None:
        return torch.zeros((*lead, k), dtype=torch.int64)
    return (max_shift - shift.to(torch.int64)).reshape(*shift.shape[:-2], k).expand(*lead, k)
