"""Ops of a few operations, or of other ops (ops/constants.py, codes.py, linear.py): the CPU gives the reference's bits.

NaN and Inf included.
"""

from __future__ import annotations

import math

import pytest
import torch

from constants_calls import CALLS as CONSTANTS_CALLS
from linear_calls import CALLS as LINEAR_CALLS
from subbyte import ops
from subbyte.backends import cpu

CALLS = CONSTANTS_CALLS | LINEAR_CALLS

pytestmark = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available())


def spoilt(args: tuple) -> list[tuple]:
    """The same arguments with NaN, an infinity or nothing but zeros in one float tensor: in an element, or in all."""
    found = []
    for i, t in enumerate(args):
        if isinstance(t, torch.Tensor) and t.is_floating_point() and t.numel():
            for value in (math.nan, math.inf, 0.0):
                one = t.clone(memory_format=torch.contiguous_format)
                one.view(-1)[t.numel() // 2] = value
                found += [(*args[:i], bad, *args[i + 1 :]) for bad in (one, torch.full_like(t, value))]
    return found


@pytest.mark.parametrize("big", [1, 13])
@pytest.mark.parametrize("name", list(CALLS))
def test_equal_to_the_reference(name, big):
    op = getattr(torch.ops.subbyte, name)
    for args in [a for call in CALLS[name](big) for a in (call, *spoilt(call))]:
        with ops.use_backend("reference"):
            want = op(*args)
        got = op(*args)
        assert ops.last_kernel[name] != ops.dispatch.REFERENCE
        for g, w in zip(*([t] if isinstance(t, torch.Tensor) else t for t in (got, want)), strict=True):
            assert (g.dtype, g.shape) == (w.dtype, w.shape)
            assert torch.equal(g.nan_to_num(nan=7.0), w.nan_to_num(nan=7.0)), args
            assert torch.equal(g.isnan(), w.isnan())
