"""Arguments for every registered op, in the layouts that matter: what opcheck and the thread tests run over."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from chain_calls import CALLS as CHAIN_CALLS
from constants_calls import CALLS as CONSTANTS_CALLS
from integer_calls import CALLS as INTEGER_CALLS
from integer_token_calls import CALLS as INTEGER_TOKEN_CALLS
from linear_calls import CALLS as LINEAR_CALLS
from norm_layer_calls import CALLS as NORM_LAYER_CALLS
from subbyte import ops
from subbyte.numerics import IntFormat
from subbyte.ops import use_backend
from subbyte.qtensor import is_dense
from token_calls import CALLS as TOKEN_CALLS

LAST = torch.channels_last
S4, S8 = IntFormat(4), IntFormat(8)


def codes(fmt: IntFormat, *shape: int) -> Tensor:
    g = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randint(fmt.qmin, fmt.qmax + 1, shape, generator=g).to(fmt.dtype)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def exponents(*shape: int) -> Tensor:
    return (torch.arange(math.prod(shape)) % 3).to(torch.uint8).view(shape)


def amax(big: int) -> list[tuple]:
    x = floats(2, 3, 5 * big, 4 * big)
    return [(x, -1), (x, 1), (x.contiguous(memory_format=LAST), 1), (floats(7 * big), 0), (x[:0], 1), (x.mT.half(), 2)]


def quantize(big: int) -> list[tuple]:
    x, r, stream = floats(2, 3, 5 * big, 4 * big), torch.full((1, 3, 1, 1), 3.0), torch.tensor(5)
    e = exponents(1, 3, 1, 1)
    return [
        *[
            (x, r, None, None, 4, True),
            (x, r, e, stream, 4, True),
            (x.contiguous(memory_format=LAST), r, e, stream, 8, True),
        ],
        *[(x.abs(), r, None, stream, 8, False), (x.mT, r, None, None, 2, True), (x[:0], r, e, None, 4, True)],
        (floats(3, 8)[:, ::2], torch.ones(1, 1), None, stream, 4, True),
    ]


def pack_codes(big: int) -> list[tuple]:
    return [(codes(IntFormat(b), n * big), b) for b in (3, 4, 8) for n in (0, 5, 16)]


def unpack_codes(big: int) -> list[tuple]:
    packed = codes(IntFormat(8, False), 40 * big)
    return [
        (packed[: (n * big * b + 7) // 8], n * big, b, s) for b in (3, 4, 8) for n in (0, 5, 16) for s in (True, False)
    ]


def narrow_codes(big: int) -> list[tuple]:
    x = codes(IntFormat(8), 2 * 3 * 4 * 5 * big).view(2, 3, 4, 5 * big)
    return [(t, 2, 6, True) for t in (x, x.to(memory_format=torch.channels_last), x[:0])]


def operands(fa: IntFormat, a: Tensor, fb: IntFormat, b: Tensor, ea=None, eb=None) -> tuple:
    return a, ea, fa.bits, fa.signed, 2 if ea is not None else 0, b, eb, fb.bits, fb.signed, 2 if eb is not None else 0


def int_matmul(big: int) -> list[tuple]:
    m, k, n = 3 * big, 8 * big, 5 * big
    return [
        operands(S4, codes(S4, m, k), S4, codes(S4, k, n)),
        operands(S4, codes(S4, m, k), S8, codes(S8, n, k).T, exponents(1, k), exponents(k, 1)),
        operands(S8, codes(S8, 2, k, m).mT, S8, codes(S8, 2, k, n), exponents(1, 1, k)),
        operands(S8, codes(S8, 1, 1), S8, codes(S8, 1, n)),
        operands(S8, codes(S8, m, 0), S8, codes(S8, 0, n)),
        operands(S8, codes(S8, 1, 133_145), S8, codes(S8, 133_145, 2)),
    ]


def scaled_matmul(big: int) -> list[tuple]:
    calls = []
    for args in int_matmul(big):
        a, b = args[0], args[5]
        lead = [1] * (a.ndim - 2)
        rows, columns = torch.rand(*lead, a.shape[-2], 1) + 0.1, torch.rand(*lead, 1, b.shape[-1]) + 0.1
        calls += [(*args, rows, columns, floats(b.shape[-1])), (*args, torch.ones(*lead, 1, 1), columns, None)]
    return calls


def packed(args: tuple) -> tuple:
    """The arguments of scaled_matmul -> those of scaled_matmul_packed, b in its own order of memory."""
    b, bits = args[5], args[7]
    dense = b if is_dense(b) else b.contiguous()
    with use_backend("reference"):
        string = torch.ops.subbyte.pack_codes(dense.as_strided((b.numel(),), (1,)), bits)
    return *args[:5], string, list(b.shape), list(dense.stride()), *args[6:]


def scaled_matmul_packed(big: int) -> list[tuple]:
    return [packed(args) for args in scaled_matmul(big)]


def channel_sums(big: int) -> list[tuple]:
    g, u = codes(S8, 3, 5, 4 * big, 6), IntFormat(8, False)
    shapes = [g, g.contiguous(memory_format=LAST), g[:0], g[:, :, 1:, ::2], codes(S8, 40 * big, 7), codes(S8, 7, 40).T]
    return [(t, 8, True) for t in shapes] + [(codes(u, 9 * big, 6, 5), 8, False), (codes(S4, 1, 1), 4, True)]


_WINDOWS = [([1, 1], [1, 1], [1, 1], 1), ([2, 1], [0, 1], [1, 2], 2)]


def _convolutions(big: int):
    """(x, w, g, window) in contiguous and channels_last layouts, and with sizes of 1."""
    for stride, padding, dilation, groups in _WINDOWS:
        x, w = codes(S4, 2, 4 * big, 7, 9), codes(S4, 6 * big, 4 * big // groups, 3, 3)
        y = torch.conv2d(x.float(), w.float(), None, stride, padding, dilation, groups)
        g = codes(S4, *y.shape)
        window = (stride, padding, dilation, groups)
        yield x, w, g, window
        yield x.contiguous(memory_format=LAST), w, g.contiguous(memory_format=LAST), window
    window = _WINDOWS[0]
    yield codes(S4, 2, 1, 5, 5).contiguous(memory_format=LAST), codes(S4, 1, 1, 3, 3), codes(S4, 2, 1, 5, 5), window
    yield codes(S4, 2, 3, 1, 1), codes(S4, 4, 3, 3, 3), codes(S4, 2, 4, 1, 1), window
    yield codes(S4, 0, 3, 4, 4), codes(S4, 2, 3, 3, 3), codes(S4, 0, 2, 4, 4), window


def scaled_conv2d(big: int) -> list[tuple]:
    calls = []
    for x, w, g, window in _convolutions(big):
        scale = torch.rand(1, g.shape[1], 1, 1) + 0.1
        e = exponents(1, x.shape[1], 1, 1)
        calls.append((*operands(S4, x, S4, w, e), scale, floats(g.shape[1]), *window))
    return calls


def scaled_conv2d_grad_input(big: int) -> list[tuple]:
    calls = []
    for x, w, g, window in _convolutions(big):
        e = exponents(1, g.shape[1], 1, 1), exponents(w.shape[0], 1, 1, 1)
        calls.append((*operands(S4, g, S4, w, *e), torch.rand(1, x.shape[1], 1, 1), list(x.shape), *window))
    return calls


def scaled_conv2d_grad_input_plus(big: int) -> list[tuple]:
    calls = []
    for args in scaled_conv2d_grad_input(big):
        size, last = args[11], args[0].is_contiguous(memory_format=torch.channels_last)
        more = torch.randn(size, generator=torch.Generator().manual_seed(big))
        more = more.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        bits = torch.arange(-(-more.numel() // 8)).to(torch.uint8) * 37
        calls += [(*args, more, bits), (*args, more, bits[:0])]
    return calls


def scaled_conv2d_grad_weight(big: int) -> list[tuple]:
    return [
        (*operands(S4, g, S4, x), torch.rand(w.shape[0], w.shape[1], 1, 1), list(w.shape), *window)
        for x, w, g, window in _convolutions(big)
    ]


def int_conv2d(big: int) -> list[tuple]:
    wide = torch.full((1, 1, 40, 40), 255, dtype=torch.uint8), torch.full((1, 1, 40, 40), -127, dtype=torch.int8)
    return [
        *[(*args[:10], *args[12:]) for args in scaled_conv2d(big)],
        (*operands(IntFormat(8, False), wide[0], S8, wide[1]), [1, 1], [0, 0], [1, 1], 1),
        (*operands(S8, codes(S8, 2, 3, 70, 60), S8, codes(S8, 2, 3, 70, 60)), [1, 1], [3, 4], [1, 1], 1),
        (*operands(S8, codes(S8, 2, 4, 9, 9), S8, codes(S8, 4, 1, 3, 3)), [1, 1], [1, 1], [1, 1], 4),
    ]


def int_conv2d_grad_input(big: int) -> list[tuple]:
    return [(*args[:10], *args[11:]) for args in scaled_conv2d_grad_input(big)]


def int_conv2d_grad_weight(big: int) -> list[tuple]:
    g, x = codes(S8, 3, 2, 220, 210), codes(S8, 3, 3, 220, 210)  # 138,600 pixels: more than int32 holds
    return [
        *[(*args[:10], *args[11:]) for args in scaled_conv2d_grad_weight(big)],
        (*operands(S8, g, S8, x), [2, 3, 1, 1], [1, 1], [0, 0], [1, 1], 1),
    ]


def sums(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-(1 << 30), (1 << 30) + 1, shape, generator=g, dtype=torch.int64).to(torch.int32)


def int_amax(big: int) -> list[tuple]:
    x = sums(2, 3, 5 * big, 4 * big)
    return [(x, -1), (x, 1), (x.mT, 1), (sums(7 * big, 5), 1), (x[:0], 1), (x[:0], -1), (sums(6 * big), -1)]


def int_quantize(big: int) -> list[tuple]:
    x, one, stream = sums(2, 3, 5 * big, 4 * big), torch.full((1, 1, 1, 1), 24, dtype=torch.int32), torch.tensor(5)
    each = torch.tensor([0, 17, 30], dtype=torch.int32).view(1, 3, 1, 1)
    return [
        *[(x, one, None, 8, True), (x, each, None, 4, True), (x, each, stream, 4, True), (x, one, stream, 8, False)],
        *[(x.mT, each, stream, 8, True), (x[:0], each, None, 4, True)],
        *[(sums(7 * big, 3), each.view(1, 3), stream, 4, True), (sums(9 * big), one.view(1), stream, 2, True)],
    ]


def int_lookup(big: int) -> list[tuple]:
    table = sums(3, 256)
    s, u = codes(S8, 2, 3, 5 * big, 4 * big), codes(IntFormat(8, False), 2 * big, 3)
    return [(s, table), (u, table), (s.mT, (table >> 23).clamp(-128, 127).to(torch.int8)), (s[:0], table)]


def int_norm_grad(big: int) -> list[tuple]:
    calls = []
    for g in (codes(S8, 2, 3, 5 * big, 4 * big), codes(S8, 7 * big, 3), codes(S8, 0, 3)):
        u, v = sums(3) >> 5, sums(3) >> 6
        calls += [
            (g, -g.flip(0), u, v, torch.tensor([1 << 29, -(1 << 29), 12345]), torch.tensor(27, dtype=torch.int32), 8),
            (g, g, u >> 12, v >> 12, torch.tensor([1, 0, -7]), torch.tensor(0, dtype=torch.int32), 4),
            (g, g, u, v, torch.tensor([1 << 31, -(1 << 31), 1 << 30]), torch.tensor(32, dtype=torch.int32), 8),
            (g, g, u, v, torch.tensor([1 << 34, -(1 << 34), 1]), torch.tensor(37, dtype=torch.int32), 8),
        ]
    return calls


def int_add(big: int) -> list[tuple]:
    a, b = (t >> 6 for t in (sums(2, 3, 5 * big, 4 * big), sums(4 * big, 5 * big, 2, 3).permute(2, 3, 1, 0).clone()))
    right = {n: torch.tensor(n, dtype=torch.int32) for n in (-99, -5, -1, 0, 1, 7, 29, 30, 1000)}
    shifts = [(0, 0), (-5, 1), (7, -1), (-99, 30), (29, 1000), (1000, -99)]
    return [
        *[(a, right[n], 5, b, right[m], 4) for n, m in shifts],
        *[(a, right[n], 5, b[:1, :, :1, :1], right[m], 4) for n, m in shifts[1:4]],
        *[(a, right[0], -3, b.mT.contiguous().mT, right[7], 0), (a[:0], right[1], 2, b[:0], right[1], 2)],
    ]


def int_relu(big: int) -> list[tuple]:
    return [(x,) for x in (sums(2, 3, 5 * big, 4 * big), sums(7, 5).T, sums(11)[:0], sums(6 * big).clamp(-1, 1))]


def int_relu_grad(big: int) -> list[tuple]:
    return [(x.flip(-1), ops.int_relu(x)[1]) for (x,) in int_relu(big)]


def int_sgd(big: int) -> list[tuple]:
    g = torch.Generator().manual_seed(3)
    calls = []
    for shape in ((7 * big, 5), (3, 4, 3, 3), (1,)):
        w, grad = torch.randn(shape, generator=g), torch.randn(shape, generator=g) * 2.0**-9
        momentum = torch.randint(-(1 << 15) + 1, 1 << 15, shape, generator=g, dtype=torch.int16)
        if w.ndim == 4:
            w, grad = w.to(memory_format=torch.channels_last), grad.transpose(0, 1).contiguous().transpose(0, 1)
        e, empty = (torch.tensor(n, dtype=torch.int32) for n in (-21, -256))
        rest = torch.zeros_like(momentum), empty, torch.tensor(12)
        calls += [
            (w, grad, momentum, e, torch.tensor(11), 4, 230, 11, True),
            (w, grad, momentum, e, torch.tensor(11), 4, 230, None, False),
            *[(w, grad, *rest, -2, 0, 3, False), (w, grad * 0, *rest, 3, 230, None, True)],
            *[(w, grad, *rest, None, 230, 5, True), (w * 2.0**-120, grad * 2.0**100, *rest, 4, 255, 2, True)],
        ]
    return calls


def _norms(big: int):
    """(q, dims, param_dims): batch norm in two layouts, layer norm."""
    image = codes(S8, 2 * big, 3, 4, 5 * big)
    yield image, [0, 2, 3], [0, 2, 3]
    yield image.contiguous(memory_format=LAST), [0, 2, 3], [0, 2, 3]
    yield codes(S8, 3 * big, 8 * big), [1], [0]


def _per(q: Tensor, dims: list[int]) -> Tensor:
    return floats(*[1 if i in dims else n for i, n in enumerate(q.shape)])


def norm_stats(big: int) -> list[tuple]:
    return [(q, dims, l2) for q, dims, _ in _norms(big) for l2 in (False, True)]


def norm_apply(big: int) -> list[tuple]:
    calls = []
    for q, dims, param_dims in _norms(big):
        n = math.prod(q.shape[d] for d in dims)
        total = q.long().sum(dims, keepdim=True)
        gamma = (_per(q, param_dims) * 50).clamp(-127, 127).to(torch.int8)
        calls.append((q, total, _per(q, dims).abs() * 100 / n, n, 6, gamma, _per(q, param_dims), _per(q, param_dims)))
    return calls


def norm_grad_stats(big: int) -> list[tuple]:
    return [
        (q, -q, (_per(q, param_dims) * 50).clamp(-127, 127).to(torch.int8), dims, param_dims)
        for q, dims, param_dims in _norms(big)
    ]


def norm_grad_apply(big: int) -> list[tuple]:
    return [
        (q, -q, gamma, *(_per(q, dims) for _ in range(4)), l2)
        for (q, dims, _), (_, _, gamma, _, _) in zip(_norms(big), norm_grad_stats(big))
        for l2 in (False, True)
    ]


def scatter_sum(big: int) -> list[tuple]:
    rows, terms = 3 * big, 20 * big
    c, bags = codes(S8, terms, 4), torch.arange(terms) * 7 % (rows + 1) - 1
    each = (bags[:, None] + torch.arange(4)) % (rows + 1) - 1
    return [
        (c, bags[:, None], rows),
        (c, each, rows),
        (c.abs().to(torch.uint8), bags[:, None], rows),
        (c[:0], each[:0], 3),
    ]


CALLS: dict[str, Callable[[int], list[tuple]]] = {
    f.__name__: f
    for f in (
        *(amax, quantize, pack_codes, unpack_codes, narrow_codes),
        *(int_matmul, scaled_matmul, scaled_matmul_packed, channel_sums),
        *(scaled_conv2d, scaled_conv2d_grad_input, scaled_conv2d_grad_weight),
        *(int_conv2d, int_conv2d_grad_input, int_conv2d_grad_weight),
        *(int_amax, int_quantize, int_lookup, int_norm_grad, int_add),
        *(int_relu, int_relu_grad, int_sgd),
        *(norm_stats, norm_apply, norm_grad_stats, norm_grad_apply, scatter_sum),
    )
}
CALLS["norm_stats_uncentred"] = norm_stats
CALLS["scaled_conv2d_amax"] = scaled_conv2d

CALLS["scaled_conv2d_grad_input_plus"] = scaled_conv2d_grad_input_plus
CALLS.update(CHAIN_CALLS | CONSTANTS_CALLS | INTEGER_CALLS | INTEGER_TOKEN_CALLS)
CALLS.update(NORM_LAYER_CALLS | LINEAR_CALLS | TOKEN_CALLS)
"""op -> its argument lists; the number makes them larger, so that several threads have work."""
