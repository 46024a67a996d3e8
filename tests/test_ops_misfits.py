"""An operand of another size never reaches a kernel: the call says so, or gives what the reference gives."""

from __future__ import annotations

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


MISFITS = [
    *(("norm_forward", i) for i in (1, 2, 3)),
    *(("norm_backward", i) for i in (1, 3, 5, 6, 7)),
    *(("norm_grad_stats", i) for i in (1, 2)),
    *(("norm_grad_apply", i) for i in (1, 2, 3, 4)),
    *(("linear_forward", i) for i in (1, 2)),
    *(("linear_backward", i) for i in (8, 9, 12, 13)),
    *(("int_quantize", i) for i in (1,)),
    *(("scaled_conv2d", i) for i in (5, 10)),
    *(("scaled_conv2d_grad_input", i) for i in (0, 5, 10)),
    *(("scaled_conv2d_grad_weight", i) for i in (0, 5, 10)),
    *(("scaled_matmul", i) for i in (0, 5)),
]


@pytest.mark.parametrize("change", [longer, shorter], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("op", "which"), MISFITS, ids=str)
def test_an_operand_of_another_size(op: str, which: int, change) -> None:
    tried = 0
    for call in CALLS[op](2):
        if not isinstance(call[which], Tensor) or call[which].ndim == 0 or call[which].numel() < 2 - (change is longer):
            continue
        bad = tuple(change(a) if i == which else a for i, a in enumerate(call))
        got = outcome(op, bad, "cpu")
        tried += 1
        if isinstance(got, ops.BackendError):  # left to the reference
            continue
        wrong = difference(got, outcome(op, bad, "reference"))
        assert not wrong or isinstance(got, Exception), wrong
    assert tried or change is shorter, "no call had such an operand"
