"""The passes between the products of a fused chain conv - batch norm - (add) - ReLU - conv: codes in, codes out.

Each op equals, bit for bit, a sequence of other ops and torch's ReLU and addition, named in its docstring; its body IS
that sequence. What it saves is memory traffic: nothing between the first and the last step is written out.

    forward    q (codes of the norm's input) -> norm_relu_codes -> codes of the next product's input
                                              -> norm_relu       -> floats, where the chain ends
    backward   g -> relu_grad (range) -> relu_grad_quantize (codes) -> norm_grad_sums -> norm_grad_codes -> codes of the
               gradient that the product's backward takes

The channel is axis 1 of every tensor here. "Packed" is pack_codes of the codes in their memory order; a mask is packed
with 1 bit: 1 where ReLU passes its gradient on (where its output is not <= 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import IntFormat, packed_bytes
from ..qtensor import is_dense
from .dispatch import op, registered
from .exact import float_dtype, kept
from .quantize import WHOLE
from .tokens import places_bytes

MASK_BITS = 1


def in_memory_order(t: Tensor) -> Tensor:
    """The elements of a dense tensor as one axis, in the order in which they lie."""
    t = t if is_dense(t) else t.contiguous()
    return t.as_strided((t.numel(),), (1,))


def _reference(name: str, *args):
    return registered[name](*args)


def _packed(codes: Tensor, bits: int) -> Tensor:
    flat = in_memory_order(codes)
    return _reference("pack_codes", flat, bits) if bits > MASK_BITS else pack_mask(flat)


def pack_mask(flat: Tensor) -> Tensor:
    n = flat.numel()
    bits = flat.new_zeros(-(-n // 8) * 8, dtype=torch.int32)
    bits[:n] = flat
    return (bits.view(-1, 8) << torch.arange(8, device=flat.device)).sum(1).to(torch.uint8)


def _unpacked(packed: Tensor, bits: int, like: Tensor) -> Tensor:
    flat = _reference("unpack_codes", packed, like.numel(), bits, True)
    return flat.as_strided(like.shape, like.stride())


def _passes(mask: Tensor, like: Tensor) -> Tensor:
    """The mask as booleans in the shape of `like`."""
    flat = (mask.unsqueeze(1) >> torch.arange(8, device=mask.device)).flatten()[: like.numel()] & 1
    return flat.bool().as_strided(like.shape, like.stride())


def masked(g: Tensor, mask: Tensor) -> Tensor:
    """g where a packed mask (empty: everywhere) passes, and 0 elsewhere."""
    return g if mask.numel() == 0 else torch.where(_passes(mask, g), g, torch.zeros_like(g))


def _bytes_of(t: Tensor, bits: int) -> Tensor:
    return t.new_empty(packed_bytes(t.numel(), bits), dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------------- forward

_NORM = (
    "Tensor q, Tensor total, Tensor factor, int n, int bits, Tensor q_gamma, Tensor scale, Tensor beta, int saved_bits"
)


def _saved_form(k: Tensor, bits: int, saved_bits: int) -> Tensor:
    if saved_bits < bits:
        k = _reference("narrow_codes", k, bits - saved_bits, saved_bits, True)
    return _packed(k, saved_bits)


def _norm_relu_fake(q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, other, relu, half=False):
    mask = _bytes_of(q, MASK_BITS) if relu else q.new_empty(0, dtype=torch.uint8)
    return (
        torch.empty_like(q, dtype=float_dtype(half)),
        q.new_empty([1] * q.ndim, dtype=torch.float32),
        _bytes_of(q, saved_bits),
        mask,
    )


@op(
    f"({_NORM}, Tensor? other, bool relu, bool half=False) -> (Tensor, Tensor, Tensor, Tensor)",
    _norm_relu_fake,
)
def norm_relu(
    q, total, factor, n: int, bits: int, q_gamma, scale, beta, saved_bits: int, other, relu: bool, half: bool = False
):
    """(z, r, saved, mask): y, k = norm_apply(q, ...), z = ReLU(y + other), r = amax(z, WHOLE).

    saved  k narrowed to saved_bits and packed
    other  float32 or bfloat16 of q's shape, or None: nothing is added. relu False: z = y + other, and an empty mask
    half   y, other and z are rounded to bfloat16
    """
    y, k = _reference("norm_apply", q, total, factor, n, bits, q_gamma, scale, beta)
    y = kept(y, half)
    if other is not None:
        y = y + kept(other, half)
    z = torch.empty_like(q, dtype=y.dtype).copy_(torch.relu(y) if relu else y)
    mask = _packed(~(z <= 0), MASK_BITS) if relu else q.new_empty(0, dtype=torch.uint8)
    return z, _reference("amax", z, WHOLE), _saved_form(k, bits, saved_bits), mask


def _norm_relu_codes_fake(q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, r, next_bits, next_signed, *_):
    return (
        torch.empty_like(q, dtype=IntFormat(next_bits, next_signed).dtype),
        _bytes_of(q, next_bits),
        _bytes_of(q, saved_bits),
        _bytes_of(q, MASK_BITS),
    )


@op(
    f"({_NORM}, Tensor r, int next_bits, bool next_signed, bool half=False) -> (Tensor, Tensor, Tensor, Tensor)",
    _norm_relu_codes_fake,
)
def norm_relu_codes(
    q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, r, next_bits: int, next_signed: bool, half=False
):
    """(codes, packed codes, saved, mask): quantize(ReLU(y), r, nearest) of y, k = norm_apply(q, ...); saved as above.

    r     float32, broadcastable to q: the range of ReLU(y), known from the extremes of q before any y is
    half  y is rounded to bfloat16
    """
    y, k = _reference("norm_apply", q, total, factor, n, bits, q_gamma, scale, beta)
    z = torch.relu(kept(y, half))
    codes = _reference("quantize", z, r, None, None, next_bits, next_signed)
    codes = torch.empty_like(q, dtype=codes.dtype).copy_(codes)
    mask = torch.empty_like(q, dtype=torch.bool).copy_(~(z <= 0))
    return codes, _packed(codes, next_bits), _saved_form(k, bits, saved_bits), _packed(mask, MASK_BITS)


def _norm_relu_tokens_fake(
    q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, r, next_bits, next_signed, top, half=False
):
    codes, packed, saved, mask = _norm_relu_codes_fake(
        q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, r, next_bits, next_signed
    )
    places = q.new_empty(places_bytes(q.shape, top), dtype=torch.uint8)
    return codes, packed, places, saved, mask


@op(
    f"({_NORM}, Tensor r, int next_bits, bool next_signed, int top, bool half=False)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _norm_relu_tokens_fake,
)
def norm_relu_tokens(
    q, total, factor, n, bits, q_gamma, scale, beta, saved_bits, r, next_bits, next_signed, top: int, half=False
):
    """(codes, packed codes, places, saved, mask): quantize_tokens(ReLU(y), r, nearest) and pack_tokens of these codes.

    y, k, saved, mask and half as above; r: one number, the range of ReLU(y)
    """
    y, k = _reference("norm_apply", q, total, factor, n, bits, q_gamma, scale, beta)
    z = torch.empty_like(q, dtype=float_dtype(half)).copy_(torch.relu(kept(y, half)))
    codes = _reference("quantize_tokens", z, r, None, None, next_bits, next_signed, top)
    packed, places = _reference("pack_tokens", codes, next_bits, top)
    return codes, packed, places, _saved_form(k, bits, saved_bits), _packed(~(z <= 0), MASK_BITS)


# ------------------------------------------------------------------------------------------------------ backward


def _relu_grad_fake(g, mask, keep):
    r = g.new_empty([n if i == 1 else 1 for i, n in enumerate(g.shape)], dtype=torch.float32)
    return r, torch.empty_like(g) if keep else g.new_empty(0)


@op("(Tensor g, Tensor mask, bool keep) -> (Tensor, Tensor)", _relu_grad_fake)
def relu_grad(g: Tensor, mask: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """(r, h): h = g where the mask passes and 0 elsewhere, r = amax(h, 1). keep False: h is empty.

    g     float32 or bfloat16, as h is then, dense; the mask (empty: all pass) follows its memory order
    """
    h = masked(g, mask)
    return _reference("amax", h, 1), torch.empty_like(g).copy_(h) if keep else g.new_empty(0)


@op(
    "(Tensor g, Tensor mask, Tensor r, Tensor stream, int bits) -> Tensor",
    lambda g, mask, r, stream, bits: torch.empty_like(g, dtype=torch.int8),
)
def relu_grad_quantize(g: Tensor, mask: Tensor, r: Tensor, stream: Tensor, bits: int) -> Tensor:
    """quantize(h, r, stochastic) of the same h, signed. r: float32, broadcastable to g."""
    return _reference("quantize", masked(g, mask), r, None, stream, bits, True)


def _grad_sums_fake(q_g, saved, saved_bits):
    shape = [3, *(n if i == 1 else 1 for i, n in enumerate(q_g.shape))]
    return tuple(q_g.new_empty(shape, dtype=torch.int64) for _ in range(3))


@op("(Tensor q_g, Tensor saved, int saved_bits) -> (Tensor, Tensor, Tensor)", _grad_sums_fake)
def norm_grad_sums(q_g: Tensor, saved: Tensor, saved_bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(sums, low, high) for each channel, int64 (3, 1, C, 1...); k = the saved codes of xhat.

    sums       sum q_g, sum q_g k, sum sign(k)
    low, high  the least and the greatest q_g where k < 0, k = 0, k > 0; 128 and -128 where there is none
    """
    k = _unpacked(saved, saved_bits, q_g).to(torch.int64)
    g, rest = q_g.to(torch.int64), [i for i in range(q_g.ndim) if i != 1]
    sums = torch.stack([t.sum(rest, keepdim=True) for t in (g, g * k, k.sign())])
    signs = [k < 0, k == 0, k > 0]
    low = torch.stack([torch.where(s, g, 128).amin(rest, keepdim=True) for s in signs])
    high = torch.stack([torch.where(s, g, -128).amax(rest, keepdim=True) for s in signs])
    return sums, low, high


