"""What the wrappers of the C++ kernels share: how a tensor lies in memory, and the record of what ran."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ran: dict[str, str] = {}
"""op -> the kernel that its last call ran."""

WHOLE = -1
"""As in ops: an axis that stands for all of them together."""


def call(op: str, function: Callable, *arguments) -> bool:
    """Call an exported kernel on torch's number of threads, and note it in `ran`; False where it does not cover that."""
    name = function(*arguments, torch.get_num_threads())
    if name is None:
        return False
    ran[op] = name.decode()
    return True


def dense_float32(x: Tensor) -> Tensor | None:
    """x as float32 in one dense block of memory, in its own order of dimensions; None off the CPU."""
    if x.device.type != "cpu" or not x.dtype.is_floating_point:
        return None
    return dense(x if x.dtype == torch.float32 else x.to(torch.float32))


def dense(x: Tensor) -> Tensor:
    """x, or a copy with the strides of empty_like where x has holes or overlaps."""
    return x if is_dense(x) else torch.empty_like(x).copy_(x)


def is_dense(x: Tensor) -> bool:
    """Is every element of one block of memory an element of x, once?"""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(x.shape, x.stride()) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def around(x: Tensor, axis: int) -> tuple[int, int, int]:
    """(outer, channels, inner) of a dense x in memory order, where channels is `axis` (WHOLE: one channel)."""
    n = x.numel()
    if axis == WHOLE or n == 0 or x.shape[axis] == 1:
        return 1, 1, n
    channels, inner = x.shape[axis], x.stride(axis)
    return n // (channels * inner), channels, inner
