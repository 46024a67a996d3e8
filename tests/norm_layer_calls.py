"""Arguments for the ops of ops/norm_layer.py, for op_calls.py: batch, group, layer and RMS norm."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from subbyte import ops
from subbyte.norm import LAYER_NORM, RMS_NORM, Geometry, batch_norm, group_norm
from subbyte.ops import norm_layer

LAST = torch.channels_last
BITS = (8, 8, 6, 8)  # input, normalized, saved, weight


def _floats(shape) -> Tensor:
    return torch.randn(list(shape), generator=torch.Generator().manual_seed(math.prod(shape)))


def _inputs(big: int) -> Iterator[tuple[Tensor, Geometry]]:
    image = _floats((2 * big, 3, 4, 5 * big))
    yield image, batch_norm(4)
    yield image.contiguous(memory_format=LAST), batch_norm(4)
    yield _floats((2, 3, 2 * big, 3, 5)), group_norm(5)
    yield _floats((3 * big, 8 * big + 1)), LAYER_NORM
    yield _floats((3 * big, 8 * big + 1)), RMS_NORM


def per(x: Tensor, reduced) -> list[int]:
    return [1 if i in {d % x.ndim for d in reduced} else n for i, n in enumerate(x.shape)]


def range_of(x: Tensor, shape: list[int]) -> Tensor:
    rest = [i for i, n in enumerate(shape) if n == 1]
    return x.abs().amax(rest, keepdim=True).view(shape)


def norm_forward(big: int) -> list[tuple]:
    calls = []
    for x, geo in _inputs(big):
        dims, over = list(geo.dims), list(geo.param_dims)
        gamma, beta, each = _floats(per(x, over)), _floats(per(x, over)), range_of(x, per(x, dims))
        one = range_of(x, [1] * x.ndim)
        calls += [
            (x, each, gamma, beta, dims, over, 1e-5, *BITS, False, geo.centred),
            (x, one, gamma, None, dims, over, 1e-5, 8, 6, 6, 4, True, geo.centred),
            (x, each, None, None, dims, over, 1e-5, 6, 8, 4, 8, False, geo.centred),
        ]
    return calls


def norm_backward(big: int) -> list[tuple]:
    calls = []
    for args in norm_forward(big):
        x, _, _, _, dims, over, _, _, _, saved_bits, _, l2, centred = args
        with ops.use_backend("reference"):
            _, saved, s_k, q_gamma, s_gamma, _, d = norm_layer.norm_forward(*args)
        g = torch.empty_like(x).copy_(_floats(x.shape).flip(0))
        r = range_of(g, per(x, [*dims, *over]))
        calls.append((g, r, torch.tensor(5), saved, s_k, q_gamma, s_gamma, d, dims, over, 8, saved_bits, l2, centred))
    return calls


CALLS = {f.__name__: f for f in (norm_forward, norm_backward)}
