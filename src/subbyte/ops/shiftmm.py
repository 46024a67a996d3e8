"""ShiftMM in its four equal forms, on plain integers: which one a kernel takes is a matter of speed alone.

acc[m,n] = sum_k a[m,k] b[k,n] 2^left[k], where left[k] >= 0 is the group's left shift, E - e(k).

    folded        the operand of one side is shifted: it needs b + E bits
    folded_both   part of the shift goes onto each side, so that both stay in int8
    horner        k in the order of groups, coarsest scale first; the accumulator doubles at each boundary
    split         one accumulator for each set of groups that folds, added at the end

ops.matmul's reference is `folded`; the tests hold all four to Python's integers, and kernels to ops.matmul.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics import IntFormat

INT8_BITS = 8


def folded(a: Tensor, b: Tensor, left: Tensor) -> Tensor:
    """(a << left) b. a (M, K), b (K, N), left (K), any integer dtypes -> int64 (M, N)."""
    return _product(a.long() << left.long(), b.long())


def folded_both(a: Tensor, b: Tensor, left: Tensor, a_room: int, b_room: int) -> Tensor:
    """(a << min(left, a_room)) (b << rest): both operands stay in int8 while left <= a_room + b_room."""
    if left.numel() and int(left.max()) > a_room + b_room:
        raise ValueError(f"a shift of {int(left.max())} does not fold into {a_room} + {b_room} spare bits")
    on_a = left.long().clamp(max=a_room)
    return _product(a.long() << on_a, b.long() << (left.long() - on_a)[:, None])


def horner(a: Tensor, b: Tensor, left: Tensor) -> Tensor:
    """acc = (...((acc_0 << d_1) + acc_1) << d_2 ...): one shift of the accumulator for each boundary between groups."""
    acc = torch.zeros(a.shape[0], b.shape[1], dtype=torch.int64)
    values = sorted({int(v) for v in left}, reverse=True)
    for value, lower in itertools.pairwise([*values, 0]):
        ks = (left == value).nonzero().flatten()
        acc = (acc + _product(a[:, ks].long(), b[ks].long())) << (value - lower)
    return acc


def split(a: Tensor, b: Tensor, left: Tensor, a_room: int, b_room: int) -> Tensor:
    """sum over sets of groups that fold together of (their folded product << what they have in common)."""
    room = a_room + b_room
    acc = torch.zeros(a.shape[0], b.shape[1], dtype=torch.int64)
    for base in range(0, int(left.max()) + 1 if left.numel() else 0, room + 1):
        ks = ((left >= base) & (left <= base + room)).nonzero().flatten()
        acc += folded_both(a[:, ks], b[ks], left[ks] - base, a_room, b_room) << base
    return acc


@dataclass(frozen=True)
class FoldPlan:
    """How a largest left shift spreads over two int8 operands: bits on a, on b, and the rest for Horner or split."""

    on_a: int
    on_b: int
    rest: int


def fold_plan(a: IntFormat, b: IntFormat, shift: int) -> FoldPlan:
    """Fold onto a first, then b: what a packing pass does for nothing.

    >>> fold_plan(IntFormat(4), IntFormat(4), 8)       # 9 consecutive groups of 4 bits
    FoldPlan(on_a=4, on_b=4, rest=0)
    >>> fold_plan(IntFormat(6), IntFormat(6), 4)       # 5 of 6 bits
    FoldPlan(on_a=2, on_b=2, rest=0)
    >>> fold_plan(IntFormat(8), IntFormat(8), 3)       # 8 bits never fold
    FoldPlan(on_a=0, on_b=0, rest=3)
    """
    on_a = min(shift, INT8_BITS - a.bits)
    on_b = min(shift - on_a, INT8_BITS - b.bits)
    return FoldPlan(on_a, on_b, shift - on_a - on_b)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b
