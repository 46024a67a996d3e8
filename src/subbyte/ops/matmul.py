"""matmul: C = A B on codes, with the shift of ShiftQuant inside the sum.    A (..., M, K), B (..., K, N)

What a scale may do is the contract of every product: it is constant along the reduced axis K, or differs there by
powers of two only (the shift). Everything else is an outer factor and is applied once to each output.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from ..numerics import IntFormat, accumulator_bits, product_bound
from ..qtensor import PackedQTensor, QTensor
from . import exact
from .dispatch import op, registered
from .quantize import unpack, unpack_codes

B = TypeVar("B", QTensor, PackedQTensor)


class ContractError(ValueError):
    """An operand's scale varies along the reduced axis by more than a shift, so that no integer product exists."""


_OPERANDS = (
    "Tensor a, Tensor? a_shift, int a_bits, bool a_signed, int a_max_shift, "
    "Tensor b, Tensor? b_shift, int b_bits, bool b_signed, int b_max_shift"
)


def sum_dtype(a_bits, a_signed, a_max_shift, b_bits, b_signed, b_max_shift, length: int) -> torch.dtype:
    """int32 where it holds every sum of `length` products of these codes, otherwise int64."""
    fmt_a, fmt_b = IntFormat(a_bits, a_signed), IntFormat(b_bits, b_signed)
    fits = accumulator_bits(fmt_a, fmt_b, length, a_max_shift + b_max_shift) <= 32
    return torch.int32 if fits else torch.int64


def _int_matmul_fake(a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift):
    dtype = sum_dtype(a_bits, a_signed, a_max_shift, b_bits, b_signed, b_max_shift, a.shape[-1])
    return a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=dtype)


@op(f"({_OPERANDS}) -> Tensor", _int_matmul_fake)
def int_matmul(a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift) -> Tensor:
    """acc[m,n] = sum_k a[m,k] b[k,n] 2^(E_a - e_a[k] + E_b - e_b[k]), exact: int32, or int64 if over 32 bits."""
    dtype = sum_dtype(a_bits, a_signed, a_max_shift, b_bits, b_signed, b_max_shift, a.shape[-1])
    fmt_a, fmt_b = IntFormat(a_bits, a_signed), IntFormat(b_bits, b_signed)
    return _accumulate(a, a_shift, fmt_a, a_max_shift, b, b_shift, fmt_b, b_max_shift).to(dtype)


def _matmul_fake(
    a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift, a_scale, b_scale, bias, half=0
):
    return a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=exact.float_dtype(half))


_SCALES = "Tensor a_scale, Tensor b_scale, Tensor? bias, bool half=False"


@op(f"({_OPERANDS}, {_SCALES}) -> Tensor", _matmul_fake)
def scaled_matmul(
    a, a_shift, a_bits, a_signed, a_max_shift, b, b_shift, b_bits, b_signed, b_max_shift, a_scale, b_scale, bias, half=0
) -> Tensor:
    """float32(acc) * (s_a s_b), then + bias -> float32 (..., M, N); acc of int_matmul, its unit 2^-(E_a + E_b) in s_a.

    a_scale (..., M or 1, 1), b_scale (..., 1, N or 1), bias (N) or None. half: rounded to bfloat16 at the end.
    """
    fmt_a, fmt_b = IntFormat(a_bits, a_signed), IntFormat(b_bits, b_signed)
    acc = _accumulate(a, a_shift, fmt_a, a_max_shift, b, b_shift, fmt_b, b_max_shift)
    return exact.epilogue(acc, a_scale * b_scale, bias, half)


def _channel_sums_fake(codes, bits, signed):
    return codes.new_empty(codes.shape[1], dtype=torch.int64)


@op("(Tensor codes, int bits, bool signed) -> Tensor", _channel_sums_fake)
def channel_sums(codes: Tensor, bits: int, signed: bool) -> Tensor:
    """The sum of codes (N, C, ...) over all axes but 1, int64 (C): a product with ones."""
    return codes.sum([i for i in range(codes.ndim) if i != 1], dtype=torch.int64)


_PACKED = (
    "Tensor a, Tensor? a_shift, int a_bits, bool a_signed, int a_max_shift, "
    "Tensor packed, int[] size, int[] stride, Tensor? b_shift, int b_bits, bool b_signed, int b_max_shift"
)


def _matmul_packed_fake(a, a_shift, a_bits, a_signed, a_max_shift, packed, size, *rest):
    return a.new_empty((*a.shape[:-1], size[-1]), dtype=exact.float_dtype(rest[8:] == (True,)))


