"""What the wrappers of the C++ kernels share: how a tensor lies in memory, and the record of what ran."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..qtensor import is_dense

CPU = torch.device("cpu")

ran: dict[str, str] = {}
"""op -> the kernel that its last call ran."""


def call(op: str, function: Callable, *arguments) -> bool:
    """Call an exported kernel on torch's number of threads and note it in `ran`; False where it does not cover this."""
    name = function(*arguments, torch.get_num_threads())
    if name is None:
        return False
    ran[op] = name.decode()
    return True


def are(dtypes: torch.dtype | tuple[torch.dtype, ...], *tensors: Tensor) -> bool:
    """Are these on the CPU, and of this dtype, or of one of these?"""
    allowed = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    for t in tensors:  # noqa: SIM110 - a generator takes twice as long, a thousand times in a step of a network
        if t.dtype not in allowed or not t.is_cpu:
            return False
    return True


def new(
    size: int | Sequence[int],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Memory that a kernel fills, of the type it writes, whatever torch's default type and device are."""
    return torch.empty(size, dtype=dtype, device=CPU, memory_format=memory_format)


FLOATS = (torch.float32, torch.bfloat16)
"""What kernels read and write tensors of floats in, by `half`; any other type becomes float32 first."""


def dense_floats(x: Tensor) -> Tensor | None:
    """x in one dense block of memory, in its own order of dimensions, as one of FLOATS; None off the CPU."""
    if not x.is_cpu or not x.dtype.is_floating_point:
        return None
    return dense(x if x.dtype in FLOATS else x.to(torch.float32))


def floats(x: Tensor) -> tuple[int, bool]:
    """(address, is it bfloat16?): a tensor of FLOATS as an exported kernel takes it."""
    return x.data_ptr(), x.dtype is torch.bfloat16


def dense(x: Tensor) -> Tensor:
    """x, or a copy with the strides of empty_like where x has holes or overlaps."""
    return x if is_dense(x) else torch.empty_like(x).copy_(x)


def geometry(x: Tensor, v: Tensor) -> tuple[int, int] | None:
    """(channels, inner) such that element i of the dense x, in memory order, meets value (i // inner) % channels of v.

    v's values are taken in row-major order. None where v does not broadcast to x (the reference then says so), and
    where the axes along which it varies do not follow each other in x's memory.
    """
    return _geometry(x.shape, x.stride(), v.shape)


def axes(x: Tensor, kept: list[int]) -> tuple[int, int] | None:
    """The same for an operand that varies along the axes `kept`."""
    return _axes(x.shape, x.stride(), tuple(kept))


@functools.lru_cache(4096)  # a network has few shapes, and a loop in Python takes longer than a small kernel
def _geometry(shape: tuple[int, ...], strides: tuple[int, ...], operand: tuple[int, ...]) -> tuple[int, int] | None:
    first = len(shape) - len(operand)
    if first < 0 or any(n not in (1, m) for n, m in zip(operand, shape[first:])):
        return None
    return _axes(shape, strides, tuple(i for i, n in enumerate(operand, first) if n != 1))


@functools.lru_cache(4096)
def _axes(shape: tuple[int, ...], strides: tuple[int, ...], kept: tuple[int, ...]) -> tuple[int, int] | None:
    n = math.prod(shape)
    if n == 0:
        return 1, 1
    channels, inner = 1, n
    for axis in reversed(kept):
        size, stride = shape[axis], strides[axis]
        if size == 1:
            continue
        if channels == 1:
            inner = stride
        elif stride != channels * inner:
            return None
        channels *= size
    return channels, inner


def transposition(x: Tensor) -> tuple[int, int, int] | None:
    """How the memory order of a dense x differs from its logical order, (batch, channels, pixels).

    (1, n, 1) where it does not; otherwise logic is (batch, channels, pixels) and memory (batch, pixels, channels), as
    in channels_last and in a transposed matrix. None for any other order.
    """
    n = x.numel()
    if x.is_contiguous():
        return 1, n, 1
    sizes = [(stride, size) for size, stride in zip(x.shape, x.stride()) if size != 1]
    batch = 1
    while sizes and sizes[0][0] == max(sizes)[0]:  # leading axes that lead in memory too
        batch *= sizes.pop(0)[1]
    first = sizes.index(max(sizes))  # where the axes begin that come first in memory
    ordered = sizes[first:] + sizes[:first]
    if ordered != sorted(sizes, reverse=True):
        return None
    pixels = math.prod(size for _, size in sizes[first:])
    return batch, n // (batch * pixels), pixels