_NORM_GRAD = "Tensor q_g, Tensor saved, int saved_bits, Tensor q_gamma, Tensor a, Tensor u, Tensor v, Tensor t"


def _norm_gradient(q_g, saved, saved_bits, *operands, half: bool) -> Tensor:
    return kept(_reference("norm_grad_apply", q_g, _unpacked(saved, saved_bits, q_g), *operands, False), half)


@op(
    f"({_NORM_GRAD}, bool half=False) -> Tensor",
    lambda q_g, *_: q_g.new_empty([len(q_g), *[1] * (q_g.ndim - 1)], dtype=torch.float32),
)
def norm_grad_amax(q_g, saved, saved_bits: int, q_gamma, a, u, v, t, half: bool = False) -> Tensor:
    """amax(dx, 0), the range of each sample, of dx = norm_grad_apply(q_g, k, q_gamma, a, u, v, t), L1.

    half  dx is rounded to bfloat16
    """
    return _reference("amax", _norm_gradient(q_g, saved, saved_bits, q_gamma, a, u, v, t, half=half), 0)


@op(
    f"({_NORM_GRAD}, Tensor r, Tensor? shift, Tensor? stream, int bits, bool half=False) -> Tensor",
    lambda q_g, *_: torch.empty_like(q_g),
)
def norm_grad_codes(
    q_g, saved, saved_bits: int, q_gamma, a, u, v, t, r, shift, stream, bits: int, half: bool = False
) -> Tensor:
    """quantize(dx, r, shift, stream, bits, signed) of the same dx; shift: along axis 0, or along axis 1."""
    dx = _norm_gradient(q_g, saved, saved_bits, q_gamma, a, u, v, t, half=half)
    return _reference("quantize", dx, r, shift, stream, bits, True)


@op(
    f"({_NORM_GRAD}, Tensor r, Tensor? stream, int bits, int top, bool half=False) -> Tensor",
    lambda q_g, *_: torch.empty_like(q_g),
)
def norm_grad_tokens(
    q_g, saved, saved_bits: int, q_gamma, a, u, v, t, r, stream, bits: int, top: int, half: bool = False
) -> Tensor:
    """quantize_tokens(dx, r, stream, bits, signed, top) of the same dx."""
    dx = _norm_gradient(q_g, saved, saved_bits, q_gamma, a, u, v, t, half=half)
    return _reference("quantize_tokens", dx, r, None, stream, bits, True, top)
