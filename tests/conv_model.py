"""Convolutions and their gradients on int64 in numpy, by loops over the kernel's taps: any number of dimensions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from subbyte.numerics import IntFormat
from subbyte.ops import ConvParams
from subbyte.qtensor import QTensor


@dataclass(frozen=True)
class Case:
    """x (n, c, *size), w (o, c / groups, *kernel)."""

    n: int
    c: int
    o: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def params(self) -> ConvParams:
        return ConvParams(self.stride, self.padding, self.dilation, self.groups)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.n, self.c, *self.size)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.o, self.c // self.groups, *self.kernel)

    @property
    def g_shape(self) -> tuple[int, ...]:
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel)]
        free = [h + 2 * p - r for h, p, r in zip(self.size, self.padding, reach)]
        return (self.n, self.o, *(f // s + 1 for f, s in zip(free, self.stride)))

    def __str__(self) -> str:
        return (
            f"n{self.n}c{self.c}o{self.o}g{self.groups} {self.size} k{self.kernel} s{self.stride} p{self.padding}"
            f" d{self.dilation}"
        )


def codes(rng, fmt: IntFormat, shape, extremes: bool = False) -> torch.Tensor:
    pick = rng.choice([fmt.qmin, fmt.qmax], shape) if extremes else rng.integers(fmt.qmin, fmt.qmax + 1, shape)
    return torch.from_numpy(np.asarray(pick)).to(fmt.dtype)


def along(shape, *axes: int) -> list[int]:
    return [n if i in axes else 1 for i, n in enumerate(shape)]


def operand(rng, fmt: IntFormat, shape, scale_axes=(), shift_axis=None, top=4, extremes=False) -> QTensor:
    """Random codes, a random scale along `scale_axes`, random exponents 0..top along `shift_axis`."""
    scale = torch.from_numpy(rng.random(along(shape, *scale_axes), dtype=np.float32) + np.float32(0.01))
    c = codes(rng, fmt, shape, extremes)
    if shift_axis is None:
        return QTensor(c, scale, fmt)
    e = torch.from_numpy(rng.integers(0, top + 1, along(shape, shift_axis))).to(torch.uint8)
    return QTensor(c, scale, fmt, e, top)


def shifted(q: QTensor) -> np.ndarray:
    """codes << (E - e), int64."""
    left = 0 if q.shift is None else q.max_shift - q.shift.numpy().astype(np.int64)
    return q.codes.numpy().astype(np.int64) << left


def _taps(case: Case):
    """(kernel index, where the tap reads the padded input for every output position)."""
    out = case.g_shape[2:]
    for tap in itertools.product(*map(range, case.kernel)):
        window = tuple(
            slice(t * d, t * d + (p - 1) * s + 1, s) for t, d, p, s in zip(tap, case.dilation, out, case.stride)
        )
        yield tap, window


def _channels(case: Case):
    """(slice of input channels, slice of output channels) of each group."""
    i, o = case.c // case.groups, case.o // case.groups
    for group in range(case.groups):
        yield slice(group * i, (group + 1) * i), slice(group * o, (group + 1) * o)


def _padded(case: Case, x: np.ndarray) -> np.ndarray:
    return np.pad(x, [(0, 0), (0, 0), *((p, p) for p in case.padding)])


def output(case: Case, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    y, padded = np.zeros(case.g_shape, np.int64), _padded(case, x)
    for tap, window in _taps(case):
        for cs, os in _channels(case):
            patch = padded[(slice(None), cs, *window)]
            y[:, os] += np.einsum("nc...,oc->no...", patch, w[(os, slice(None), *tap)])
    return y


def grad_input(case: Case, g: np.ndarray, w: np.ndarray) -> np.ndarray:
    dx = _padded(case, np.zeros(case.x_shape, np.int64))
    for tap, window in _taps(case):
        for cs, os in _channels(case):
            dx[(slice(None), cs, *window)] += np.einsum("no...,oc->nc...", g[:, os], w[(os, slice(None), *tap)])
    inside = tuple(slice(p, p + h) for p, h in zip(case.padding, case.size))
    return dx[(slice(None), slice(None), *inside)]


def grad_weight(case: Case, g: np.ndarray, x: np.ndarray) -> np.ndarray:
    dw, padded = np.zeros(case.w_shape, np.int64), _padded(case, x)
    for tap, window in _taps(case):
        for cs, os in _channels(case):
            patch = padded[(slice(None), cs, *window)]
            rest = [0, *range(2, patch.ndim)]
            dw[(os, slice(None), *tap)] = np.tensordot(g[:, os], patch, (rest, rest))
    return dw


def times_scale(acc: np.ndarray, left: np.ndarray, right: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """float32(acc) * (s_left * s_right), then + bias: each operation rounds to float32."""
    assert left.dtype == right.dtype == np.float32
    out = acc.astype(np.float32) * (left * right)
    return out if bias is None else out + bias
