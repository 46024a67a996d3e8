"""One generator of arguments for each op, named as the op; an op without one gets its calls in tests/op_calls.py, laid
out anew."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fuzz.draw import Draw
from half_calls import CHANGES
from op_calls import CALLS, packed
from subbyte import ops
from subbyte.numerics import IntFormat

S8 = IntFormat(8)


def amax(d: Draw) -> tuple:
    x = d.laid_out(d.floats(d.shape(d.between(0, 5))).to(d.of((torch.float32,) * 3 + (torch.bfloat16, torch.float64))))
    return x, d.between(-1, x.ndim - 1)


def quantize(d: Draw) -> tuple:
    x = d.floats(d.shape(d.between(0, 5)))
    fmt = d.format()

    def per_axis() -> list[int]:
        kept = d.of(([], [d.between(0, 9)], [0, 1], [0, 1, 2, 3, 4]))
        return [n if i in kept else 1 for i, n in enumerate(x.shape)]

    r = d.floats(per_axis(), positive=True)
    if d.chance(0.5):  # a range that belongs to x, so that codes are not all extreme
        rest = [i for i, n in enumerate(r.shape) if n == 1]
        r = x.abs().nan_to_num(1.0).amax(rest, keepdim=True) if x.numel() and rest else r
    shift = d.exponents(per_axis(), d.of((1, 3, 8, 30))) if d.chance(0.4) else None
    stream = torch.tensor(d.between(-(2**63), 2**63 - 1)) if d.chance(0.5) else None
    if d.chance(0.2):
        x = x.to(d.of((torch.bfloat16, torch.float16, torch.float64)))
    return d.laid_out(x), d.laid_out(r), shift, stream, fmt.bits, fmt.signed


def pack_codes(d: Draw) -> tuple:
    fmt = d.format()
    return d.codes(fmt, [d.between(0, d.of((3, 100, 20_000)))]), fmt.bits


def unpack_codes(d: Draw) -> tuple:
    fmt, n = d.format(), d.between(0, d.of((3, 100, 20_000)))
    return d.codes(IntFormat(8, False), [-(-n * fmt.bits // 8) + d.of((0, 0, 3))]), n, fmt.bits, fmt.signed


def narrow_codes(d: Draw) -> tuple:
    wide = d.format()
    return d.codes(wide, d.shape(d.between(1, 4))), (drop := d.between(1, 6)), max(2, wide.bits - drop), wide.signed


def _operand(d: Draw, shape: list[int], reduced: int, few: bool = False) -> tuple:
    """(codes, shift, bits, signed, max_shift); a shift lies along the axis `reduced`, in one case of three.

    few: as kernels for few bits want it: 2 to 5 of them, small shifts, channels_last
    """
    fmt = IntFormat(d.between(2, 5), d.chance(0.6)) if few else d.format()
    shift, most = None, 0
    if d.chance(0.35):
        most = d.of((1, 2) if few else (1, 2, 3, 4, 8, 11, 15))
        there = d.of((most, most, most // 2, 0))
        shift = d.exponents([n if i == reduced % len(shape) else 1 for i, n in enumerate(shape)], there)
    codes = d.codes(fmt, shape, layout=not few)
    return codes.contiguous(memory_format=torch.channels_last) if few else codes, shift, fmt.bits, fmt.signed, most


def int_matmul(d: Draw) -> tuple:
    lead = [d.between(0, 3) if d.chance(0.1) else d.between(1, 3) for _ in range(d.of((0, 0, 0, 1, 2)))]
    m, k, n = (d.size() for _ in range(3))
    if d.chance(0.15):
        k, m, n = d.of((130_000, 133_145, 66_312, 3_000)), min(m, 3), min(n, 5)
        lead = []
    return *_operand(d, [*lead, m, k], -1), *_operand(d, [*lead, k, n], -2)


def scaled_matmul(d: Draw) -> tuple:
    args = int_matmul(d)
    (*lead, m, _), n = args[0].shape, args[5].shape[-1]

    def scale(*shape: int) -> Tensor:
        leads = d.of((lead, [1] * len(lead)))
        return d.laid_out(d.floats([*leads, *(d.of((n, 1)) for n in shape)], positive=True))

    return *args, scale(m, 1), scale(1, n), d.laid_out(d.floats([n])) if d.chance(0.5) else None


def scaled_matmul_packed(d: Draw) -> tuple:
    return packed(scaled_matmul(d))


def channel_sums(d: Draw) -> tuple:
    fmt = d.format()
    return d.codes(fmt, d.shape(d.between(2, 5))), fmt.bits, fmt.signed


def _window(d: Draw) -> tuple:
    """(few, x's shape, w's shape, g's shape, stride, padding, dilation, groups) of a convolution that has an output.

    few: large and 3x3, with the operands for which there are kernels of their own
    """
    if d.chance(0.1):
        n, c, o, (h, w) = d.between(2, 3), d.of((64, 80, 96)), d.of((63, 64, 70, 96)), (d.between(30, 36) for _ in "hw")
        return True, [n, c, h, w], [o, c, 3, 3], [n, o, h, w], [1, 1], [1, 1], [1, 1], 1
    while True:
        kind = d.random.random()
        if kind < 0.2:  # depthwise
            groups = d.size(40)
            c, o = groups, groups * d.of((1, 1, 2))
        elif kind < 0.4:
            groups = d.between(2, 4)
            c, o = groups * d.size(20), groups * d.size(20)
        else:
            groups, c, o = 1, d.size(40), d.size(40)
        n, r, s = d.between(0, 3) if d.chance(0.05) else d.between(1, 3), d.between(1, 5), d.between(1, 5)
        stride, dilation = [d.of((1, 1, 2, 3)) for _ in "hw"], [d.of((1, 1, 2, 3)) for _ in "hw"]
        padding, (h, w) = [d.between(0, 4) for _ in "hw"], (d.between(1, 17) for _ in "hw")
        spatial = [
            (size + 2 * padding[i] - dilation[i] * (taps - 1) - 1) // stride[i] + 1
            for i, (size, taps) in enumerate(((h, r), (w, s)))
        ]
        if min(spatial) > 0 and min(c, o, groups) > 0 and c * o // groups * r * s < MAX_WEIGHTS:
            return False, [n, c, h, w], [o, c // groups, r, s], [n, o, *spatial], stride, padding, dilation, groups


MAX_WEIGHTS = 1 << 14


def _scale(d: Draw, *sizes: int) -> Tensor:
    return d.laid_out(d.floats([*(d.of((n, 1)) for n in sizes), *[1] * (4 - len(sizes))], positive=True))


def scaled_conv2d(d: Draw) -> tuple:
    few, x, w, g, *window = _window(d)
    bias = d.laid_out(d.floats([w[0]])) if d.chance(0.5) else None
    return *_operand(d, x, 1, few), *_operand(d, w, 1, few), _scale(d, *g[:2]), bias, *window


def scaled_conv2d_grad_input(d: Draw) -> tuple:
    few, x, w, g, *window = _window(d)
    return *_operand(d, g, 1, few), *_operand(d, w, 0, few), _scale(d, *x[:2]), x, *window


def scaled_conv2d_grad_weight(d: Draw) -> tuple:
    few, x, w, g, *window = _window(d)
    return *_operand(d, g, 0, few), *_operand(d, x, 0, few), _scale(d, *w[:2]), w, *window


def _norm(d: Draw) -> tuple[list[int], list[int], list[int]]:
    """(shape, the axes of a statistic, the axes of a parameter's sum): batch norms, layer norms, any axes."""
    shape = d.shape(d.between(2, 5))
    rank = len(shape)
    kind = d.random.random()
    if kind < 0.45:
        dims = [0, *range(2, rank)]
        return shape, dims, dims
    if kind < 0.8:
        first = d.between(1, rank - 1)
        return shape, list(range(first, rank)), list(range(first))
    dims = sorted(d.random.sample(range(rank), d.between(1, rank)))
    return shape, dims, d.of((dims, [i for i in range(rank) if i not in dims] or dims))


def _kept(shape: list[int], dims: list[int]) -> list[int]:
    return [1 if i in dims else n for i, n in enumerate(shape)]


def norm_stats(d: Draw) -> tuple:
    shape, dims, _ = _norm(d)
    return d.codes(d.format(), shape), dims, d.chance(0.5)


def norm_apply(d: Draw) -> tuple:
    shape, dims, param_dims = _norm(d)
    q = d.codes(d.format(), shape)
    centred = d.chance(0.8)
    total = q.long().sum(dims, keepdim=True) * centred
    n = math.prod(shape[i] for i in dims) if centred else 1
    factor = d.floats(_kept(shape, dims), positive=True) * d.of((1.0, 100.0 / max(n, 1), 2.0**16 / max(n, 1)))
    gamma = d.codes(S8, d.of((_kept(shape, param_dims), [1] * len(shape))))
    scale, beta = (d.laid_out(d.floats(_kept(shape, param_dims))) for _ in range(2))
    return q, total, factor, n, d.between(2, 8), gamma, scale, beta


def norm_grad_stats(d: Draw) -> tuple:
    shape, dims, param_dims = _norm(d)
    gamma = d.codes(S8, d.of((_kept(shape, param_dims), [1] * len(shape))))
    return d.codes(d.format(True), shape), d.codes(d.format(True), shape), gamma, dims, param_dims


def norm_grad_apply(d: Draw) -> tuple:
    g, k, gamma, dims, _ = norm_grad_stats(d)
    return g, k, gamma, *(d.laid_out(d.floats(_kept(list(g.shape), dims))) for _ in range(4)), d.chance(0.5)


def _sums(d: Draw) -> Tensor:
    """int32 of 2 axes or more, |x| <= 2^30, tokens of any size."""
    shape = d.shape(d.between(2, 4))
    wide = (d.floats(shape, finite=True).clamp(-1, 1) * 2**30).to(torch.int32)
    return wide >> d.exponents([1 if i == 1 else n for i, n in enumerate(shape)], d.of((0, 3, 28))).to(torch.int32)


def int_token_shifts(d: Draw) -> tuple:
    fmt = d.format()
    return d.laid_out(_sums(d)), fmt.bits, fmt.signed


def int_quantize_tokens(d: Draw) -> tuple:
    x, fmt = _sums(d), d.format()
    needed, _ = ops.int_token_shifts(x, fmt.bits, fmt.signed)
    most = int(needed.max()) if needed.numel() else 0
    base = torch.full([1] * x.ndim, max(most - d.of((0, 0, 1, 3, 30)), 0), dtype=torch.int32)
    stream = torch.tensor(d.between(-(2**63), 2**63 - 1)) if d.chance(0.5) else None
    return d.laid_out(x), d.laid_out(needed), base, stream, fmt.bits, fmt.signed, d.between(0, 8 - fmt.bits)


GENERATORS: dict[str, Callable[[Draw], tuple]] = {
    f.__name__: f
    for f in (
        *(amax, quantize, pack_codes, unpack_codes, narrow_codes),
        *(int_matmul, scaled_matmul, scaled_matmul_packed, channel_sums),
        *(scaled_conv2d, scaled_conv2d_grad_input, scaled_conv2d_grad_weight),
        *(norm_stats, norm_apply, norm_grad_stats, norm_grad_apply),
        *(int_token_shifts, int_quantize_tokens),
    )
}
GENERATORS["norm_stats_uncentred"] = norm_stats
GENERATORS["scaled_conv2d_amax"] = scaled_conv2d


def arguments(op: str, d: Draw) -> tuple:
    """Arguments of `op` for this draw, in bfloat16 now and then where it takes that."""
    change = CHANGES[op] if op in CHANGES and d.chance(0.3) else tuple
    if op in GENERATORS:
        return change(GENERATORS[op](d))
    call = change(d.of(CALLS[op](d.between(1, 6))))
    move = d.of((d.offset, d.offset, d.laid_out))  # most kernels want operands that lie alike
    return tuple(move(a) if isinstance(a, Tensor) and d.chance(0.5) else a for a in call)
