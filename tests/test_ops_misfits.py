"""An operand of another size never reaches a kernel: the call says so, or gives what the reference gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fuzz.run import difference, outcome
from op_calls import CALLS
from subbyte import ops
from subbyte.backends import cpu

pytestmark = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available())


def longer(t: Tensor) -> Tensor:
    """The last axis twice as long."""
    return torch.cat((t, t), -1)


def shorter(t: Tensor) -> Tensor:
    """Without the last index of its longest axis."""
    axis = max(range(t.ndim), key=lambda i: t.shape[i])
    return t.narrow(axis, 0, t.shape[axis] - 1)


def takes(t: object, change: Callable) -> bool:
    """Is it an operand that can be changed so?"""
    return isinstance(t, Tensor) and t.ndim > 0 and t.numel() > (change is shorter)


OPERANDS = {
    "norm_forward": (1, 2, 3),
    "norm_backward": (1, 3, 5, 6, 7),
    "norm_grad_stats": (1, 2),
    "norm_grad_apply": (1, 2, 3, 4),
    "linear_forward": (1, 2),
    "linear_backward": (10, 11, 14, 16, 17, 20),
    "int_quantize": (1,),
    "scaled_conv2d": (5, 10),
    "scaled_conv2d_grad_input": (0, 5, 10),
    "scaled_conv2d_grad_weight": (0, 5, 10),
    "scaled_matmul": (0, 5),
}
MISFITS = [
    (op, which, change)
    for op, all_of_them in OPERANDS.items()
    for which in all_of_them
    for change in (longer, shorter)
    if any(takes(call[which], change) for call in CALLS[op](2))
]


def test_every_operand_is_among_them() -> None:
    assert {(op, which) for op, which, _ in MISFITS} == {(op, i) for op, each in OPERANDS.items() for i in each}


@pytest.mark.parametrize(("op", "which", "change"), MISFITS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_an_operand_of_another_size(op: str, which: int, change: Callable) -> None:
    for call in CALLS[op](2):
        if not takes(call[which], change):
            continue
        bad = tuple(change(a) if i == which else a for i, a in enumerate(call))
        got = outcome(op, bad, "cpu")
        if isinstance(got, ops.BackendError):  # left to the reference
            continue
        wrong = difference(got, outcome(op, bad, "reference"))
        assert not wrong or isinstance(got, Exception), wrong