@op(f"({_PACKED}, {_SCALES}) -> Tensor", _matmul_packed_fake)
def scaled_matmul_packed(
    a, a_shift, a_bits, a_signed, a_max_shift, packed, size, stride, b_shift, b_bits, b_signed, b_max_shift, *scales
) -> Tensor:
    """scaled_matmul of a b that is packed, as backward finds what forward saved: codes (packed_bytes) uint8.

    size, stride: of b (..., K, N) as it was in codes, dense in memory.
    """
    codes = unpack_codes(packed, math.prod(size), b_bits, b_signed).as_strided(size, stride)
    b = (codes, b_shift, b_bits, b_signed, b_max_shift)
    return registered["scaled_matmul"](a, a_shift, a_bits, a_signed, a_max_shift, *b, *scales)


def _accumulate(a, a_shift, fmt_a, a_max_shift, b, b_shift, fmt_b, b_max_shift) -> Tensor:
    """The sums themselves: in one float32 product, in one float64 product, or in float64 chunks added as int64."""
    k, unit = a.shape[-1], product_bound(fmt_a.qmax, fmt_b.qmax, 1, a_max_shift + b_max_shift)
    dtype = exact.dtype_for(k * unit)
    wide_a, wide_b = exact.shifted(a, a_shift, a_max_shift, dtype), exact.shifted(b, b_shift, b_max_shift, dtype)
    return exact.chunked_sum(k, unit, exact.FLOAT64_LIMIT, lambda ks: wide_a[..., ks] @ wide_b[..., ks, :])


def _operand(q: QTensor) -> tuple:
    return q.codes, q.shift, q.format.bits, q.format.signed, q.max_shift


def _flatten(a: QTensor, b: QTensor) -> tuple:
    return *_operand(a), *_operand(b)


def _scales(a: QTensor, b: QTensor | PackedQTensor) -> tuple[Tensor, Tensor]:
    shift = a.max_shift + b.max_shift
    return a.scale * 2.0**-shift if shift else a.scale, b.scale


def check_matmul(a: QTensor, b: B) -> tuple[QTensor, B]:
    """Shapes and the contract, checked once before any backend is asked; shifts on outer axes become scales."""
    left, right = a.shape, b.shape
    if len(left) != len(right) or len(left) < 2:
        raise ValueError(f"matmul takes matrices of equal rank >= 2, not {tuple(left)} and {tuple(right)}")
    if left[-1] != right[-2] or (len(left) > 2 and left[:-2] != right[:-2]):
        raise ValueError(f"matmul cannot contract (..., M, K) {tuple(left)} with (..., K, N) {tuple(right)}")
    require_constant(a, -1, "left operand")
    require_constant(b, -2, "right operand")
    return a.fold_shift(-1), b.fold_shift(-2)


def require_constant(q: QTensor | PackedQTensor, axis: int, who: str) -> None:
    """Raise ContractError when q's scale differs along `axis`, the one that the product reduces."""
    if q.varies_along(axis)[0]:
        raise ContractError(
            f"the scale {tuple(q.scale.shape)} of the {who} {tuple(q.shape)} varies along its reduced axis {axis}; "
            "an integer product needs one scale there, or powers of two (ShiftQuant)"
        )


def check_bias(bias: Tensor | None, outputs: int) -> None:
    """ValueError unless there is one number for each output: a kernel reads that many, it does not broadcast."""
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"a bias for {outputs} outputs has shape ({outputs},), not {tuple(bias.shape)}")


def matmul(a: QTensor, b: QTensor | PackedQTensor, bias: Tensor | None = None, half: bool = False) -> Tensor:
    """C = A B + bias in integers, scaled to float32. A (..., M, K), B (..., K, N), bias (N). ContractError, ValueError.

    half: rounded to bfloat16 at the end. A packed B is unpacked where the kernel needs it, a few rows at a time.

    >>> one = torch.ones(1, 1)
    >>> a = QTensor(torch.tensor([[1, 2]], dtype=torch.int8), one * 0.5, IntFormat(4))
    >>> b = QTensor(torch.tensor([[3], [-4]], dtype=torch.int8), one, IntFormat(4))
    >>> matmul(a, b).item()
    -2.5
    """
    check_bias(bias, b.shape[-1])
    if isinstance(b, PackedQTensor) and b.places is not None:  # no kernel reads codes without their exponents
        b = unpack(b)
    if isinstance(b, PackedQTensor):
        a, b = check_matmul(a, b)
        right = b.packed, b.shape, b.stride, b.shift, b.format.bits, b.format.signed, b.max_shift
        return scaled_matmul_packed(*_operand(a), *right, *_scales(a, b), bias, half)
    a, b = check_matmul(a, b)
    return scaled_matmul(*_flatten(a, b), *_scales(a, b), bias, half)


def matmul_accumulators(a: QTensor, b: QTensor) -> Tensor:
    """The integers of matmul before any scale: A B 2^(E_a + E_b) on codes. int32, or int64 if that could overflow.

    A shift along an outer axis (or a single one) belongs to the scale and is in none of them: its E counts as 0.
    """
    a, b = check_matmul(a, b)
    return int_matmul(*_flatten(a, b))
